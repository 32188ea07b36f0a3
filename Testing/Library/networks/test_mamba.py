"""What a direction of Mamba-UNet computes, and how far the network sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from FewShotSegLib.networks import build
from FewShotSegLib.networks.mamba import DirectionalScan, Merge, Spread, scanned
from FewShotSegLib.networks.scan import ORDERS
from FewShotSegLib.networks.swin import PatchMerging
from Testing.Library.networks.ball import a_ball
from Testing.Library.networks.sequences import arguments


def test_mamba_sees_the_whole_slice_and_the_slices_around() -> None:
    network = build("mambaunet", patch=(4, 32, 32)).eval()
    image = a_ball((4, 32, 32))[0].requires_grad_()
    corner = network(image)[0, 1, 0, 0, 0]
    (reach,) = torch.autograd.grad(corner, image)
    assert (reach[0, 0].abs().amax((1, 2)) > 0).all()
    assert (reach[0, 0, 0, -4:, -4:] != 0).any()


def test_a_direction_of_the_network_computes_what_a_block_of_mambapy_does_with_the_same_weights() -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=16, n_layers=1, d_state=4, expand_factor=2)).double()
    direction = DirectionalScan(32, 4, "row", backwards=False).double()
    direction.project = torch.nn.Linear(32, 1 + 2 * 4, bias=False, dtype=torch.float64)
    assert direction.parts == [2, 4, 4]  # rank ceil(32 / 16); mambapy takes that of the outer width, 1
    direction.parts = [1, 4, 4]
    direction.step = block.dt_proj
    direction.project.weight = block.x_proj.weight
    direction.log_decay, direction.skip = block.A_log, block.D
    u = arguments(2, 23, 32, 1)[0]
    theirs = block.ssm(u, torch.zeros_like(u))  # without the gate
    torch.testing.assert_close(
        direction(u[:, None, None])[:, 0, 0], theirs, rtol=1e-6, atol=1e-7
    )  # mambapy computes A in float32


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_token_hears_of_those_before_it_along_its_direction_and_of_no_other(order: str, backwards: bool) -> None:
    direction = DirectionalScan(2, 3, order, backwards).double()
    x = torch.randn(1, 3, 4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    at = (1, 2, 3)
    (reach,) = torch.autograd.grad(direction(x)[0, at[0], at[1], at[2]].sum(), x)
    heard = {tuple(index) for index in reach[0].abs().sum(-1).nonzero().tolist()}

    def place(d: int, h: int, w: int) -> tuple[int, int]:
        """The sequence of a token, and its number in it."""
        return {"row": (d, 5 * h + w), "column": (d, 4 * w + h), "axial": (5 * h + w, d)}[order]

    sequence, number = place(*at)
    expected = {
        token
        for token in ((d, h, w) for d in range(3) for h in range(4) for w in range(5))
        if place(*token)[0] == sequence and (place(*token)[1] >= number if backwards else place(*token)[1] <= number)
    }
    assert heard == expected


@pytest.mark.parametrize("order", ORDERS)
def test_backwards_is_forwards_on_what_was_turned_around(order: str) -> None:
    direction = DirectionalScan(2, 3, order, backwards=False)
    turned = DirectionalScan(2, 3, order, backwards=True)
    turned.load_state_dict(direction.state_dict())
    x = torch.randn(2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    axes = (1,) if order == "axial" else (2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(turned(x), direction(x.flip(axes)).flip(axes))


def test_all_directions_together_are_the_sum_of_each() -> None:
    ways = [(order, backwards) for order in ORDERS for backwards in (False, True)]
    scans = [DirectionalScan(18, 3, *way).double() for way in ways]
    x = torch.randn(2, 3, 4, 5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(scanned(x, scans), torch.stack([scan(x) for scan in scans]).sum(0))


def test_more_directions_take_no_more_matrix_products() -> None:
    x = torch.randn(1, 2, 4, 4, 18, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def products(ways: list[tuple[str, bool]]) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            y = scanned(x, [DirectionalScan(18, 3, *way) for way in ways])
        names = ("aten::linear", "aten::addmm", "aten::baddbmm")
        assert y.isfinite().all()
        return sum(event.count for event in profiler.key_averages() if event.key in names)

    assert products([(order, False) for order in ORDERS]) == products([("row", False)]) > 0


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (1, 1, 1)])
def test_merging_is_that_of_swin(stride: tuple[int, int, int]) -> None:
    ours, swins = Merge(4, stride), PatchMerging(4, stride, nn.LayerNorm)
    with torch.no_grad():
        swins.reduction.weight.copy_(ours.reduce.weight)
    x = torch.randn(1, 4, 6, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), swins(x))


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 4, 4), (1, 1, 1)])
def test_spreading_lays_the_parts_of_a_token_side_by_side(stride: tuple[int, int, int]) -> None:
    spread = Spread(6, 3, stride)
    x = torch.randn(2, 3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    d, h, w = stride
    with torch.inference_mode():
        found = spread(x)
        assert found.shape == (2, 3 * d, 2 * h, 5 * w, 3)
        token = nn.functional.layer_norm(spread.widen(x[1, 2, 1, 4]).reshape(d, h, w, 3), (3,))
        torch.testing.assert_close(found[1, 2 * d : 3 * d, h:, 4 * w :], token)
