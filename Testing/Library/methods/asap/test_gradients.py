"""Gradients against finite differences and autograd, and what measuring them must leave alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError, StopAndKeepBest
from FewShotSegLib.methods.asap.bandit import READINGS
from FewShotSegLib.methods.asap.gradients import Alignment, Probe, Similarity, in_scope, probe, similarity
from FewShotSegLib.methods.asap.schedulers import Asap
from FewShotSegLib.progress import Progress, silent
from FewShotSegLib.training.fit import Schedule, fit, step_rng

LossOf = Callable[[], Tensor]


@pytest.fixture
def a_network() -> nn.Module:
    """Two layers with all that remembers or draws in training: batch norm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).train()


def losses_of(network: nn.Module, seed: int, batches: int) -> list[LossOf]:
    """Cross-entropy on batches of 8 random points."""

    def loss_of(number: int) -> Tensor:
        rng = np.random.default_rng([seed, number])
        points = torch.tensor(rng.normal(size=(8, 4)), dtype=next(network.parameters()).dtype)
        return nn.functional.cross_entropy(network(points), torch.tensor(rng.integers(0, 2, 8)))

    return [lambda number=number: loss_of(number) for number in range(batches)]  # type: ignore[misc]


def probed(network: nn.Module, seed: int, batches: int = 3, **options: Any) -> Probe:
    return probe(network, dict(network.named_parameters()), losses_of(network, seed, batches), **options)


# --- the gradient ---------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_finite_differences(a_network: nn.Module) -> None:
    network, step = a_network.double(), 1e-5
    found = probed(network, seed=1)
    network.eval()
    for name, parameter in network.named_parameters():
        for at in range(min(parameter.numel(), 5)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[at] += sign * step
                    values.append(sum(loss_of().item() for loss_of in losses_of(network, 1, 3)) / 3)
                    parameter.view(-1)[at] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert float(found.gradient[name].view(-1)[at]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_mean_and_cosine_are_those_of_autograd(a_network: nn.Module) -> None:
    found = {seed: probed(a_network, seed) for seed in (1, 2)}
    a_network.eval()
    flat = {}
    for seed in (1, 2):
        loss = torch.stack([loss_of() for loss_of in losses_of(a_network, seed, 3)]).mean()
        assert found[seed].loss == pytest.approx(loss.item(), rel=1e-6)
        flat[seed] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(a_network.parameters()))])
        torch.testing.assert_close(torch.cat([g.flatten() for g in found[seed].gradient.values()]), flat[seed])
    expected = float(nn.functional.cosine_similarity(flat[1].double(), flat[2].double(), dim=0))
    assert similarity(found[1].gradient, found[2].gradient).cosine == pytest.approx(expected, rel=1e-6)


def test_a_loss_scale_changes_nothing_but_keeps_small_gradients(a_network: nn.Module) -> None:
    plain, scaled = probed(a_network, 1), probed(a_network, 1, scale=2.0**16)
    assert scaled.loss == plain.loss
    for name, gradient in plain.gradient.items():
        torch.testing.assert_close(scaled.gradient[name], gradient)


