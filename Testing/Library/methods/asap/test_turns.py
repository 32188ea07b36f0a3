"""Training in turns: what a step follows, what is measured in it, and that a broken-off run goes on unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.methods.asap.bandit import READINGS, BanditRecipe
from FewShotSegLib.methods.asap.pool import UnusableArm
from FewShotSegLib.methods.asap.schedulers import SCHEDULERS, scheduler_of
from FewShotSegLib.methods.asap.turns import TurnRecipe, Turns
from FewShotSegLib.progress import Progress, silent
from FewShotSegLib.training.fit import Schedule, fit, step_rng

SCHEDULE = Schedule(24, learning_rate=0.02, weight_decay=0.0, warmup_steps=0, checkpoint_seconds=0.0)
AIMS = {"near": 1.0, "aside": 0.0, "far": -1.0}  # of the arms; the target's is 1


class Point(nn.Module):
    """Something to move: parameters are pulled to the aims of target and arms."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(4))
        self.passes = 0
        self.broken: set[int] = set()

    def target(self, step: int) -> Tensor:
        return self._pull(1.0, step_rng(0, step))

    def auxiliary(self, arm: int, rng: np.random.Generator) -> Tensor:
        if arm in self.broken:
            raise UnusableArm(arm, "its file is damaged")
        return self._pull(list(AIMS.values())[arm], rng)

    def _pull(self, aim: float, rng: np.random.Generator) -> Tensor:
        self.passes += 1
        return (self.x - aim - 0.05 * torch.from_numpy(rng.standard_normal(4)).float()).square().sum()


def turns_of(point: Point, scheduler: str = "asap", arms: Sequence[str] = tuple(AIMS), **recipe: Any) -> Turns:
    options = READINGS["log"] if recipe.pop("all_arms", False) else BanditRecipe(abstain=recipe.pop("abstain", True))
    chosen = scheduler_of(scheduler, arms, options, np.random.default_rng(1))
    return Turns(
        chosen,
        arms,
        point.target,
        point.auxiliary,
        point,
        dict(point.named_parameters()),
        seed=5,
        recipe=TurnRecipe(**{"steps_per_turn": 2, "measured_steps": 1, "probe_batches": 1, **recipe}),
    )


def trained(point: Point, turns: Turns, schedule: Schedule = SCHEDULE, **more: Any) -> list[float]:
    with turns:
        options = {"report": silent, "companion": turns, **more}
        fit(dict(point.named_parameters()), turns.loss_at, turns.schedule(schedule), **options)
    return point.x.tolist()


