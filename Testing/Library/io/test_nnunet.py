"""Data sets for nnU-Net: its layout, its numbers, and nothing moved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.datasets import data_sets_in
from FewShotSegLib.io.nnunet import export_nnunet
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.progress import Progress

AFFINE = np.array([[0, -2.0, 0, 5], [-0.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Two patients whose labels are numbered differently, and a third that nobody has corrected."""
    for number, names in enumerate(({1: "liver", 2: "spleen"}, {1: "spleen", 5: "aorta"}, {})):
        array = np.random.default_rng(number).integers(-100, 200, (4, 5, 6)).astype(np.int16)
        save_volume(Volume(array, AFFINE), tmp_path / "images" / f"p {number}.nrrd")
        labels = np.zeros((4, 5, 6), np.uint8)
        for value in names:
            labels[value % 4] = value
        if names:
            save_labelmap(Labelmap(Volume(labels, AFFINE), names), tmp_path / "labels" / f"p {number}.seg.nrrd")
    return tmp_path


def test_the_data_set_has_nnunets_layout_and_one_number_per_name(cases: Path) -> None:
    heard: list[Progress] = []
    made = export_nnunet(
        cases / "images", cases / "labels", cases / "raw", number=7, name="Abdomen", channel="CT", report=heard.append
    )
    assert made.folder == cases / "raw" / "Dataset007_Abdomen"
    assert (made.cases, made.structures) == (2, {1: "aorta", 2: "liver", 3: "spleen"})
    names = sorted(path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*.*"))
    assert names == [
        "dataset.json",
        "imagesTr/p_0_0000.nii.gz",
        "imagesTr/p_1_0000.nii.gz",
        "labelsTr/p_0.nii.gz",
        "labelsTr/p_1.nii.gz",
    ]
    card = json.loads((made.folder / "dataset.json").read_text(encoding="utf-8"))
    assert card == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "aorta": 1, "liver": 2, "spleen": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    image, label = (sitk.ReadImage(str(made.folder / n)) for n in ("imagesTr/p_1_0000.nii.gz", "labelsTr/p_1.nii.gz"))
    assert image.GetSize() == label.GetSize()
    assert np.allclose(image.GetOrigin(), label.GetOrigin())
    assert np.allclose(image.GetDirection(), label.GetDirection())
    labels = sitk.GetArrayFromImage(label)
    assert [np.unique(plane).tolist() for plane in labels] == [[0], [1], [0], [0]]  # value 1, then 5 over it: aorta
    assert [progress.step for progress in heard] == [1, 2]


def test_the_library_reads_what_it_exported(cases: Path) -> None:
    made = export_nnunet(cases / "images", cases / "labels", cases / "raw", number=7, name="Abdomen", channel="CT")
    found = data_sets_in(made.folder)[0]
    assert len(found.cases) == 2
    assert set(found.structures or ()) == {"aorta", "liver", "spleen"}


def test_what_is_there_is_not_written_over_and_nothing_half_is_left(cases: Path) -> None:
    options = {"number": 7, "name": "Abdomen", "channel": "CT"}
    export_nnunet(cases / "images", cases / "labels", cases / "raw", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exists already"):
        export_nnunet(cases / "images", cases / "labels", cases / "raw", **options)  # type: ignore[arg-type]
    (cases / "images" / "p 1.nrrd").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"p 1\.nrrd"):
        export_nnunet(cases / "images", cases / "labels", cases / "other", **options)  # type: ignore[arg-type]
    assert list((cases / "other").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"number": 0}, "between 1 and 999"),
        ({"name": "a b"}, "letters, digits"),
        ({"channel": " "}, "named after the modality"),
        ({"labels": "nowhere"}, "does not exist"),
        ({"labels": "images"}, "hold no structure"),
    ],
)
def test_mistakes_are_said(cases: Path, change: dict[str, object], sentence: str) -> None:
    for path in (cases / "images").iterdir():
        save_volume(Volume(np.zeros((4, 5, 6), np.uint8), AFFINE), path)
    options = {"number": 7, "name": "Abdomen", "channel": "CT", "labels": "labels"} | change
    labels = cases / str(options.pop("labels"))
    with pytest.raises(InputError, match=sentence):
        export_nnunet(cases / "images", labels, cases / "raw", **options)  # type: ignore[arg-type]


def test_segmentations_must_belong_to_one_image_on_its_grid(cases: Path) -> None:
    options = {"number": 7, "name": "Abdomen", "channel": "CT"}
    lonely = cases / "labels" / "p 9.seg.nrrd"
    (cases / "labels" / "p 1.seg.nrrd").rename(lonely)
    with pytest.raises(InputError, match="no image of the same name"):
        export_nnunet(cases / "images", cases / "labels", cases / "raw", **options)  # type: ignore[arg-type]
    moved = AFFINE.copy()
    moved[0, 3] += 1
    save_labelmap(Labelmap(Volume(np.ones((4, 5, 6), np.uint8), moved), {1: "liver"}), lonely)
    lonely.rename(cases / "labels" / "p 1.seg.nrrd")
    with pytest.raises(InputError, match="does not cover the voxels"):
        export_nnunet(cases / "images", cases / "labels", cases / "raw", **options)  # type: ignore[arg-type]
