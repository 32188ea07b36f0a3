"""DICOM segmentations: nothing moves and nothing is lost on the way to a PACS and back."""

from __future__ import annotations

import logging
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from FewShotSegLib.data.volume import Labelmap
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed
from FewShotSegLib.io import dicom_seg
from FewShotSegLib.io.dicom import series_files
from FewShotSegLib.io.dicom_seg import is_dicom_seg, load_dicom_seg, save_dicom_seg, terminology_of
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from Testing.Library.io.dicom_series import SHAPE

NAMES = {2: "liver", 7: "left kidney", 300: "something new"}


@pytest.fixture
def a_labelmap(a_series: Path) -> Labelmap:
    volume = load_volume(a_series)
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:4, 2:6, 3:8] = 2
    labels[2:5, 6:8, 1:3] = 7
    labels[3, 0, 0] = 300
    return Labelmap(volume.like(labels), NAMES)


def test_a_round_trip_moves_no_voxel_and_no_millimetre(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> None:
    path = tmp_path / "p.seg.dcm"
    save_dicom_seg(a_labelmap, path, series_files(a_series, "series"))
    back = load_labelmap(path)
    assert back.structures == {1: "liver", 2: "left kidney", 3: "something new"}
    on_image = reindexed(back.volume, a_labelmap.volume, crop=True)
    assert on_image is not None
    assert np.abs(on_image.affine - a_labelmap.volume.affine).max() <= 1e-6
    for (value, _), number in zip(NAMES.items(), back.structures, strict=True):
        assert np.array_equal(on_image.array == number, a_labelmap.volume.array == value)


def test_the_standards_own_reader_finds_codes_and_the_slices_that_were_segmented(
    a_series: Path, a_labelmap: Labelmap, tmp_path: Path
) -> None:
    save_dicom_seg(a_labelmap, tmp_path / "p.seg.dcm", series_files(a_series, "series"))
    found = highdicom.seg.segread(tmp_path / "p.seg.dcm")
    source = [pydicom.dcmread(file) for file in series_files(a_series, "series")]
    assert found.PatientName == "Doe^Jane"
    assert found.StudyInstanceUID == source[0].StudyInstanceUID
    assert found.SeriesInstanceUID != source[0].SeriesInstanceUID
    kidney = found.get_segment_description(2)
    assert kidney.segmented_property_type == codes.SCT.Kidney
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeValue == "7771000"
    referenced = {uids[2] for uids in found.get_source_image_uids()}
    assert {image.SOPInstanceUID for image in source[1:5]} <= referenced
    frames = found.get_pixels_by_source_instance([str(source[2].SOPInstanceUID)], segment_numbers=[1])
    assert np.array_equal(frames[0, ..., 0] > 0, a_labelmap.volume.array[2] == 2)


def test_the_same_labels_get_the_same_identifiers(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> None:
    uids = []
    for name in ("a", "b"):
        save_dicom_seg(a_labelmap, tmp_path / f"{name}.seg.dcm", series_files(a_series, "series"))
        uids.append(pydicom.dcmread(tmp_path / f"{name}.seg.dcm").SOPInstanceUID)
    other = Labelmap(a_labelmap.volume.like(np.roll(a_labelmap.volume.array, 1)), NAMES)
    save_dicom_seg(other, tmp_path / "c.seg.dcm", series_files(a_series, "series"))
    assert uids[0] == uids[1] != pydicom.dcmread(tmp_path / "c.seg.dcm").SOPInstanceUID


@pytest.mark.parametrize(
    ("name", "category", "kind", "side"),
    [
        ("Liver", "Anatomical Structure", "10200004", None),
        ("left_kidney", "Anatomical Structure", "64033007", "Left"),
        ("right ventricle", "Anatomical Structure", "53085002", None),
        ("kidneys", "Anatomical Structure", "64033007", None),
        ("inferior vena cava", "Anatomical Structure", "64131007", None),
        ("gall bladder", "Anatomical Structure", "28231008", None),
        ("adrenal gland, left", "Anatomical Structure", "23451007", "Left"),
        ("Fat", "Tissue", "55603005", None),
        ("Tumour", "Morphologically Abnormal Structure", "108369006", None),
        ("edema", "Morphologically Abnormal Structure", "79654002", None),
        ("disc 3", "Tissue", "85756007", None),
        ("left", "Tissue", "85756007", None),
        ("肝臓", "Tissue", "85756007", None),
    ],
)
def test_names_have_the_codes_of_snomed(name: str, category: str, kind: str, side: str | None) -> None:
    found = terminology_of(name)
    assert (found[0].meaning, found[1].value, found[2] and found[2].meaning) == (category, kind, side)


def test_overlapping_segments_are_said_and_the_higher_one_is_kept(
    a_series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [pydicom.dcmread(file) for file in series_files(a_series, "series")]
    stack = np.zeros((*SHAPE, 2), np.uint8)
    stack[2, 2:6, 2:6, 0] = 1
    stack[2, 4:8, 4:8, 1] = 1
    descriptions = dicom_seg._descriptions({1: "liver", 2: "liver"})
    uid = "1.2.826.0.1.3680043.8.498.1"
    found = highdicom.seg.Segmentation(
        images, stack, "BINARY", descriptions, uid, 5, f"{uid}.1", 1, "x", "x", "1", "1", omit_empty_frames=False
    )
    found.save_as(tmp_path / "over.dcm")
    with caplog.at_level(logging.WARNING):
        back = load_dicom_seg(tmp_path / "over.dcm")
    assert "segments overlap" in caplog.text
    assert back.structures == {1: "liver", 2: "liver (2)"}
    assert np.count_nonzero(back.volume.array == 2) == 16
    assert np.count_nonzero(back.volume.array == 1) == 12


def test_what_is_no_segmentation_is_told_apart(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> None:
    path = tmp_path / "p.seg.dcm"
    save_dicom_seg(a_labelmap, path, series_files(a_series, "series"))
    assert is_dicom_seg(path)
    assert not is_dicom_seg(next(a_series.iterdir()))
    assert not is_dicom_seg(tmp_path / "nothing.dcm")
    (tmp_path / "text.dcm").write_text("hello", encoding="utf-8")
    assert not is_dicom_seg(tmp_path / "text.dcm")
    damaged = tmp_path / "cut.seg.dcm"
    damaged.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read as a DICOM segmentation"):
        load_dicom_seg(damaged)


def test_what_dicom_has_no_room_for_is_refused(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> None:
    files, out = series_files(a_series, "series"), tmp_path / "p.seg.dcm"
    with pytest.raises(InputError, match="at least one structure"):
        save_dicom_seg(Labelmap(a_labelmap.volume, {}), out, files)
    with pytest.raises(InputError, match="up to 64 characters"):
        save_dicom_seg(Labelmap(a_labelmap.volume, {2: "l" * 65}), out, files)
    assert not out.exists()


def test_without_the_extra_the_user_is_told_how_to_get_it(
    a_series: Path, a_labelmap: Labelmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .FewShotSegLib\[dicom-seg\]."):
        save_dicom_seg(a_labelmap, tmp_path / "p.seg.dcm", series_files(a_series, "series"))
