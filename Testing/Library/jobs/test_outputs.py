"""Outputs of a job: together or not at all, and never over what somebody else has made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.outputs import Outputs, unused
from FewShotSegLib.jobs.record import read_record, result_path

RECORD = {"job": {"kind": "segment"}, "versions": {}}
ROOT = Path(__file__).parents[3]


def made(folder: Path, content: str, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    with Outputs(result_path(folder, "a"), overwrite=overwrite, inputs=inputs) as outputs:
        outputs.check("a.txt")
        outputs.place("a.txt").write_text(content)
        assert not (folder / "a.txt").exists() or (folder / "a.txt").read_text() != content
        outputs.finish(RECORD)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_outputs_appear_with_their_record_and_nothing_else_stays(tmp_path: Path) -> None:
    made(tmp_path, "one")
    made(tmp_path, "two")  # ours, unchanged: replaced
    assert (tmp_path / "a.txt").read_text() == "two"
    assert names_in(tmp_path) == {"a.txt", "a.result.json"}


@pytest.mark.parametrize("what", ["never ours", "changed", "link"])
def test_what_somebody_else_has_made_or_changed_stays_unless_overwriting_is_asked_for(
    what: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if what == "changed":
        made(out, "ours")
    if what == "link":
        (tmp_path / "theirs.txt").write_text("theirs")
        (out / "a.txt").symlink_to(tmp_path / "theirs.txt")
    else:
        (out / "a.txt").write_text("theirs")
    with pytest.raises(InputError, match=r"a\.txt is there already.*--overwrite"):
        made(out, "new")
    assert (out / "a.txt").read_text() == "theirs"
    made(out, "new", overwrite=True)
    assert (out / "a.txt").read_text() == "new"
    if what == "link":
        assert (tmp_path / "theirs.txt").read_text() == "theirs"


def test_a_record_that_is_none_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "a.result.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"a\.result\.json is there already"):
        made(tmp_path, "new")
    assert (tmp_path / "a.result.json").read_text() == '{"mine": 1}'
    assert names_in(tmp_path) == {"a.result.json"}


def test_what_the_job_reads_is_not_overwritten_even_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("input")
    with pytest.raises(InputError, match="is what this job reads"):
        made(tmp_path, "new", overwrite=True, inputs=(tmp_path / "a.txt",))
    assert (tmp_path / "a.txt").read_text() == "input"


def test_what_appears_while_the_work_goes_on_stays_too(tmp_path: Path) -> None:
    with Outputs(result_path(tmp_path, "a")) as outputs:
        outputs.place("a.txt").write_text("ours")
        (tmp_path / "a.txt").write_text("theirs")
        with pytest.raises(InputError, match="is there already"):
            outputs.finish(RECORD)
    assert (tmp_path / "a.txt").read_text() == "theirs"


def test_a_second_run_that_would_write_the_same_is_refused(tmp_path: Path) -> None:
    with Outputs(result_path(tmp_path, "a")):
        with pytest.raises(InputError, match="Another run is writing"):
            made(tmp_path, "second")
        with Outputs(result_path(tmp_path, "b")):
            pass
    made(tmp_path, "third")


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
@pytest.mark.parametrize("moment", ["before the record", "between record and files"])
def test_a_run_that_was_killed_is_followed_by_one_that_knows_its_files(moment: str, tmp_path: Path) -> None:
    made(tmp_path, "old")
    killer = "outputs.record_path" if moment == "before the record" else "outputs.folder"
    code = (
        "import os, sys; from pathlib import Path; from FewShotSegLib.jobs import outputs as module\n"
        "def die(*a): os.kill(os.getpid(), 9)\n"
        f"{'module.write_record = die' if 'record_path' in killer else 'os_replace = module.os.replace'}\n"
        "with module.Outputs(Path(sys.argv[1]) / 'a.result.json') as outputs:\n"
        "    outputs.place('a.txt').write_text('killed')\n"
        f"    {'' if 'record_path' in killer else 'write = module.write_record; '}"
        f"{'pass' if 'record_path' in killer else 'module.write_record = lambda *a: (write(*a), die())'}\n"
        "    outputs.finish({'job': {}, 'versions': {}})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    assert (tmp_path / "a.txt").read_text() == "old"
    made(tmp_path, "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names_in(tmp_path) == {"a.txt", "a.result.json"}


def test_a_run_that_fails_keeps_what_earlier_runs_have_made_known(tmp_path: Path) -> None:
    made(tmp_path, "ours")
    with Outputs(result_path(tmp_path, "a")) as outputs:
        outputs.fail({**RECORD, "error": {"message": "no"}})
    assert "outputs" not in (read_record(tmp_path / "a.result.json") or {"outputs": 1})
    made(tmp_path, "new")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_what_is_not_finished_can_be_read_by_this_user_only(tmp_path: Path) -> None:
    with Outputs(result_path(tmp_path, "a")) as outputs:
        assert outputs.place("a.txt").parent.stat().st_mode & 0o777 == 0o700


def test_a_file_beside_gets_the_next_number(tmp_path: Path) -> None:
    for name in ("volumes.csv", "volumes (2).csv"):
        (tmp_path / name).touch()
    assert unused(tmp_path / "volumes.csv").name == "volumes (3).csv"
