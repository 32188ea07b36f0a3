"""Folders of processes, dead and alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from FewShotSegLib.worker import scratch

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "from FewShotSegLib.worker import scratch; print(scratch.new_folder(), flush=True); input()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_own", None)
    return tmp_path


@pytest.fixture
def process(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with a folder, whose path is the first line it prints."""
    environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        yield started
        started.kill()


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip()).parent


def test_the_folder_of_a_living_process_is_left_alone(process: subprocess.Popen[str], temporary: Path) -> None:
    theirs, mine = folder_of(process), scratch.new_folder()
    assert scratch.is_in_use(theirs)
    assert scratch.is_in_use(mine.parent)
    assert scratch.remove_abandoned() == []
    assert (theirs.is_dir(), mine.is_dir()) == (True, True)


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(
    process: subprocess.Popen[str], temporary: Path
) -> None:
    theirs = folder_of(process)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    assert theirs.is_dir()
    assert not scratch.is_in_use(theirs)
    assert scratch.remove_abandoned() == [theirs]
    assert not theirs.exists()


def test_a_process_that_ends_well_takes_its_folder_with_it(process: subprocess.Popen[str], temporary: Path) -> None:
    theirs = folder_of(process)
    process.communicate("\n")
    assert not theirs.exists()
    assert not scratch.is_in_use(theirs)


def test_folders_of_other_programs_and_unfinished_ones_are_left_alone(temporary: Path) -> None:
    (temporary / "fewshotseg-new").mkdir()
    (temporary / "other").mkdir()
    (temporary / "other" / "in use").touch()
    assert scratch.remove_abandoned() == []
    assert len(list(temporary.iterdir())) == 2


def test_a_folder_that_somebody_tidied_away_is_made_again(temporary: Path) -> None:
    first = scratch.process_folder()
    (first / "in use").unlink()
    first.rmdir()
    assert scratch.new_folder().is_dir()