def test_a_gradient_needs_a_batch(a_network: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        probed(a_network, 1, batches=0)


# --- the similarities -----------------------------------------------------------------------------------------------


def pull(towards: Sequence[float]) -> dict[str, Tensor]:
    """Gradient at 0 of the quadratic |x - towards|^2 / 2, in two parts."""
    return {"a": -torch.tensor(towards[:1]), "b": -torch.tensor(towards[1:])}


@pytest.mark.parametrize(
    ("first", "second", "cosine", "magnitude"),
    [
        ((1.0, 2.0, 0.0), (-2.0, 1.0, 7.0), 0.0, None),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 1.0, 1.0),
        ((1.0, 2.0, 3.0), (-2.0, -4.0, -6.0), -1.0, 0.8),
        ((3.0, 4.0, 0.0), (0.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 0.0),
    ],
)
def test_quadratic_tasks_have_the_similarities_of_their_aims(
    first: Sequence[float], second: Sequence[float], cosine: float, magnitude: float | None
) -> None:
    found = similarity(pull(first), pull(second))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    if magnitude is not None:
        assert found.magnitude == pytest.approx(magnitude, abs=1e-12)


def test_the_cosine_does_not_change_with_the_size_of_a_loss() -> None:
    rng = np.random.default_rng(0)
    first, second = (pull(rng.normal(size=3).tolist()) for _ in range(2))
    expected = similarity(first, second).cosine
    for factor in (1e-18, 1e-6, 3.0, 1e15):
        scaled = {name: value * factor for name, value in second.items()}
        assert similarity(first, scaled).cosine == pytest.approx(expected, rel=1e-6)


def test_long_sums_do_not_drift_as_those_in_single_precision_do() -> None:
    """Three and a half million equal entries: one float32 sum drifts in the fourth digit, sums of blocks do not."""
    first = {"w": torch.full((3_500_003,), 0.1)}
    second = {"w": torch.cat([torch.full((3_500_002,), 0.1), torch.tensor([1000.0])])}
    value = float(np.float32(0.1))
    aa, ab, bb = (3_500_002 * value**2 + value * end for end in (value, 1000.0, 1000.0**2 / value))
    assert similarity(first, second).cosine == pytest.approx(ab / math.sqrt(aa * bb), rel=3e-5)


def test_only_parameters_that_both_losses_reach_count() -> None:
    first = {"shared": torch.tensor([1.0, 0.0]), "own head": torch.tensor([100.0])}
    assert similarity(first, {"shared": torch.tensor([3.0, 0.0]), "other": torch.ones(2)}) == Similarity(1.0, 0.6)
    assert similarity({"a": torch.ones(1)}, {"b": torch.ones(1)}) == Similarity(0.0, 0.0)


def test_a_gradient_that_overflowed_has_no_similarity() -> None:
    found = similarity(pull((math.inf, 0.0, 0.0)), pull((1.0, 0.0, 0.0)))
    assert math.isnan(found.cosine)
    assert math.isnan(found.magnitude)


def test_the_scope_is_chosen_by_the_beginning_of_names(a_network: nn.Module) -> None:
    parameters = dict(a_network.named_parameters())
    assert set(in_scope(parameters)) == set(parameters)
    head = in_scope(parameters, ["4."])
    assert set(head) == {"4.weight", "4.bias"}
    found = probe(a_network, head, losses_of(a_network, 1, 2))
    assert set(found.gradient) == set(head)
    with pytest.raises(InputError, match=r'starts with "decoder"; the network has the parts 0, 1, 4\.'):
        in_scope(parameters, ["4.", "decoder"])


# --- what a probe leaves alone --------------------------------------------------------------------------------------


def test_a_probe_changes_nothing_of_the_network_to_the_bit(a_network: nn.Module) -> None:
    losses_of(a_network, 9, 1)[0]().backward()  # a gradient that somebody is still collecting
    a_network[3].eval()  # and a layer that somebody has frozen
    before = {name: value.clone() for name, value in a_network.state_dict().items()}
    grads = {name: (p.grad, p.grad.clone()) for name, p in a_network.named_parameters() if p.grad is not None}
    modes, random_state = [layer.training for layer in a_network.modules()], torch.get_rng_state()
    a_network[3].train()
    first = probed(a_network, 1)
    a_network[3].eval()
    assert "1.running_mean" in before
    assert all(torch.equal(value, before[name]) for name, value in a_network.state_dict().items())
    for name, parameter in a_network.named_parameters():
        assert parameter.grad is grads[name][0]
        assert torch.equal(grads[name][0], grads[name][1])
    assert [layer.training for layer in a_network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert first.loss == probed(a_network, 1).loss  # no dropout: a measurement, not a draw


def test_a_failing_batch_leaves_the_network_as_it_was(a_network: nn.Module) -> None:
    def fail() -> Tensor:
        raise OSError("file lost")

    with pytest.raises(OSError, match="file lost"):
        probe(a_network, dict(a_network.named_parameters()), [*losses_of(a_network, 1, 1), fail])
    assert all(layer.training for layer in a_network.modules())
    assert all(parameter.grad is None for parameter in a_network.parameters())


def test_the_network_as_a_whole_stays_in_training_mode() -> None:
    """Deep supervision answers with several heads in training and with one otherwise."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            assert not self.layer[1].training
            y = self.layer(x)
            return [y, y] if self.training else [y]

    network = Deep().train()
    heads = []

    def loss_of() -> Tensor:
        answers = network(torch.ones(3, 2))
        heads.append(len(answers))
        return sum(answer.square().sum() for answer in answers)  # type: ignore[return-value]

    probe(network, dict(network.named_parameters()), [loss_of])
    assert heads == [2]


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_floats(work: Callable[[], Any]) -> float:
    """Most floats that tensors held at a time during `work`, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    del kept
    return peak / 4


@pytest.fixture
def a_deep_network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(40)))


