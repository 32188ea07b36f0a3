"""Evaluating from files to files: scores, summary and picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.data.job import EvaluateJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.evaluate import write_plot
from FewShotSegLib.jobs.run import run
from Testing.conftest import write_discs
from Testing.Library.evaluation.cases import some_rows
from Testing.Library.jobs.conftest import files_in


def test_the_plot_is_a_png(tmp_path):
    write_plot(some_rows(), tmp_path / "metrics.png")
    assert (tmp_path / "metrics.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(InputError, match="no scores"):
        write_plot([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_evaluating_a_reference_against_itself_gives_one(tmp_path: Path) -> None:
    write_discs(tmp_path / "ref", "a", 1)
    (tmp_path / "ref" / "a.nrrd").unlink()
    record = run(EvaluateJob(str(tmp_path / "ref"), str(tmp_path / "ref"), str(tmp_path / "scores" / "m.csv")))
    assert files_in(tmp_path / "scores") == {"m.csv", "m.json", "m.png", "m.result.json"}
    assert [row["dsc"] for row in record["metrics"]["rows"]] == [1.0] * 4


def test_two_files_are_compared_as_one_case(tmp_path: Path) -> None:
    _, one = write_discs(tmp_path, "a", 1)
    _, other = write_discs(tmp_path, "b", 2)
    record = run(EvaluateJob(str(one), str(other), str(tmp_path / "m.csv")))
    assert 0 < record["metrics"]["rows"][0]["dsc"] < 1


def test_a_folder_against_a_file_is_refused(tmp_path: Path) -> None:
    _, one = write_discs(tmp_path, "a", 1)
    with pytest.raises(InputError, match="both be folders"):
        run(EvaluateJob(str(tmp_path), str(one), str(tmp_path / "m.csv")))
