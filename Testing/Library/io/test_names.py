"""What names of files say, the same rules for data sets, evaluation and batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.io.names import FileName, belonging, parsed, stem, without_channel


@pytest.mark.parametrize(
    ("name", "case", "role"),
    [
        ("patient.nii.gz", "patient", "unknown"),
        ("patient_img.nii.gz", "patient", "image"),
        ("Patient-IMAGE.nrrd", "Patient", "image"),
        ("patient_lab.nii.gz", "patient", "labelmap"),
        ("p1_labelmap.nrrd", "p1", "labelmap"),
        ("p1.seg.nrrd", "p1", "labelmap"),
        ("p1_img.seg.nrrd", "p1", "labelmap"),
        ("p1_seg_pred.nii", "p1", "labelmap"),
        ("p1 liver.probability.nrrd", "p1 liver", "probability"),
        ("img0001.nii.gz", "0001", "image"),
        ("label_0001.nii.gz", "0001", "labelmap"),
        ("labels.nrrd", "", "labelmap"),
        ("image.nrrd", "", "image"),
        ("mesegmask2.nrrd", "mesegmask2", "unknown"),
        ("segment.nrrd", "segment", "unknown"),
        ("la_003_0000.nii.gz", "la_003_0000", "unknown"),
    ],
)
def test_a_name_says_case_and_role(name: str, case: str, role: str) -> None:
    assert parsed(Path(name)) == FileName(case, role)  # type: ignore[arg-type]


def test_a_folder_has_no_format(tmp_path: Path) -> None:
    (tmp_path / "series.7").mkdir()
    assert stem(tmp_path / "series.7") == "series.7"
    assert stem(tmp_path / "series.7.nii.gz") == "series.7"


@pytest.mark.parametrize(
    ("case", "others", "expected"),
    [
        ("p07", ["p07", "p07_FLAIR"], ["p07"]),
        ("p07", ["p07_FLAIR", "p08_FLAIR"], ["p07_FLAIR"]),
        ("p07", ["p07_FLAIR", "p07_T1"], ["p07_FLAIR", "p07_T1"]),
        ("case_1", ["case_10", "case_11"], []),
        ("la_003", ["la_003_0000", "la_004_0000"], ["la_003_0000"]),
        ("la_003_0000", ["la_003", "la_004"], ["la_003"]),
        ("BRATS_0001", ["BRATS_0001", "BRATS_0002"], ["BRATS_0001"]),
        ("", ["scan"], []),
    ],
)
def test_cases_belong_together_by_name(case: str, others: list[str], expected: list[str]) -> None:
    assert belonging(case, others) == expected


def test_only_four_digits_are_a_channel() -> None:
    names = ("a_0000", "a_000", "a_00001", "a0000")
    assert [without_channel(name) for name in names] == ["a", "a_000", "a_00001", "a0000"]
