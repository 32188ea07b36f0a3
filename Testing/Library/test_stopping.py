"""Stopping and cancelling, for every method: what a user presses ends the work at once, and means what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods import METHODS
from FewShotSegLib.progress import Control, Progress
from Testing.conftest import DISC, QUICK, SQUARE, discs, write_discs

CLICKS = {"image_size": 64, "batch_size": 1, "steps": 12, "validate_every": 0, "click_prompts": 1}
NETWORK: dict[str, Any] = {
    "network": "unet",
    "steps": 12,
    "patch": [4, 32, 32],
    "estimate_folds": 0,
    "pretraining_steps": 1,
    "validate_every": 0,
}
UDA: dict[str, Any] = {"steps": 12, "translation_steps": 1, "patch": [4, 32, 32], "rounds": 2, "drift_limit": -1.0}
# Method and network -> options of a short run.
RUNS = {
    "lora": {**QUICK, "steps": 12},
    "asap": {**QUICK, "steps": 12},
    "asap unet": NETWORK,
    "gmiseg": CLICKS,
    "uda": UDA,
}
EVERY_RUN = pytest.mark.parametrize("name", RUNS)


class Presser:
    """Somebody who presses a button as soon as it is there, or at the `at`-th step of training from then on."""

    def __init__(self, button: str, at: int = 1) -> None:
        self.control = Control(self._hear)
        self.button, self.at = button, at
        self.steps: list[str] = []  # stages of the steps at which the run could be stopped
        self.after = 0

    def _hear(self, progress: Progress) -> None:
        pressed = self.control.stopped or self.control.cancelled
        if pressed and "loss" in progress.metrics:
            self.after += 1
        if progress.can_stop:
            self.steps.append(progress.message)
            if len(self.steps) == self.at:
                getattr(self.control, self.button)()


@pytest.fixture(autouse=True)
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def a_job(tmp_path: Path, a_tiny_base: str, name: str) -> AdaptJob:
    """A job of the method in a folder of its own; the inputs lie elsewhere."""
    method, recipe = name.split()[0], RUNS[name]
    (tmp_path / "out").mkdir()
    job = AdaptJob(
        str(tmp_path / "out" / "discs.safetensors"), method=method, base=a_tiny_base, recipe=recipe, device="cpu"
    )
    if method == "uda":
        for case in range(2):
            write_discs(tmp_path / "ct", f"case {case}", case)
        (tmp_path / "mr").mkdir()
        for case in range(2):
            volume, _ = discs(np.random.default_rng(20 + case))
            image = 400 - volume.array.clip(-300, 300).astype(np.float32)
            save_volume(Volume(image, volume.affine), tmp_path / "mr" / f"patient {case}.nrrd")
        return replace(job, source_folder=str(tmp_path / "ct"), target_folder=str(tmp_path / "mr"))
    image, labelmap = write_discs(tmp_path, "case", 0)
    structures = {DISC: "disc", SQUARE: "square"}
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3), structures=structures)
    return replace(job, exemplars=(exemplar,))


def test_every_method_is_here() -> None:
    assert {name.split()[0] for name in RUNS} == set(METHODS)


@EVERY_RUN
@pytest.mark.parametrize("at", [1, 4])
def test_stop_and_keep_best_ends_the_run_within_a_step_and_gives_an_adapter(
    name: str, at: int, a_job: AdaptJob
) -> None:
    presser = Presser("stop_and_keep_best", at)
    record = run(a_job, presser.control)
    assert len(presser.steps) == at
    assert presser.after == 0
    assert load_adapter(a_job.out).tensors
    assert "user" in str(record["metrics"])


@EVERY_RUN
def test_cancelling_leaves_no_file(name: str, a_job: AdaptJob) -> None:
    presser = Presser("cancel", 4)
    with pytest.raises(Cancelled):
        run(a_job, presser.control)
    assert presser.after == 0
    assert list(Path(a_job.out).parent.iterdir()) == []


@pytest.mark.parametrize("name", ["asap unet"])
def test_structures_without_a_network_are_named_when_the_run_is_stopped(a_job: AdaptJob) -> None:
    record = run(a_job, Presser("stop_and_keep_best", 4).control)
    assert dict(load_adapter(a_job.out).structures) == {DISC: "disc"}
    assert any("square" in warning for warning in record["warnings"])


@pytest.mark.parametrize("name", ["asap unet"])
def test_while_the_next_network_is_prepared_the_first_can_be_kept(a_job: AdaptJob) -> None:
    job = replace(a_job, recipe={**NETWORK, "estimate_folds": 2})
    presser = Presser("stop_and_keep_best", NETWORK["steps"] + 2)
    run(job, presser.control)
    assert presser.steps[-1].startswith("estimating 1/2: square")
    assert dict(load_adapter(a_job.out).structures) == {DISC: "disc"}


@pytest.mark.parametrize("name", ["uda"])
def test_a_stopped_stage_is_not_kept_for_the_next_run(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job, Presser("stop_and_keep_best", 2).control)
    presser = Presser("stop_and_keep_best", 10_000)
    run(replace(a_job, out=str(tmp_path / "out" / "again.safetensors")), presser.control)
    assert presser.steps.count("teacher 1") == UDA["steps"]


@pytest.mark.parametrize("name", ["uda"])
@pytest.mark.parametrize(("step_of_second", "keeps_first"), [(2, True), (4, False)])  # of 5, two fifths of 12
def test_a_network_that_has_hardly_begun_gives_way_to_the_one_before(
    a_job: AdaptJob, a_cache: Path, step_of_second: int, keeps_first: bool
) -> None:
    run(a_job, Presser("stop_and_keep_best", UDA["steps"] + step_of_second).control)
    (finished,) = a_cache.rglob("network-*.npz")
    with np.load(finished) as first:
        kept = load_adapter(a_job.out).tensors
        assert all(np.array_equal(kept[tensor], first[tensor]) for tensor in first.files) == keeps_first
