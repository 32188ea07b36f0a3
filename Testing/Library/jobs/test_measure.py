"""An estimate from the first steps, against the work it is about."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.jobs import measure as module
from FewShotSegLib.jobs.measure import measure, used_bytes
from FewShotSegLib.jobs.run import run
from FewShotSegLib.progress import Progress
from Testing.conftest import QUICK, Listener, write_discs


@pytest.fixture
def a_job(a_tiny_base: str, tmp_path: Path) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    recipe = {**QUICK, "steps": 60, "estimate_folds": 2}
    return AdaptJob(str(tmp_path / "out" / "a.safetensors"), exemplars=(files,), base=a_tiny_base, recipe=recipe)


def test_a_few_steps_are_trained_and_nothing_is_kept(a_job: AdaptJob, a_listener: Listener) -> None:
    found = measure(replace(a_job, device="cpu"), a_listener)
    assert not Path(a_job.out).parent.exists()
    assert sum("loss" in progress.metrics for progress in a_listener.heard) == 4
    assert (found["device"], found["preset"]) == ("cpu", "cpu")
    assert found["seconds_per_step"] > 0
    assert found["memory_bytes"] > 50e6


def test_the_estimate_is_for_all_steps_of_all_stages(a_job: AdaptJob) -> None:
    found = measure(a_job)
    steps = 2 * 20 + 60  # two folds of a third, and the adapter itself
    expected = found["seconds_per_step"] * (steps - 4)
    assert found["seconds"] > expected  # what was measured, and the rest
    assert found["seconds"] < expected + 60


def test_the_estimate_is_of_the_order_of_the_truth(a_job: AdaptJob) -> None:
    job = replace(a_job, recipe={**QUICK, "steps": 12})
    estimated = measure(job)["seconds"]
    started = time.perf_counter()
    run(job)
    assert estimated == pytest.approx(time.perf_counter() - started, rel=2.0, abs=2.0)


def test_a_time_limit_limits_the_estimate(a_job: AdaptJob) -> None:
    recipe = {**a_job.recipe, "steps": 100_000}
    assert measure(replace(a_job, recipe=recipe, max_seconds=5.0))["seconds"] < 60


def test_a_job_shorter_than_the_measurement_is_measured_whole(a_job: AdaptJob) -> None:
    short = replace(a_job, recipe={**QUICK, "steps": 1})
    found = measure(short)
    assert found["seconds"] > 0
    assert not Path(a_job.out).exists()


def test_bad_input_and_cancelling_are_told_as_in_the_job_itself(a_job: AdaptJob) -> None:
    with pytest.raises(InputError, match="At least one exemplar"):
        measure(replace(a_job, exemplars=()))
    with pytest.raises(Cancelled):
        measure(a_job, Listener(1, Cancelled()))


def watched(monkeypatch: pytest.MonkeyPatch, shares: dict[float, float], steps: int = 3) -> module._Stopwatch:
    """A stopwatch that heard of these shares of the work at these seconds."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    watch = module._Stopwatch(lambda progress: None, steps)
    for second, share in shares.items():
        clock[0] = second
        watch(Progress(1, 2, "adapting", {"loss": 0.5, "done": share}))
    return watch


def test_all_steps_take_as_long_as_the_ones_that_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(monkeypatch, {5.0: 0.01, 6.0: 0.02, 7.0: 0.03})
    assert (watch.start_s, watch.seconds_per_step()) == (5.0, 1.0)
    assert watch.seconds_of_all() == pytest.approx(5 + 99)  # 5 s to the end of the first step, then 99 more
    assert not watch.has_seen_enough


def test_work_that_is_done_after_one_step_takes_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(monkeypatch, {5.0: 1.0})
    assert (watch.seconds_of_all(), watch.seconds_per_step()) == (5.0, 0.0)


def test_after_enough_steps_the_work_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Cancelled, match="Measured"):
        watched(monkeypatch, {1.0: 0.1, 2.0: 0.2, 3.0: 0.3}, steps=2)


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_the_memory_of_this_process_is_told_in_bytes() -> None:
    before = used_bytes(torch.device("cpu"))
    assert before is not None
    assert 50 * 2**20 < before < 2**40
    assert (used_bytes(torch.device("cpu")) or 0) >= before  # a peak never falls
