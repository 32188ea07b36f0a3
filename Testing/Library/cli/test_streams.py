"""Nobody has to read what the command line says for it to do its work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from FewShotSegLib.cli.streams import Steady, steady_streams

ROOT = Path(__file__).parents[3]


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        raise OSError


def test_what_is_read_arrives_and_a_reader_who_goes_away_is_not_missed() -> None:
    there = io.StringIO()
    Steady(there).write("hello")
    assert there.getvalue() == "hello"
    for stream in (Gone(), None):
        steady = Steady(stream)
        assert steady.write("hello") == 5
        assert steady.write("again") == 5
        steady.flush()
        assert not steady.isatty()


def test_a_letter_that_a_stream_cannot_show_is_escaped() -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Steady(narrow).write("Läsion\n")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"L\\xe4sion\n"


def test_the_streams_come_back_after_the_block() -> None:
    before = sys.stdout, sys.stderr
    with steady_streams():
        assert isinstance(sys.stdout, Steady)
    assert (sys.stdout, sys.stderr) == before


WORK = """
import sys
from FewShotSegLib.cli.streams import steady_streams
with steady_streams():
    for number in range(3000):
        print("line", number)
        sys.stderr.write("progress\\n")
    with open(sys.argv[1], "w") as file:
        file.write("done")
        print("not into the file", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells")
@pytest.mark.parametrize("streams", ["2>&1 | head -1 >/dev/null", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full >/dev/full"])
def test_work_is_done_whatever_becomes_of_the_streams(streams: str, tmp_path: Path) -> None:
    out = tmp_path / "done.txt"
    script = f'"{sys.executable}" -c "$WORK" "{out}" {streams}'
    environment = {**os.environ, "WORK": WORK, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", script], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert out.read_text() == "done"
