"""Locks: one process after the other, and none for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.locks import locked, take

ROOT = Path(__file__).parents[3]
COUNT = """
import sys
from pathlib import Path
from FewShotSegLib.io.locks import locked
counter = Path(sys.argv[1])
for _ in range(40):
    with locked(counter.with_name("lock"), patience_s=60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_lock_is_taken_once_and_free_when_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open("rb+") as first, path.open("rb+") as second:
        assert take(first) == "taken"
        assert take(second) == "held"
    with path.open("rb+") as third:
        assert take(third) == "taken"


def test_processes_that_add_to_one_file_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "counter")]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=100) for process in running] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "120"


def test_a_lock_that_is_held_for_too_long_is_named(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(InputError, match="Another process holds"),
        locked(tmp_path / "lock", patience_s=0.0),
    ):
        pass