def row_losses(network: nn.Module, count: int) -> Iterator[LossOf]:
    for number in range(count):
        yield lambda number=number: network(torch.full((1, 64), number + 1.0)).square().mean()  # type: ignore[misc]


def test_probing_needs_two_gradients_at_most_however_many_batches(a_deep_network: nn.Module) -> None:
    parameters = dict(a_deep_network.named_parameters())
    size = sum(p.numel() for p in parameters.values())

    def look(batches: int) -> Callable[[], Probe]:
        return lambda: probe(a_deep_network, parameters, row_losses(a_deep_network, batches))

    few, many = (peak_floats(look(batches)) for batches in (2, 24))
    assert size < few < 1.2 * size
    assert many < few * 1.02
    target = look(4)()
    both = peak_floats(lambda: similarity(target.gradient, look(24)().gradient))
    assert both + size < 2.2 * size  # the target's gradient, the arm's, and one layer on its way


def test_reading_along_needs_one_copy_of_the_gradient(a_deep_network: nn.Module) -> None:
    parameters = dict(a_deep_network.named_parameters())
    size = sum(p.numel() for p in parameters.values())
    first, second = row_losses(a_deep_network, 2)

    def step(alignment: Alignment | None) -> float:
        for number, loss_of in enumerate((first, second)):
            if alignment:
                alignment.expect("auxiliary" if number else "target")
            loss_of().backward()
        cosine = alignment.take().cosine if alignment else 0.0
        a_deep_network.zero_grad()
        return cosine

    plain = peak_floats(lambda: step(None))
    with Alignment(parameters) as alignment:
        measured = peak_floats(lambda: step(alignment))
    assert measured < plain + 1.2 * size


# --- reading along --------------------------------------------------------------------------------------------------


def step_of(network: nn.Module, target: LossOf, auxiliary: LossOf, alignment: Alignment | None) -> None:
    """The gradients of one joint training step, accumulated."""
    network.zero_grad()
    if alignment is not None:
        alignment.expect("target")
    target().backward()
    if alignment is not None:
        alignment.expect("auxiliary")
    auxiliary().backward()


def test_a_joint_step_goes_along_both_gradients_and_tells_their_cosine(a_network: nn.Module) -> None:
    network, rate = a_network.double().eval(), 0.1
    parameters = dict(network.named_parameters())
    (target,), (auxiliary,) = losses_of(network, 1, 1), losses_of(network, 2, 1)
    g_target, g_auxiliary = (probe(network, parameters, [loss_of]).gradient for loss_of in (target, auxiliary))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=rate)
    with Alignment(parameters) as alignment:
        step_of(network, target, auxiliary, alignment)
        optimizer.step()
    for name, parameter in parameters.items():
        moved = parameter.detach() - before[name]
        torch.testing.assert_close(moved, -rate * (g_target[name] + g_auxiliary[name]), atol=1e-7, rtol=0)
    expected, found = similarity(g_target, g_auxiliary), alignment.take()
    assert (found.cosine, found.magnitude) == pytest.approx((expected.cosine, expected.magnitude), rel=1e-9)


