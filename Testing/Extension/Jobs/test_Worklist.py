"""What is left to be looked at after a batch, and what was said of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Jobs.Worklist import TABLE, Finding, findings, review


def writeResult(folder: Path, name: str, *flags: str, confidence: float | None = 0.9, **record: Any) -> Path:
    """The record of an image as a batch leaves it, and a file that stands for its segmentation."""
    structures = {"liver": {"flags": list(flags), "confidence": confidence}}
    whole = {"image": f"/data/{name}.nrrd", "axis": "j", "least_sure_slice": 7, "metrics": {"structures": structures}}
    (folder / f"{name}.result.json").write_text(json.dumps(whole | record), encoding="utf-8")
    file = folder / f"{name}.seg.nrrd"
    file.write_bytes(name.encode())
    return file


def names(folder: Path) -> list[str]:
    return [one.name for one in findings(folder)]


def test_those_with_flags_and_doubt_come_first_and_those_looked_at_last(tmp_path: Path) -> None:
    writeResult(tmp_path, "sure")
    writeResult(tmp_path, "unsure", confidence=0.6)
    writeResult(tmp_path, "flagged", "is empty", "touches the border of the image")
    writeResult(tmp_path, "failed", error={"kind": "input", "message": "3 voxels are no numbers."})
    (tmp_path / "other.result.json").write_text('{"job": {"kind": "table"}}', encoding="utf-8")
    assert names(tmp_path) == ["failed", "flagged", "unsure", "sure"]
    failed, flagged, unsure, _sure = findings(tmp_path)
    assert (failed.error, failed.where) == ("3 voxels are no numbers.", None)
    assert flagged.flags == ("liver is empty", "liver touches the border of the image")
    assert unsure.where == (1, 7)
    assert unsure.doubt == pytest.approx(0.4)
    review(flagged, "accepted")
    assert names(tmp_path) == ["failed", "unsure", "sure", "flagged"]


def test_what_was_said_is_kept_in_a_table_and_the_last_word_counts(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writeResult(tmp_path, name)
    first, second = findings(tmp_path)
    assert review(first, "skipped").verdict == "skipped"
    review(second, "accepted")
    review(first, "corrected")
    with (tmp_path / TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image"]: row["verdict"] for row in rows} == {"/data/a.nrrd": "corrected", "/data/b.nrrd": "accepted"}
    assert {one.name: one.verdict for one in findings(tmp_path)} == {"a": "corrected", "b": "accepted"}


def test_a_result_that_is_made_anew_is_to_be_looked_at_again(tmp_path: Path) -> None:
    file = writeResult(tmp_path, "a")
    review(findings(tmp_path)[0], "accepted")
    file.write_bytes(b"another adapter")
    assert [one.verdict for one in findings(tmp_path)] == [""]


def test_without_confidences_nothing_is_doubtful_and_no_slice_is_known(tmp_path: Path) -> None:
    writeResult(tmp_path, "a", confidence=None, least_sure_slice=None)
    (one,) = findings(tmp_path)
    assert (one.doubt, one.where) == (0.0, None)
    assert findings(tmp_path / "not there") == []


def test_another_verdict_and_another_table_are_refused(tmp_path: Path) -> None:
    writeResult(tmp_path, "a")
    (one,) = findings(tmp_path)
    assert isinstance(one, Finding)
    with pytest.raises(InputError, match="accepted, corrected, skipped, got 'fine'"):
        review(one, "fine")
    (tmp_path / TABLE).write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read, perhaps because it was saved with other separators"):
        findings(tmp_path)
