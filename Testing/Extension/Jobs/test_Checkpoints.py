"""Which interrupted adaptations there are; no process is started."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.worker import scratch
from FewShotSegSlicer.Jobs import Checkpoints as module
from FewShotSegSlicer.Jobs.Checkpoints import Checkpoints
from Testing.conftest import write_discs

MONTH_S = 31 * 24 * 3600


@pytest.fixture(autouse=True)
def _nothing_runs() -> Iterator[None]:
    yield
    module._running.clear()


def aJob(folder: Path, name: str = "liver", files: str = "files", **settings: int) -> AdaptJob:
    image, labelmap = write_discs(folder / files, "p1", 1)
    exemplar = ExemplarFiles(str(image), str(labelmap), "k", (1, 3), {1: "disc", 2: "square"})
    (folder / "Adapters").mkdir(exist_ok=True)
    return AdaptJob(str(folder / "Adapters" / f"{name}.safetensors"), exemplars=(exemplar,), **settings)


def begun(folder: Path, name: str = "liver", owner: Path | None = None, hasCheckpoint: bool = True) -> AdaptJob:
    """A job that was begun by the process of another folder, which is gone unless given."""
    job = aJob(folder, name)
    Checkpoints().begin(job)
    module._running.clear()
    note = noteOf(job)
    values = json.loads(note.read_text(encoding="utf-8")) | {"process_folder": str(owner or folder / "gone")}
    note.write_text(json.dumps(values), encoding="utf-8")
    if hasCheckpoint:
        Path(job.out).with_name(f"{name}.checkpoint.pt").touch()
    return job


def noteOf(job: AdaptJob) -> Path:
    return Path(job.out).with_name(f"{Path(job.out).stem}.checkpoint.json")


def filesIn(folder: Path) -> set[str]:
    return {path.name for path in (folder / "Adapters").iterdir()}


def test_what_a_killed_program_was_adapting_is_found_and_gone_on_with(tmp_path: Path) -> None:
    job = begun(tmp_path)
    (found,) = Checkpoints().interrupted(tmp_path / "Adapters")
    assert (found.out, found.structures) == (Path(job.out), ("disc", "square"))
    again = aJob(tmp_path, "another name", files="another folder")
    assert Checkpoints().outOf(again, tmp_path / "Adapters") == Path(job.out)
    assert Checkpoints().outOf(aJob(tmp_path, seed=1), tmp_path / "Adapters") is None


def test_what_runs_here_or_elsewhere_is_left_alone(tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    owner.mkdir()
    begun(tmp_path, "theirs", owner, hasCheckpoint=False)
    Checkpoints().begin(aJob(tmp_path, "ours"))
    before = filesIn(tmp_path)
    assert Checkpoints().interrupted(tmp_path / "Adapters") == []
    assert filesIn(tmp_path) == before


def test_what_nobody_can_go_on_with_is_removed(tmp_path: Path) -> None:
    begun(tmp_path, "without checkpoint", hasCheckpoint=False)
    old = begun(tmp_path, "old")
    os.utime(noteOf(old), (time.time() - MONTH_S,) * 2)
    (tmp_path / "Adapters" / "odd.checkpoint.json").write_text("[]", encoding="utf-8")
    assert Checkpoints().interrupted(tmp_path / "Adapters") == []
    assert filesIn(tmp_path) == set()


def test_an_ended_adaptation_leaves_nothing_and_a_failed_one_its_checkpoint(tmp_path: Path) -> None:
    checkpoints, job = Checkpoints(), aJob(tmp_path)
    checkpoints.begin(job)
    assert checkpoints.fail(job, "dead", "It ended.") == "It ended."
    assert filesIn(tmp_path) == set()
    checkpoints.begin(job)
    Path(job.out).with_name("liver.checkpoint.pt").touch()
    told = checkpoints.fail(job, "defect", "ValueError: no\n\nTraceback of it")
    goOn = "Training progress is kept: adapt again with the same settings to resume."
    assert told == f"ValueError: no {goOn}\n\nTraceback of it"
    assert [one.out for one in checkpoints.interrupted(tmp_path / "Adapters")] == [Path(job.out)]
    checkpoints.begin(job)
    checkpoints.end(job)
    assert filesIn(tmp_path) == set()
    checkpoints.begin(job)
    Path(job.out).with_name("liver.checkpoint.pt").touch()
    assert checkpoints.fail(job, "cancelled", "Cancelled.") == "Cancelled."
    assert filesIn(tmp_path) == set()
    assert scratch.process_folder().is_dir()


def test_the_checkpoint_of_another_adapter_of_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    broken, job = begun(tmp_path, "liver.v2"), aJob(tmp_path, "liver")
    part = Path(job.out).with_name("liver.checkpoint.1.part.pt")
    part.touch()
    Checkpoints().begin(job)
    Checkpoints().end(job)
    assert [one.out for one in Checkpoints().interrupted(tmp_path / "Adapters")] == [Path(broken.out)]
    assert not part.exists()
