"""Scores from Python: the same numbers as the command line's, for folders, files and arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.api.scores import evaluate
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import evaluate_folder
from FewShotSegLib.io.volumes import save_labelmap
from Testing.conftest import Listener


def a_pair() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((3, 10, 10), np.uint8)
    truth[:2, 2:6, 2:6] = 1
    return np.roll(truth, 1, axis=1), truth


def test_arrays_are_scored_with_their_voxel_size(tmp_path: Path) -> None:
    scores = evaluate(*a_pair(), {1: "liver"}, spacing_mm=(0.5, 2.0, 5.0))
    everywhere = next(row for row in scores.rows if row.scope == "all_slices")
    assert everywhere.dsc == 0.75
    assert everywhere.hd95_mm == 2.0
    assert everywhere.volume_ref_ml == pytest.approx(32 * 5.0 / 1000)
    summary = scores.summary()
    assert [entry["dsc"]["mean"] for entry in summary] == [0.75, 0.75]
    assert "liver" in repr(scores)
    assert "0.750" in repr(scores)
    scores.to_csv(tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8").startswith("case,structure,scope,dsc")


def test_folders_are_paired_by_name(tmp_path: Path, a_listener: Listener) -> None:
    for folder, labels in zip(("pred", "ref"), a_pair(), strict=True):
        (tmp_path / folder).mkdir()
        save_labelmap(Labelmap(Volume(labels, np.eye(4)), {1: "liver"}), tmp_path / folder / "p1.seg.nrrd")
    scores = evaluate(tmp_path / "pred", tmp_path / "ref", progress=a_listener)
    assert list(scores.rows) == evaluate_folder(tmp_path / "pred", tmp_path / "ref")
    assert [progress.message for progress in a_listener.heard] == ["p1"]
    one = evaluate(tmp_path / "pred" / "p1.seg.nrrd", tmp_path / "ref" / "p1.seg.nrrd")
    assert [row.dsc for row in one.rows] == [row.dsc for row in scores.rows]
    with pytest.raises(InputError, match="both be folders"):
        evaluate(tmp_path / "pred", tmp_path / "ref" / "p1.seg.nrrd")
