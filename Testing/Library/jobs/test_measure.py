"""An estimate from the first steps, against the work it is about."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.jobs.measure import measure
from FewShotSegLib.jobs.run import run
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