def test_measuring_does_not_change_the_step(a_network: nn.Module) -> None:
    (target,), (auxiliary,) = losses_of(a_network, 1, 1), losses_of(a_network, 2, 1)
    grads = []
    for measure in (False, True):
        torch.default_generator.manual_seed(0)
        with Alignment(dict(a_network.named_parameters())) as alignment:
            step_of(a_network, target, auxiliary, alignment if measure else None)
        grads.append([p.grad.clone() for p in a_network.parameters() if p.grad is not None])
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


def test_steps_are_pooled_until_they_are_taken(a_network: nn.Module) -> None:
    network = a_network.double().eval()
    parameters = dict(network.named_parameters())
    targets, auxiliaries = losses_of(network, 1, 3), losses_of(network, 2, 3)
    steps = zip(flat_gradients(network, targets), flat_gradients(network, auxiliaries), strict=True)
    sums = sum(np.stack(pair) @ np.stack(pair).T for pair in steps)
    with Alignment(parameters) as alignment:
        for target, auxiliary in zip(targets, auxiliaries, strict=True):
            step_of(network, target, auxiliary, alignment)
        alignment.expect("nothing")
        targets[0]().backward()  # somebody else's
        state = json.loads(json.dumps(alignment.state()))
        assert alignment.take().cosine == pytest.approx(sums[0, 1] / math.sqrt(sums[0, 0] * sums[1, 1]), rel=1e-9)
        assert alignment.take() == Similarity(0.0, 0.0)
        alignment.load_state(state)
        assert alignment.take().cosine == pytest.approx(sums[0, 1] / math.sqrt(sums[0, 0] * sums[1, 1]), rel=1e-12)


def flat_gradients(network: nn.Module, losses: Sequence[LossOf]) -> list[np.ndarray]:
    """The gradient of each loss as one vector, by autograd."""
    found = []
    for loss_of in losses:
        grads = torch.autograd.grad(loss_of(), list(network.parameters()), allow_unused=True)
        found.append(np.concatenate([g.numpy().ravel() for g in grads if g is not None]))
    return found


@pytest.mark.parametrize("followed", [True, False])
def test_the_auxiliary_gradient_is_compared_with_the_running_mean_of_the_targets(
    a_network: nn.Module, followed: bool
) -> None:
    network = a_network.double().eval()
    parameters = dict(network.named_parameters())
    targets, auxiliaries = losses_of(network, 1, 4), losses_of(network, 2, 4)
    one, two, three, four = flat_gradients(network, targets)
    mean = 0.25 * (0.25 * (0.25 * one + 0.75 * two) + 0.75 * three) + 0.75 * four
    last = flat_gradients(network, auxiliaries)[-1]
    with Alignment(parameters, decay=0.25) as alignment:
        for target, auxiliary in zip(targets, auxiliaries, strict=True):
            alignment.take()
            if followed:
                step_of(network, target, auxiliary, alignment)
            else:
                network.zero_grad()
                alignment.look_at_target(target(), scale=8.0)
                assert all(p.grad is None for p in parameters.values())
                alignment.expect("auxiliary")
                auxiliary().backward()
        found = alignment.take().cosine
    assert found == pytest.approx(mean @ last / (np.linalg.norm(mean) * np.linalg.norm(last)), rel=1e-9)
    assert found != pytest.approx(four @ last / (np.linalg.norm(four) * np.linalg.norm(last)), rel=1e-3)


def test_a_target_gradient_that_overflowed_leaves_the_running_mean_as_it_was(a_network: nn.Module) -> None:
    (target,), (auxiliary,) = losses_of(a_network, 1, 1), losses_of(a_network, 2, 1)
    a_network.eval()
    with Alignment(dict(a_network.named_parameters()), decay=0.5) as alignment:
        step_of(a_network, target, auxiliary, alignment)
        expected = alignment.take().cosine
        step_of(a_network, lambda: target() * math.inf, auxiliary, alignment)
        alignment.take()
        step_of(a_network, target, auxiliary, alignment)
        assert alignment.take().cosine == pytest.approx(expected, rel=1e-5)


