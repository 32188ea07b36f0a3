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
from FewShotSegLib.methods.asap.bandit import READINGS
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

    def auxiliary(self, arms: Sequence[int], rng: np.random.Generator) -> Tensor:
        for arm in arms:
            if arm in self.broken:
                raise UnusableArm(arm, "its file is damaged")
        return torch.stack([self._pull(list(AIMS.values())[arm], rng) for arm in arms]).mean()

    def _pull(self, aim: float, rng: np.random.Generator) -> Tensor:
        self.passes += 1
        return (self.x - aim - 0.05 * torch.from_numpy(rng.standard_normal(4)).float()).square().sum()


def turns_of(point: Point, scheduler: str = "asap", arms: Sequence[str] = tuple(AIMS), **recipe: Any) -> Turns:
    options = READINGS["log"] if recipe.pop("all_arms", False) else None
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
    losses = (point.target(0), point.auxiliary((arm,), step_rng(5, 0)))
    a, b = (torch.autograd.grad(loss, point.x)[0].double() for loss in losses)
    return float(a @ b / (a.norm() * b.norm()))


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


@pytest.mark.parametrize("wrong", [{"steps_per_turn": 0}, {"measured_steps": 3}, {"probe_batches": 0}])
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
