"""RT structure sets: nothing moves on the way to a planning system and back, and what fits no image is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.dicom import series_files
from FewShotSegLib.io.dicom_rtstruct import is_rtstruct, load_rtstruct, rtstruct_names, save_rtstruct
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.volumes import load_labelmap, load_pair, load_structures, load_volume, save_labelmap, save_volume
from Testing.Library.io.dicom_series import SHAPE, write_series

NAMES = {2: "liver", 7: "left kidney", 300: "Läsion"}


@pytest.fixture
def a_labelmap(a_series: Path) -> Labelmap:
    """Holes, an island in a hole, several parts on a slice, single voxels, voxels at the border."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:4, 1:8, 2:10] = 2
    labels[2, 2:7, 3:9] = 0
    labels[2, 4, 5] = 2
    labels[1, 2:4, 3:5] = labels[1, 5:7, 6:9] = 7
    labels[2:5, 8, 0:2] = 7
    labels[3, 0, 0] = labels[3, 8, 10] = labels[3, 0, 2] = 300
    return Labelmap(load_volume(a_series).like(labels), NAMES)


@pytest.fixture
def a_set(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> Path:
    save_rtstruct(a_labelmap, tmp_path / "p.rtstruct.dcm", series_files(a_series, "series"))
    return tmp_path / "p.rtstruct.dcm"


def changed(path: Path, change: str) -> Path:
    """The set after a line of Python on its header `s`, its contours being `every`."""
    s = pydicom.dcmread(path)
    every = [contour for item in s.ROIContourSequence for contour in item.ContourSequence]
    exec(change, {"s": s, "every": every, "np": np})
    out = path.with_name("changed.dcm")
    s.save_as(out)
    return out


def test_a_round_trip_moves_no_voxel(a_series: Path, a_labelmap: Labelmap, a_set: Path) -> None:
    back = load_labelmap(a_set, image=a_series)
    assert back.structures == {1: "liver", 2: "left kidney", 3: "Läsion"} == rtstruct_names(a_set)
    assert back.volume.same_geometry(a_labelmap.volume, 0.0)
    assert not back.hidden
    for value, number in zip(NAMES, back.structures, strict=True):
        assert np.array_equal(back.volume.array == number, a_labelmap.volume.array == value)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 2)))
def test_any_labels_come_back_to_the_voxel(a_series: Path, labels: np.ndarray) -> None:
    volume = load_volume(a_series)
    path = a_series.parent / "any.rtstruct.dcm"
    save_rtstruct(Labelmap(volume.like(labels), {1: "a", 2: "b"}), path, series_files(a_series, "series"))
    assert np.array_equal(load_rtstruct(path, volume).volume.array, labels)


def test_the_set_belongs_to_patient_study_and_slices(a_series: Path, a_labelmap: Labelmap, a_set: Path) -> None:
    found = pydicom.dcmread(a_set)
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, series_files(a_series, "series"))}
    one = next(iter(images.values()))
    assert (found.PatientName, found.StudyInstanceUID) == ("Doe^Jane", one.StudyInstanceUID)
    assert found.SeriesInstanceUID != one.SeriesInstanceUID
    roi, observation = found.StructureSetROISequence[1], found.RTROIObservationsSequence[1]
    assert (roi.ROIName, roi.ReferencedFrameOfReferenceUID) == ("left kidney", one.FrameOfReferenceUID)
    code = observation.RTROIIdentificationCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Left")
    for contour in (c for item in found.ROIContourSequence for c in item.ContourSequence):
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        beside = (points - np.array(image.ImagePositionPatient, float)) @ np.cross(row, column)
        assert np.abs(beside).max() < 1e-3


def test_the_same_labels_get_the_same_identifiers(a_series: Path, a_labelmap: Labelmap, a_set: Path) -> None:
    def uid_of(labelmap: Labelmap) -> str:
        save_rtstruct(labelmap, a_set, series_files(a_series, "series"))
        return pydicom.dcmread(a_set).SOPInstanceUID

    moved = Labelmap(a_labelmap.volume.like(np.roll(a_labelmap.volume.array, 1)), NAMES)
    first = pydicom.dcmread(a_set).SOPInstanceUID
    assert first == uid_of(a_labelmap) != uid_of(moved)


def test_structures_may_overlap_and_be_empty(a_series: Path, tmp_path: Path) -> None:
    labels, body = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool)
    labels[2, 2:5, 2:5] = 1
    body[2, 1:8, 1:8] = True
    labels[body & (labels == 0)] = 2
    drawn = Labelmap(load_volume(a_series).like(labels), {1: "liver", 2: "body", 3: "none"}, {2: body & (labels == 1)})
    save_rtstruct(drawn, tmp_path / "p.dcm", series_files(a_series, "series"))
    back = load_labelmap(tmp_path / "p.dcm", image=a_series)
    assert back.structures == drawn.structures
    assert np.array_equal(back.volume.array, labels)
    assert np.array_equal(back.mask(2), body)