def test_in_noise_only_the_running_mean_finds_the_arm_that_helps() -> None:
    """A target whose batches are mostly noise, an arm along its mean and one across."""
    rng = np.random.default_rng(0)
    x = torch.zeros(400, requires_grad=True)
    aim, across = torch.zeros(400), torch.zeros(400)
    aim[0], across[1] = 1.0, 1.0
    gains = {}
    for decay in (0.0, 0.9):
        differences = []
        with Alignment({"x": x}, decay) as alignment:
            for step in range(120):
                noise = torch.from_numpy(rng.standard_normal(400)).float() / 10  # twice the length of the aim
                found = []
                for arm in (aim, across):
                    x.grad = None
                    alignment.expect("target")
                    (x @ (aim + noise)).backward()
                    alignment.expect("auxiliary")
                    (x @ arm).backward()
                    found.append(alignment.take().cosine)
                if step >= 40:
                    differences.append(found[0] - found[1])
        gains[decay] = np.mean(differences) / np.std(differences)
    assert gains[0.9] > 2 * gains[0.0]


def test_micro_batches_of_both_kinds_add_up(a_network: nn.Module) -> None:
    network = a_network.double().eval()
    parameters = dict(network.named_parameters())
    targets, auxiliaries = losses_of(network, 1, 2), losses_of(network, 2, 3)
    expected = similarity(
        probe(network, parameters, targets).gradient, probe(network, parameters, auxiliaries).gradient
    )
    with Alignment(parameters) as alignment:
        alignment.expect("target")
        for loss_of in targets:
            loss_of().backward()
        alignment.expect("auxiliary")
        for loss_of in auxiliaries:
            loss_of().backward()
        assert alignment.take().cosine == pytest.approx(expected.cosine, rel=1e-9)


def test_steps_that_overflowed_are_left_out_where_there_are_others(a_network: nn.Module) -> None:
    (target,), (auxiliary,) = losses_of(a_network, 1, 1), losses_of(a_network, 2, 1)
    a_network.eval()
    with Alignment(dict(a_network.named_parameters())) as alignment:
        step_of(a_network, target, lambda: auxiliary() * math.inf, alignment)
        assert math.isnan(alignment.take().cosine)
        step_of(a_network, target, lambda: auxiliary() * math.inf, alignment)
        step_of(a_network, target, auxiliary, alignment)
        pooled = alignment.take().cosine
        step_of(a_network, target, auxiliary, alignment)
        assert alignment.take().cosine == pooled


def test_nothing_is_read_after_the_end(a_network: nn.Module) -> None:
    with Alignment(dict(a_network.named_parameters())) as alignment:
        alignment.expect("target")
    losses_of(a_network, 1, 1)[0]().backward()
    assert alignment.take() == Similarity(0.0, 0.0)


