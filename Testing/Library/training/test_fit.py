"""The optimization loop: schedule, resuming to the byte, stopping, keeping the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.progress import Progress, silent
from FewShotSegLib.training import fit as training
from FewShotSegLib.training.fit import Schedule, fit, step_rng

CALM = Schedule(60, learning_rate=0.2, weight_decay=0.0, warmup_steps=5, clip_norm=0.0)


def some_parameters() -> dict[str, Tensor]:
    start = np.random.default_rng(0)
    return {
        "matrix": torch.tensor(start.normal(size=(3, 2)), dtype=torch.float32, requires_grad=True),
        "bias": torch.tensor(start.normal(size=2), dtype=torch.float32, requires_grad=True),
    }


def quadratic(parameters: dict[str, Tensor], noise: float = 0.0) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """Squared distance to (2, -1), blurred by noise that belongs to the step."""

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        shift = noise * float(step_rng(5, step).normal())
        loss = ((parameters["matrix"] - 2 - shift) ** 2).sum() + ((parameters["bias"] + 1 + shift) ** 2).sum()
        return loss, {"shift": shift}

    return loss_at


def stop_after(step: int, error: type[Exception]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise error

    return report


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the schedule ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_climbs_to_its_peak_and_falls_to_nothing() -> None:
    schedule = Schedule(steps=10_000, learning_rate=5e-3, warmup_steps=250)
    assert schedule.learning_rate_at(0) == pytest.approx(5e-3 / 250)
    assert schedule.learning_rate_at(249) == pytest.approx(5e-3)
    assert schedule.learning_rate_at(250) == pytest.approx(5e-3)
    assert schedule.learning_rate_at(9_999) < 5e-3 * 3e-4
    assert schedule.learning_rate_at(20_000) == 0.0


def test_between_peak_and_end_the_rate_follows_the_power_law() -> None:
    schedule = Schedule(steps=1050, learning_rate=1.0, warmup_steps=50, power=0.9)
    assert schedule.learning_rate_at(50 + 500) == pytest.approx(0.5**0.9)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert Schedule(steps=10, learning_rate=0.3, warmup_steps=0).learning_rate_at(0) == pytest.approx(0.3)


def test_the_rate_follows_the_clock_where_time_runs_out_before_the_steps_do() -> None:
    schedule = Schedule(steps=1000, learning_rate=1.0, warmup_steps=0, power=1.0, max_seconds=10.0)
    assert schedule.learning_rate_at(100, elapsed_seconds=8.0) == pytest.approx(0.2)
    assert schedule.learning_rate_at(900, elapsed_seconds=1.0) == pytest.approx(0.1)
    assert schedule.learning_rate_at(100, elapsed_seconds=11.0) == 0.0


# --- minimizing -----------------------------------------------------------------------------------------------------


def test_a_quadratic_is_minimized() -> None:
    parameters = some_parameters()
    result = fit(parameters, quadratic(parameters), replace(CALM, steps=200), report=silent)
    torch.testing.assert_close(parameters["matrix"].detach(), torch.full((3, 2), 2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(parameters["bias"].detach(), torch.full((2,), -1.0), atol=0.02, rtol=0)
    assert same(result.best, {name: p.detach() for name, p in parameters.items()})
    assert (result.steps, result.stopped_by, result.best_score) == (200, "steps", None)


def test_the_steps_are_those_of_adamw_with_decay_on_matrices_only() -> None:
    ours, theirs = some_parameters(), some_parameters()
    schedule = Schedule(6, learning_rate=0.05, weight_decay=0.3, warmup_steps=2, clip_norm=0.5)
    fit(ours, quadratic(ours), schedule, report=silent)
    groups = [{"params": [theirs["matrix"]], "weight_decay": 0.3}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    optimizer, loss_at = torch.optim.AdamW(groups), quadratic(theirs)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        optimizer.zero_grad()
        loss_at(step)[0].backward()
        torch.nn.utils.clip_grad_norm_([theirs["matrix"], theirs["bias"]], 0.5)
        optimizer.step()
    torch.testing.assert_close(ours["matrix"], theirs["matrix"])
    torch.testing.assert_close(ours["bias"], theirs["bias"])


def test_micro_batches_add_up_to_the_large_batch_for_a_mean_loss() -> None:
    data = torch.tensor(np.random.default_rng(3).normal(size=(40, 3)), dtype=torch.float64)

    def mean_loss(parameters: dict[str, Tensor], size: int) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
        rows = lambda step: data[step * size : (step + 1) * size]  # noqa: E731
        return lambda step: (((rows(step) @ parameters["w"] - 1) ** 2).mean(), {})

    results = []
    for size, accumulate in ((2, 4), (8, 1)):
        parameters = {"w": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
        schedule = Schedule(5, learning_rate=0.1, warmup_steps=0, accumulate=accumulate)
        fit(parameters, mean_loss(parameters, size), schedule, report=silent)
        results.append(parameters["w"].detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_every_step_is_reported_with_its_loss_and_rate() -> None:
    parameters, heard = some_parameters(), []
    result = fit(parameters, quadratic(parameters, 0.1), replace(CALM, steps=3), report=heard.append, message="here")
    assert [(p.step, p.total, p.message) for p in heard] == [(1, 3, "here"), (2, 3, "here"), (3, 3, "here")]
    assert heard[1].metrics["learning_rate"] == pytest.approx(0.2 * 2 / 5)
    assert set(heard[0].metrics) == {"loss", "learning_rate", "shift"}
    assert [entry["step"] for entry in result.history] == [1, 2, 3]
    assert result.history[0]["loss"] == heard[0].metrics["loss"]


def test_no_steps_at_all_are_refused() -> None:
    parameters = some_parameters()
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        fit(parameters, quadratic(parameters), replace(CALM, steps=0), report=silent)


# --- the average of the parameters ----------------------------------------------------------------------------------


def test_the_kept_average_follows_its_closed_form() -> None:
    parameters, seen = some_parameters(), [some_parameters()["bias"].detach().clone()]
    schedule = replace(CALM, steps=30, ema_decay=0.6)
    result = fit(
        parameters,
        quadratic(parameters, 1.0),
        schedule,
        report=lambda _: seen.append(parameters["bias"].detach().clone()),
    )
    decays = [min(0.6, (1 + step) / (10 + step)) for step in range(1, 31)]
    weights = [np.prod(decays)] + [(1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * value.double() for weight, value in zip(weights, seen, strict=True))
    torch.testing.assert_close(result.best["bias"].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameters["bias"].detach(), seen[-1])  # the average was swapped out again


def test_the_average_is_what_is_validated_and_kept() -> None:
    parameters, validated = some_parameters(), []

    def validate() -> float:
        validated.append(parameters["bias"].detach().clone())
        return float(len(validated))

    schedule = replace(CALM, steps=20, ema_decay=0.9, validate_every=20)
    result = fit(parameters, quadratic(parameters, 1.0), schedule, report=silent, validate=validate)
    assert len(validated) == 1
    assert torch.equal(result.best["bias"], validated[0])
    assert not torch.equal(result.best["bias"], parameters["bias"].detach())


# --- keeping the best -----------------------------------------------------------------------------------------------


def test_the_state_of_the_best_validation_is_kept() -> None:
    parameters, scores, states = some_parameters(), iter([0.3, 0.8, 0.5, 0.8]), []

    def validate() -> float:
        states.append({name: p.detach().clone() for name, p in parameters.items()})
        return next(scores)

    result = fit(
        parameters, quadratic(parameters), replace(CALM, steps=20, validate_every=5), report=silent, validate=validate
    )
    assert (result.best_score, result.best_step) == (0.8, 10)
    assert same(result.best, states[1])
    assert [entry["score"] for entry in result.history if "score" in entry] == [0.3, 0.8, 0.5, 0.8]


def test_the_last_steps_are_validated_too() -> None:
    parameters, count = some_parameters(), iter(range(1, 10))
    result = fit(
        parameters,
        quadratic(parameters),
        replace(CALM, steps=7, validate_every=5),
        report=silent,
        validate=lambda: float(next(count)),
    )
    assert (result.best_score, result.best_step) == (2.0, 7)


def test_training_stops_after_as_many_looks_without_gain_as_allowed() -> None:
    parameters, scores = some_parameters(), iter([0.5, 0.4, 0.6, 0.6, 0.1, 0.9])
    schedule = replace(CALM, steps=100, validate_every=3, patience=2)
    result = fit(parameters, quadratic(parameters), schedule, report=silent, validate=lambda: next(scores))
    assert (result.stopped_by, result.steps, result.best_step, result.best_score) == ("plateau", 15, 9, 0.6)
    assert [entry["step"] for entry in result.history] == list(range(1, 16))


def test_stop_and_keep_best_ends_well_with_the_best_state() -> None:
    parameters, scores, states = some_parameters(), iter([0.9, 0.2, 0.1]), []

    def validate() -> float:
        states.append(parameters["bias"].detach().clone())
        return next(scores)

    schedule = replace(CALM, validate_every=4)
    report = stop_after(10, StopAndKeepBest)
    result = fit(parameters, quadratic(parameters), schedule, report=report, validate=validate)
    assert (result.stopped_by, result.steps, result.best_step) == ("user", 10, 4)
    assert torch.equal(result.best["bias"], states[0])


def test_cancelling_propagates() -> None:
    parameters, steps = some_parameters(), []

    def report(progress: Progress) -> None:
        steps.append(progress.step)
        stop_after(2, Cancelled)(progress)

    with pytest.raises(Cancelled):
        fit(parameters, quadratic(parameters), CALM, report=report)
    assert steps == [1, 2]


def test_time_ends_training_before_the_steps_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    parameters = some_parameters()

    def tick(_: Progress) -> None:
        now[0] += 1.0

    result = fit(parameters, quadratic(parameters), replace(CALM, max_seconds=3.5), report=tick, validate=lambda: 0.5)
    assert (result.stopped_by, result.steps, result.seconds) == ("time", 4, 4.0)
    assert (result.best_score, result.best_step) == (0.5, 4)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_after", [1, 7, 16])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_byte(tmp_path: Path, killed_after: int) -> None:
    schedule = replace(
        CALM, steps=23, ema_decay=0.8, validate_every=5, accumulate=2, checkpoint_seconds=0.0, clip_norm=1
    )

    def run(checkpoint: Path | None, report: Callable[[Progress], None] = silent):  # type: ignore[no-untyped-def]
        parameters = some_parameters()
        validate = lambda: -float((parameters["bias"].detach() ** 2).sum())  # noqa: E731
        loss_at = quadratic(parameters, 0.5)
        result = fit(
            parameters, loss_at, schedule, report=report, validate=validate, checkpoint=checkpoint, identity="run 1"
        )
        return result, {name: p.detach() for name, p in parameters.items()}

    whole, last = run(None)
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Cancelled):
        run(checkpoint, stop_after(killed_after, Cancelled))
    steps: list[int] = []
    resumed, last_resumed = run(checkpoint, lambda progress: steps.append(progress.step))
    assert steps == list(range(killed_after + 1, 24))
    assert same(last, last_resumed)
    assert same(whole.best, resumed.best)
    assert (whole.best_score, whole.best_step, whole.history) == (
        resumed.best_score,
        resumed.best_step,
        resumed.history,
    )


def test_time_used_before_the_interruption_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    checkpoint = tmp_path / "run.ckpt"
    schedule = replace(CALM, max_seconds=10.0, checkpoint_seconds=0.0)

    def tick(progress: Progress) -> None:
        now[0] += 1.0
        stop_after(5, Cancelled)(progress)

    parameters = some_parameters()
    with pytest.raises(Cancelled):
        fit(parameters, quadratic(parameters), schedule, report=tick, checkpoint=checkpoint)
    now[0] = 1000.0  # much later
    parameters = some_parameters()
    result = fit(
        parameters, quadratic(parameters), schedule, report=lambda p: tick(replace(p, step=0)), checkpoint=checkpoint
    )
    assert (result.stopped_by, result.steps) == ("time", 11)  # the fifth second was not yet in the checkpoint


def test_checkpoints_are_written_only_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training._TrainingState, "save", lambda run, path: written.append(run.step))
    parameters = some_parameters()

    def tick(_: Progress) -> None:
        now[0] += 1.0

    schedule = replace(CALM, steps=10, checkpoint_seconds=3.0)
    fit(parameters, quadratic(parameters), schedule, report=tick, checkpoint=tmp_path / "run.ckpt")
    assert written == [4, 7, 10]


def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    checkpoint, parameters = tmp_path / "run.ckpt", some_parameters()
    fit(parameters, quadratic(parameters), replace(CALM, checkpoint_seconds=0), report=silent, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"run\.ckpt cannot be continued: it is damaged.*delete it"):
        fit(parameters, quadratic(parameters), CALM, report=silent, checkpoint=checkpoint)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint, parameters = tmp_path / "run.ckpt", some_parameters()
    schedule = replace(CALM, steps=2, checkpoint_seconds=0)
    fit(parameters, quadratic(parameters), schedule, report=silent, checkpoint=checkpoint, identity="a")
    with pytest.raises(InputError, match="interrupted training of this name with other"):
        fit(parameters, quadratic(parameters), schedule, report=silent, checkpoint=checkpoint, identity="b")
    torch.save([1, 2, 3], checkpoint)
    with pytest.raises(InputError, match="of another version"):
        fit(parameters, quadratic(parameters), schedule, report=silent, checkpoint=checkpoint, identity="a")


def test_the_generator_of_a_step_depends_on_seed_and_step_alone() -> None:
    draw = lambda seed, step: step_rng(seed, step).integers(2**62)  # noqa: E731
    assert draw(1, 7) == draw(1, 7)
    assert len({int(draw(seed, step)) for seed in range(4) for step in range(4)}) == 16


# --- gradients that are not finite ----------------------------------------------------------------------------------


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    x = torch.zeros(2, requires_grad=True)
    seen: list[list[float]] = []

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(x.tolist())
        return (x - 1).square().sum() * (float("nan") if step in (1, 2) else 1.0), {}

    fit({"x": x}, loss_at, Schedule(5, warmup_steps=0, weight_decay=0.0), report=silent)
    assert seen[1] == seen[2] == seen[3] != seen[4]
    assert seen[0] != seen[1]


def test_training_that_is_lost_ends_with_a_sentence() -> None:
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(InputError, match="lower learning_rate"):
        fit({"x": x}, lambda step: ((x * float("inf")).sum(), {}), Schedule(100), report=silent)


def test_metrics_that_are_tensors_are_read_as_numbers_and_those_of_the_last_micro_batch_count() -> None:
    weight = torch.nn.Parameter(torch.ones(1))

    def loss_at(number: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        return (weight * number).sum(), {"seen": torch.tensor(float(number)), "told": 10.0 * number}

    result = fit({"w": weight}, loss_at, Schedule(2, 1e-6, accumulate=2), report=silent)
    assert [(entry["seen"], entry["told"]) for entry in result.history] == [(1.0, 10.0), (3.0, 30.0)]
    assert result.history[1]["loss"] == pytest.approx(3.0, rel=1e-3)
