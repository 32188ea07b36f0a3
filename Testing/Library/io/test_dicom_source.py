"""The series that DICOM objects refer to: found, in the order of the labels, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.dicom_source import check_source, checked_name, images_of, sop_class_of
from FewShotSegLib.io.volumes import load_volume
from Testing.Library.io.dicom_series import SHAPE


def test_only_dicom_series_are_sources(a_series: Path, tmp_path: Path) -> None:
    assert len(check_source(a_series, "a set")) == SHAPE[0]
    one = next(a_series.iterdir())
    assert check_source(one, "a set") == (one,)
    with pytest.raises(InputError, match="is no DICOM series, and a set refers to one"):
        check_source(tmp_path / "ct.nrrd", "a set")
    header = pydicom.dcmread(one)
    header.NumberOfFrames = 3
    header.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(InputError, match="all slices in one file, for which a set cannot be written"):
        check_source(tmp_path / "enhanced.dcm", "a set")


def test_images_come_in_the_order_of_the_labels_or_are_refused(a_series: Path, tmp_path: Path) -> None:
    files, out = check_source(a_series, "a set"), tmp_path / "out.dcm"
    volume = load_volume(a_series)
    assert [int(image.InstanceNumber) for image in images_of(volume, files[::-1], out)] == [1, 2, 3, 4, 5, 6]
    turned = volume.affine.copy()
    turned[:3, 3] += 5 * turned[:3, 2]
    turned[:3, 2] *= -1
    backwards = Volume(volume.array, turned)
    assert [int(image.InstanceNumber) for image in images_of(backwards, files, out)] == [6, 5, 4, 3, 2, 1]
    moved = volume.affine.copy()
    moved[:3, 3] += 0.01
    with pytest.raises(InputError, match="slice k=0 of the labelmap is not where"):
        images_of(Volume(volume.array, moved), files, out)
    with pytest.raises(InputError, match=r"\(5, 9, 11\) voxels .*the DICOM series \(6, 9, 11\)"):
        images_of(Volume(volume.array[1:], volume.affine), files, out)


@pytest.mark.parametrize("name", ["l" * 65, "left\\kidney"])
def test_names_that_dicom_has_no_room_for_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="up to 64 characters and no backslash"):
        checked_name(name)


def test_the_kind_of_a_file_is_read_from_its_start(a_series: Path, tmp_path: Path) -> None:
    one = next(a_series.iterdir())
    assert sop_class_of(one) == "1.2.840.10008.5.1.4.1.1.2"
    (tmp_path / "cut.dcm").write_bytes(one.read_bytes()[:700])
    assert sop_class_of(tmp_path / "cut.dcm") == "1.2.840.10008.5.1.4.1.1.2"
    (tmp_path / "text.dcm").write_text("hello", encoding="utf-8")
    assert [sop_class_of(path) for path in (tmp_path / "text.dcm", tmp_path / "none.dcm", a_series)] == ["", "", ""]
