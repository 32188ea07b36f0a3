"""The selective scan against a loop over steps, against mambapy, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from FewShotSegLib.networks import scan
from FewShotSegLib.networks.scan import selective_scan
from Testing.Library.networks.sequences import arguments

Scan = Callable[..., Tensor]


def step_by_step(u: Tensor, delta: Tensor, decay: Tensor, write: Tensor, read: Tensor, skip: Tensor) -> Tensor:
    """The definition, one step after the other."""
    state = torch.zeros(*u.shape[::2], decay.shape[1], dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        state = torch.exp(delta[:, t, :, None] * decay) * state + (delta * u)[:, t, :, None] * write[:, t, None]
        outputs.append((state * read[:, t, None]).sum(-1))
    return torch.stack(outputs, 1) + skip * u


def with_gradients(function: Scan, values: list[Tensor]) -> list[Tensor]:
    """y, and the gradients of all arguments for an uneven weighting of it."""
    y = function(*values)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((weights * y).sum(), values)]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of any output or gradient, relative to its largest element."""
    return max(
        ((one.double() - other.double()).abs().max() / other.abs().max().clamp(min=1e-300)).item()
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("length", [1, 2, 3, 32, 33, 49, 101])
def test_the_scan_and_its_gradients_are_those_of_the_definition(length: int) -> None:
    values = arguments(3, length, 5, 4)
    assert largest_error(with_gradients(selective_scan, values), with_gradients(step_by_step, values)) < 1e-13


@pytest.mark.parametrize("length", [7, 64, 150])
def test_the_scan_and_its_gradients_are_those_of_mambapy(length: int) -> None:
    pscan = pytest.importorskip("mambapy.pscan").pscan

    def theirs(u: Tensor, delta: Tensor, decay: Tensor, write: Tensor, read: Tensor, skip: Tensor) -> Tensor:
        states = pscan(torch.exp(delta[..., None] * decay), (delta * u)[..., None] * write[:, :, None])
        return (states @ read[..., None])[..., 0] + skip * u

    values = arguments(2, length, 6, 3)
    assert largest_error(with_gradients(selective_scan, values), with_gradients(theirs, values)) < 1e-13


@pytest.mark.parametrize("short", [0, 32])
def test_gradients_agree_with_finite_differences(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_SHORT", short)  # in chunks, and in one go
    assert torch.autograd.gradcheck(selective_scan, arguments(2, 6, 2, 3))


def test_blocks_of_sequences_and_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = arguments(3, 36, 5, 4)
    whole = with_gradients(selective_scan, values)
    for budget in (1, 36 * 4 * 2, 36 * 4 * 5 * 2):  # one channel, two channels, two sequences at a time
        monkeypatch.setattr(scan, "_STATES_CPU", budget)
        assert largest_error(with_gradients(selective_scan, values), whole) < 1e-14


def test_a_constant_decay_gives_a_geometric_series() -> None:
    length = 200
    one = torch.ones(1, length, 1, dtype=torch.float64)
    decay = torch.log(torch.tensor([[0.9]], dtype=torch.float64))
    y = selective_scan(one, one, decay, one, one, torch.zeros(1, dtype=torch.float64))
    wanted = (1 - 0.9 ** torch.arange(1, length + 1, dtype=torch.float64)) / 0.1
    torch.testing.assert_close(y[0, :, 0], wanted, rtol=1e-13, atol=0)


def test_no_step_hears_of_a_later_one() -> None:
    values = arguments(1, 50, 3, 2)
    before = selective_scan(*values)
    with torch.no_grad():
        values[0][:, 31:] += 1
    torch.testing.assert_close(selective_scan(*values)[:, :31], before[:, :31], rtol=0, atol=0)


def test_the_states_are_not_kept_for_the_backward_pass() -> None:
    values = arguments(2, 100, 64, 16)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = selective_scan(*values)
    assert y.requires_grad
    assert sum(kept.values()) < 3 * sum(value.numel() for value in values) < 2 * 100 * 64 * 16


def test_long_sequences_stay_exact_in_float32() -> None:
    exact = with_gradients(step_by_step, arguments(1, 1000, 4, 4))
    assert largest_error(with_gradients(selective_scan, arguments(1, 1000, 4, 4, torch.float32)), exact) < 1e-5


def test_autocast_does_not_reach_into_the_scan() -> None:
    values = arguments(1, 300, 4, 4, torch.float32)
    wanted = selective_scan(*values)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(selective_scan(*values), wanted, rtol=0, atol=0)
        low = selective_scan(*(value.bfloat16() for value in values))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), wanted, rtol=0.05, atol=0.05)