def test_an_exemplar_takes_its_labels_from_a_set_beside_its_images(a_series: Path, a_set: Path) -> None:
    inside = a_set.rename(a_series / "RS.dcm")
    exemplar = load_exemplar(a_series, inside, structures={5: "left kidney"}, slices=(1, 3))
    assert exemplar.annotated_slices == (1, 3)
    assert np.count_nonzero(exemplar.labelmap) == 12
    assert load_volume(a_series).shape == SHAPE


def test_an_image_that_was_converted_and_turned_gets_the_same_voxels(
    a_series: Path, a_labelmap: Labelmap, a_set: Path
) -> None:
    volume = load_volume(a_series)
    swap = np.eye(4)[[1, 2, 0, 3]]  # i, j, k of the new array are k, i, j of the old one
    turned = Volume(volume.array.transpose(1, 2, 0)[::-1].copy(), volume.affine @ swap)
    flip = np.eye(4)
    flip[2, 2], flip[2, 3] = -1, turned.shape[0] - 1
    turned = Volume(turned.array, turned.affine @ flip)
    save_volume(turned, a_series.parent / "turned.nrrd")
    back = load_labelmap(a_set, image=a_series.parent / "turned.nrrd")
    expected = a_labelmap.volume.array.transpose(1, 2, 0)[::-1]
    assert np.array_equal(back.volume.array == 1, expected == 2)


def test_one_of_two_that_are_compared_may_be_a_set(a_labelmap: Labelmap, a_set: Path, tmp_path: Path) -> None:
    volume = a_labelmap.volume
    affine = volume.affine.copy()
    affine[:3, 3] += 2 * affine[:3, 2] + 3 * affine[:3, 1]
    part = Labelmap(Volume(volume.array[2:, 3:], affine), NAMES)
    save_labelmap(part, tmp_path / "part.seg.nrrd")
    pred, ref = load_pair(tmp_path / "part.seg.nrrd", a_set)
    assert pred.volume.shape == (4, 6, 11)
    assert np.count_nonzero(ref.mask(1)) == np.count_nonzero(volume.array == 2)
    assert [one.volume.shape for one in load_pair(a_set, tmp_path / "part.seg.nrrd")] == [
        ref.volume.shape,
        pred.volume.shape,
    ]
    assert load_structures(a_set) == rtstruct_names(a_set)
    with pytest.raises(InputError, match="both RT structure sets"):
        load_pair(a_set, a_set)


def test_a_set_without_an_image_asks_for_one(a_set: Path) -> None:
    assert is_rtstruct(a_set)
    with pytest.raises(InputError, match="has outlines and no voxels; give the image"):
        load_labelmap(a_set)
    with pytest.raises(InputError, match="holds outlines and no image"):
        load_volume(a_set)


def test_a_set_of_another_series_is_refused_unless_only_its_identifiers_differ(
    a_series: Path, a_set: Path, tmp_path: Path
) -> None:
    other = write_series(tmp_path / "other", load_volume(a_series))
    with pytest.raises(InputError, match="drawn on another series") as refused:
        load_exemplar(other, a_set)
    assert "other" in str(refused.value)
    assert np.count_nonzero(load_exemplar(other, a_set, same_voxels=True).labelmap)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("every[0].ContourData[2::3] = [float(z) + 1 for z in every[0].ContourData[2::3]]", "does not lie on a slice"),
        ("for c in every: c.ContourGeometricType = 'OPEN_PLANAR'", "no structure with a closed outline"),
        ("for c in every: c.ContourGeometricType = 'POINT'", "no structure with a closed outline"),
        ("for c in every: c.ContourData = [float(x) + 900 for x in c.ContourData]", "outline"),
        ("every[0].ContourData = every[0].ContourData[:4]", "cannot be read as an RT structure set"),
        ("s.ROIContourSequence[0].ReferencedROINumber = None", "cannot be read as an RT structure set"),
    ],
)
def test_what_is_no_outline_on_a_slice_is_refused(a_series: Path, a_set: Path, change: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_labelmap(changed(a_set, change), image=a_series)


def test_outlines_beyond_the_image_are_counted(a_series: Path, a_set: Path) -> None:
    volume = load_volume(a_series)
    with pytest.raises(InputError, match=r"\d+ of \d+ outlines lie beyond the image"):
        load_rtstruct(a_set, Volume(volume.array[:2], volume.affine))


def test_points_are_left_out_and_said(a_series: Path, a_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = changed(a_set, "s.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = 'POINT'")
    with caplog.at_level(logging.WARNING):
        assert load_labelmap(path, image=a_series).structures == {1: "liver", 3: "Läsion"}
    assert "left kidney left out, of points or open lines" in caplog.text


def test_what_cannot_be_written_is_refused(a_series: Path, a_labelmap: Labelmap, tmp_path: Path) -> None:
    files, out = series_files(a_series, "series"), tmp_path / "out.dcm"
    with pytest.raises(InputError, match="at least one structure"):
        save_rtstruct(Labelmap(a_labelmap.volume, {}), out, files)
    with pytest.raises(InputError, match="up to 64 characters"):
        save_rtstruct(Labelmap(a_labelmap.volume, {2: "l" * 65}), out, files)
    for file in files:
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(file)
    with pytest.raises(InputError, match="no frame of reference"):
        save_rtstruct(a_labelmap, out, files)
    assert not out.exists()
