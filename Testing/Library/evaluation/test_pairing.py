"""Predictions and references find each other by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.pairing import case_name, paired_files


def folders(tmp_path: Path, predictions: Sequence[str], references: Sequence[str]) -> tuple[Path, Path]:
    for folder, names in (("pred", predictions), ("ref", references)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    return tmp_path / "pred", tmp_path / "ref"


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        (["a.seg.nrrd"], ["a_lab.nii.gz", "a_img.nii.gz", "b_lab.nii.gz"], [("a.seg.nrrd", "a_lab.nii.gz")]),
        (["a_0000.seg.nrrd"], ["a.nii.gz"], [("a_0000.seg.nrrd", "a.nii.gz")]),
        (["img0001.seg.nrrd"], ["label0001.nii.gz"], [("img0001.seg.nrrd", "label0001.nii.gz")]),
        (
            ["a_0001.nrrd", "a_0002.nrrd"],
            ["a_0001.nii", "a_0002.nii"],
            [("a_0001.nrrd", "a_0001.nii"), ("a_0002.nrrd", "a_0002.nii")],
        ),
        (["a.seg.nrrd", "a.liver.probability.nrrd"], ["a.nii"], [("a.seg.nrrd", "a.nii")]),
    ],
)
def test_files_of_the_same_case_are_compared(
    tmp_path: Path, predictions: list[str], references: list[str], expected: list[tuple[str, str]]
) -> None:
    pairs, _ = paired_files(*folders(tmp_path, predictions, references))
    assert [(one.name, other.name) for one, other in pairs.values()] == expected


def test_cases_without_a_prediction_are_named(tmp_path: Path) -> None:
    assert paired_files(*folders(tmp_path, ["a.nrrd"], ["a.nrrd", "b.nrrd"]))[1] == ["b"]


def test_two_channels_of_one_image_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No reference .* a_0000\.nrrd, a_0001\.nrrd.* channels of one case"):
        paired_files(*folders(tmp_path, ["a_0000.nrrd", "a_0001.nrrd"], ["a.nrrd"]))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("case_00_img.nii.gz", "case_00"),
        ("case_00_img_seg.nrrd", "case_00"),
        ("liver v1.2.seg.nrrd", "liver v1.2"),
        ("Label.nrrd", "Label"),
        ("a_gt.MHA", "a"),
        ("segmental.nii", "segmental"),
    ],
)
def test_known_endings_are_not_part_of_a_case_name(tmp_path, name, case):
    assert case_name(tmp_path / name) == case