@pytest.mark.parametrize("arms", [3, 12])
def test_a_turn_of_asap_is_two_backward_passes_however_many_arms(
    a_network: nn.Module, arms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_backward_passes(monkeypatch)
    parameters = dict(a_network.named_parameters())
    scheduler = Asap([str(arm) for arm in range(arms)], READINGS["default"], np.random.default_rng(0))
    target = probe(a_network, parameters, losses_of(a_network, 0, 4)).gradient
    for arm in scheduler.probes(0):
        seen = probe(a_network, parameters, losses_of(a_network, arm + 1, 4))
        scheduler.observe(0, arm, seen.loss, similarity(target, seen.gradient).cosine)
    assert len(passes) == 4 * (arms + 1)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    with Alignment(parameters) as alignment:
        for turn in range(1, 6):
            passes.clear()
            (arm,) = scheduler.choose(turn)
            step_of(a_network, losses_of(a_network, 0, 1)[0], losses_of(a_network, arm + 1, 1)[0], alignment)
            optimizer.step()
            scheduler.observe(turn, arm, 1.0, alignment.take().cosine)
            assert (len(passes), scheduler.probes(turn)) == (2, ())


def count_backward_passes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    passes: list[None] = []
    backward = torch.autograd.backward

    def counted(*arguments: Any, **options: Any) -> None:
        passes.append(None)
        backward(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "backward", counted)
    return passes


# --- in the training loop -------------------------------------------------------------------------------------------

JOINT = Schedule(12, learning_rate=0.05, weight_decay=0.0, warmup_steps=0, clip_norm=1.0, accumulate=2)


class Turns:
    """Two arms over turns of three steps, as a method would train with them."""

    def __init__(self, alignment: Alignment, parameters: dict[str, Tensor]) -> None:
        self.alignment, self.parameters = alignment, parameters
        self.scheduler = Asap(["near", "far"], READINGS["default"], np.random.default_rng(1))
        for arm in self.scheduler.probes(0):
            self.scheduler.observe(0, arm, 1.0, 0.5)
        self.losses: list[float] = []

    def loss_at(self, number: int) -> tuple[Tensor, dict[str, float]]:
        step, is_auxiliary = divmod(number, 2)
        turn = step // 3 + 1
        if not is_auxiliary and step % 3 == 0 and step:
            self.observe(turn - 1)
        self.alignment.expect("auxiliary" if is_auxiliary else "target")
        aim = (1.0, -1.0)[self.scheduler.choose(turn)[0]] if is_auxiliary else 1.0
        loss = (self.parameters["x"] - aim - 0.1 * float(step_rng(0, number).normal())).square().sum()
        if is_auxiliary:
            self.losses.append(float(loss.detach()))
        return loss, {}

    def observe(self, turn: int) -> None:
        (arm,) = self.scheduler.choose(turn)
        self.scheduler.observe(turn, arm, float(np.mean(self.losses)), self.alignment.take().cosine)
        self.losses = []

    def state(self) -> dict[str, Any]:
        return {"scheduler": self.scheduler.state(), "alignment": self.alignment.state(), "losses": self.losses}

    def load_state(self, state: Any) -> None:
        self.scheduler.load_state(state["scheduler"])
        self.alignment.load_state(state["alignment"])
        self.losses = list(state["losses"])

    def tensors(self) -> dict[str, Tensor]:
        return self.alignment.tensors()

    def load_tensors(self, tensors: Any) -> None:
        self.alignment.load_tensors(tensors)


@pytest.mark.parametrize("stop_after", [0, 4, 6, 8])
def test_the_loop_can_be_read_along_and_resumed_to_the_byte(tmp_path: Path, stop_after: int) -> None:
    """Also in the middle of a turn: what was measured so far is part of the checkpoint."""
    schedule, checkpoint = replace(JOINT, checkpoint_seconds=0.0), tmp_path / "run.pt"

    def stop(progress: Progress) -> None:
        if progress.step == stop_after:
            raise StopAndKeepBest

    def train(report: Callable[[Progress], None], kept: Path | None) -> tuple[Tensor, Turns]:
        parameters = {"x": torch.full((3,), -0.5, requires_grad=True)}
        with Alignment(parameters, decay=0.5) as alignment:
            turns = Turns(alignment, parameters)
            fit(parameters, turns.loss_at, schedule, report=report, checkpoint=kept, identity="a", companion=turns)
            return parameters["x"].detach(), turns

    whole, expected = train(silent, None)
    if stop_after:
        train(stop, checkpoint)
    ended, turns = train(silent, checkpoint)
    assert torch.equal(ended, whole)
    assert turns.scheduler.state() == expected.scheduler.state()
    rows = [row for row in turns.scheduler.history if row["cosine"] is not None and row["turn"]]
    assert len(rows) == 3
    assert all(abs(row["cosine"]) == pytest.approx(1.0, abs=0.1) for row in rows)