def test_a_step_follows_the_sum_of_both_gradients() -> None:
    point = Point()
    turns = turns_of(point, "random", ["near"])
    schedule = turns.schedule(SCHEDULE)
    assert (schedule.accumulate, schedule.summed) == (2, True)
    with turns:
        losses = [turns.loss_at(number)[0] for number in (0, 1)]
    expected = sum(torch.autograd.grad(loss, point.x)[0] for loss in losses)
    seen: list[Tensor] = []
    point.x.register_hook(lambda grad: seen.append(grad.clone()))
    with turns_of(point, "random", ["near"]) as again:
        fit({"x": point.x}, again.loss_at, replace(schedule, steps=1, clip_norm=0.0), report=silent)
    torch.testing.assert_close(sum(seen), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_arms_every_way_of_choosing_is_plain_training_to_the_bit(scheduler: str) -> None:
    plain = Point()
    fit({"x": plain.x}, lambda step: (plain.target(step), {}), SCHEDULE, report=silent)
    point = Point()
    assert trained(point, turns_of(point, scheduler, ())) == plain.x.tolist()


def test_direct_fine_tuning_leaves_the_arms_alone() -> None:
    plain, point = Point(), Point()
    fit({"x": plain.x}, lambda step: (plain.target(step), {}), SCHEDULE, report=silent)
    assert trained(point, turns_of(point, "direct")) == plain.x.tolist()


def test_within_a_turn_no_number_is_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait for all that was launched."""

    def read(self: Tensor, *given: object) -> float:
        raise AssertionError("a number was read")

    point = Point()
    turns = turns_of(point, "asap", steps_per_turn=3, measured_steps=3)
    with turns:
        for number in range(6):
            if number == 2:  # the turn has begun
                for name in ("__float__", "__bool__", "item", "tolist"):
                    monkeypatch.setattr(Tensor, name, read)
            loss, told = turns.loss_at(number)
            loss.backward()
        assert all(isinstance(told[name], Tensor) for name in ("loss", "auxiliary_loss"))


@pytest.mark.parametrize("count", [2, 5, 15])
def test_after_the_first_look_a_step_takes_two_passes_however_many_arms_there_are(count: int) -> None:
    point = Point()
    arms = [f"arm {number}" for number in range(count)]
    turns = turns_of(point, "asap", arms)
    turns.auxiliary = lambda chosen, rng: point._pull(0.5, rng)
    trained(point, turns)
    assert point.passes == 1 + count + 2 * SCHEDULE.steps  # one look at the target, one at each arm


def test_measuring_all_arms_takes_a_pass_per_arm_and_turn() -> None:
    point = Point()
    trained(point, turns_of(point, "asap", all_arms=True))
    turns = SCHEDULE.steps // 2
    assert point.passes == turns * (1 + len(AIMS)) + 2 * SCHEDULE.steps


def test_the_arm_that_pulls_the_same_way_is_chosen_most() -> None:
    point = Point()
    turns = turns_of(point)
    trained(point, turns, replace(SCHEDULE, steps=80))
    played = [row["name"] for row in turns.summary()["turns"] if row["turn"] > 0]
    assert played.count("near") > played.count("aside")
    assert played.count("near") > played.count("far")


def test_what_is_written_down_is_what_the_gradients_were() -> None:
    point = Point()
    turns = turns_of(point)
    trained(point, turns, replace(SCHEDULE, steps=4))
    rows = turns.summary()["turns"]
    assert [row["turn"] for row in rows] == [0, 0, 0, 1, 2]
    looks = {row["name"]: row["cosine"] for row in rows[:3]}
    assert looks["near"] == pytest.approx(1, abs=0.05)
    assert looks["far"] == pytest.approx(-1, abs=0.05)
    by_hand = point_cosine(rows[3]["arm"])
    assert rows[3]["cosine"] == pytest.approx(by_hand, abs=1e-5)


def point_cosine(arm: int) -> float:
    """Of the first training step: target and arm at the point where training starts."""
    point = Point()
    losses = (point.target(0), point.auxiliary(arm, step_rng(5, 0)))
    a, b = (torch.autograd.grad(loss, point.x)[0].double() for loss in losses)
    return float(a @ b / (a.norm() * b.norm()))


def flat(network: Point, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, network.x)[0].double()


def test_the_reward_of_later_steps_is_measured_against_the_mean_of_all_targets_so_far() -> None:
    point = Point()
    turns = turns_of(point, "asap", steps_per_turn=1, decay=0.5)
    seen: list[Tensor] = []
    turns.target = lambda step: _noted(point, point.target(step), seen)
    mean, expected = torch.zeros(4, dtype=torch.float64), {}

    def auxiliary(arm: int, rng: np.random.Generator) -> Tensor:
        nonlocal mean
        loss = point.auxiliary(arm, rng)
        if len(seen) > 1:  # after the look of turn 0
            new = seen[-1]
            mean = new if not expected else 0.5 * mean + 0.5 * new
            own = flat(point, point.auxiliary(arm, step_rng(5, len(expected))))
            expected[len(expected) + 1] = float(mean @ own / (mean.norm() * own.norm()))
        return loss

    turns.auxiliary = auxiliary
    trained(point, turns, replace(SCHEDULE, steps=6))
    rows = {row["turn"]: row["cosine"] for row in turns.summary()["turns"] if row["turn"]}
    assert [rows[turn] for turn in range(1, 6)] == pytest.approx([expected[turn] for turn in range(1, 6)], abs=1e-4)


def _noted(point: Point, loss: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(torch.autograd.grad(loss, point.x, retain_graph=True)[0].double())
    return loss


def test_to_the_letter_a_turn_measures_means_of_several_batches_before_its_first_step() -> None:
    point = Point()
    turns = turns_of(point, gradients="batches", reward_batches=3)
    trained(point, turns)
    count = SCHEDULE.steps // 2
    assert point.passes == 1 + len(AIMS) + count * 2 * 3 + 2 * SCHEDULE.steps
    first = Point()
    steps = range((1 << 30) + 3, (1 << 30) + 6)
    row = next(row for row in turns.summary()["turns"] if row["turn"] == 1)
    rngs = [np.random.default_rng([5, 1 << 30, 1, row["arm"], batch]) for batch in range(3)]
    a = torch.stack([flat(first, first.target(step)) for step in steps]).mean(0)
    b = torch.stack([flat(first, first.auxiliary(row["arm"], rng)) for rng in rngs]).mean(0)
    assert row["cosine"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6)


def test_multi_task_learning_follows_the_target_and_the_mean_of_all_arms_in_every_step() -> None:
    point = Point()
    turns = turns_of(point, "mtl")
    schedule = replace(turns.schedule(SCHEDULE), steps=1, clip_norm=0.0)
    assert (schedule.accumulate, schedule.summed) == (1 + len(AIMS), True)
    seen: list[Tensor] = []
    point.x.register_hook(lambda grad: seen.append(grad.double().clone()))
    with turns:
        fit({"x": point.x}, turns.loss_at, schedule, report=silent)
    target, *arms = seen
    assert len(arms) == len(AIMS)
    noise = 0.2  # the aims are 1 apart, and a gradient is twice the distance
    for aim, grad in zip(AIMS.values(), arms, strict=True):
        torch.testing.assert_close(3 * grad, torch.full((4,), -2 * aim).double(), atol=3 * noise, rtol=0)
    torch.testing.assert_close(target, torch.full((4,), -2.0).double(), atol=3 * noise, rtol=0)


def test_an_arm_that_breaks_leaves_the_others_their_share_of_multi_task_learning() -> None:
    point = Point()
    point.broken = {1}
    turns = turns_of(point, "mtl")
    trained(point, turns)
    assert turns.summary()["left_out"] == {"aside": "its file is damaged"}
    with turns:
        losses = [turns.loss_at(number)[0] for number in range(8, 12)]  # step 2: target and three arms
    found = [flat(point, loss) if number != 2 else None for number, loss in enumerate(losses)]
    near, far = (point.auxiliary(arm, step_rng(5, 6 + arm)) for arm in (0, 2))
    assert losses[2].item() == 0
    for grad, loss in ((found[0], point.target(2)), (found[1], near / 2), (found[3], far / 2)):
        assert grad is not None
        torch.testing.assert_close(grad, flat(point, loss))


def test_before_the_first_look_arms_are_drawn_by_lot_and_after_it_the_scheduler_chooses() -> None:
    point = Point()
    turns = turns_of(point, "asap", lots_until=10, steps_per_turn=1)
    drawn: list[int] = []
    auxiliary = point.auxiliary
    turns.auxiliary = lambda arm, rng: (drawn.append(arm), auxiliary(arm, rng))[1]
    trained(point, turns)
    assert {0, 1, 2} == set(drawn[:10])
    assert drawn[10:13] == [0, 1, 2]  # the look
    assert [row["turn"] for row in turns.summary()["turns"]] == [0, 0, 0, *range(1, SCHEDULE.steps - 9)]


def test_a_target_that_is_not_followed_moves_nothing_and_still_decides() -> None:
    point = Point()
    turns = turns_of(point, "asap", ["far"], abstain=False, follow_target=False)
    turns.auxiliary = lambda arm, rng: point.auxiliary(2, rng)
    end = trained(point, turns, replace(SCHEDULE, steps=200))
    assert end == pytest.approx([-1] * 4, abs=0.1)  # where the arm pulls
    cosines = [row["cosine"] for row in turns.summary()["turns"] if row["turn"] > 1][:5]
    assert max(cosine for cosine in cosines if cosine is not None) < -0.9


@pytest.mark.parametrize("scheduler", ["asap", "gms", "mtl", "dal_ucb1", "dal_exp3", "random"])
@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(tmp_path: Path, scheduler: str, stop_after: int) -> None:
    whole = Point()
    whole_turns = turns_of(whole, scheduler, steps_per_turn=3, measured_steps=2)
    expected = trained(whole, whole_turns)

    def stop(progress: Progress) -> None:
        if progress.step == stop_after:
            raise Cancelled

    checkpoint = tmp_path / "run.pt"
    point = Point()
    with pytest.raises(Cancelled):
        trained(
            point, turns_of(point, scheduler, steps_per_turn=3, measured_steps=2), report=stop, checkpoint=checkpoint
        )
    again = Point()
    again_turns = turns_of(again, scheduler, steps_per_turn=3, measured_steps=2)
    assert trained(again, again_turns, checkpoint=checkpoint) == expected
    assert again_turns.summary() == whole_turns.summary()


def test_an_arm_that_breaks_is_left_out_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    point = Point()
    point.broken = {0}
    turns = turns_of(point)
    trained(point, turns)
    assert turns.summary()["left_out"] == {"near": "its file is damaged"}
    assert all(row["name"] != "near" for row in turns.summary()["turns"])
    assert "near" in caplog.text


def test_when_all_arms_break_the_target_is_trained_alone() -> None:
    point, plain = Point(), Point()
    point.broken = {0, 1, 2}
    fit({"x": plain.x}, lambda step: (plain.target(step), {}), SCHEDULE, report=silent)
    np.testing.assert_allclose(trained(point, turns_of(point)), plain.x.tolist(), rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"steps_per_turn": 0}, {"measured_steps": 3}, {"probe_batches": 0}, {"reward_batches": 0}]
)
def test_a_turn_that_cannot_be_measured_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="got"):
        TurnRecipe(**{"steps_per_turn": 2, "measured_steps": 1, "probe_batches": 1, **wrong})


def test_batches_cannot_be_accumulated_beside_auxiliary_data() -> None:
    with pytest.raises(InputError, match="accumulate=2"):
        turns_of(Point()).schedule(replace(SCHEDULE, accumulate=2))


def test_the_last_steps_can_be_the_target_s_alone() -> None:
    point = Point()
    trained(point, turns_of(point, "random", alone_from=10))
    assert point.passes == SCHEDULE.steps + 10
