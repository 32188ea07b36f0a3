"""DICOM folders and files: every voxel where the headers say, or refused."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from FewShotSegLib.data.volume import ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.dicom import SEGMENTATION, read_file
from FewShotSegLib.io.volumes import load_volume
from Testing.Library.grids import GEOMETRIES


def write_dicom(folder, array, affine, series="1.2.3", slices=None, shift_lps=(0, 0, 0)):
    """Write one file per slice, in an order of names that is not the order of positions."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(len(array)) if slices is None else slices:
        image = sitk.GetImageFromArray(array[k])
        image.SetSpacing(spacing[:2].tolist())
        position = lps[:3, 3] + lps[:3, 2] * k + np.array(shift_lps) * k
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": "1.2.9",
            "0020|000e": series,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in position),
            "0020|0037": "\\".join(f"{x:.8f}" for x in direction[:, :2].T.ravel()),
            "0018|0050": f"{spacing[2]:.6f}",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer.SetFileName(str(folder / f"{series}_{(k * 7) % 10}.dcm"))
        writer.Execute(image)


@pytest.fixture
def ct():
    return np.random.default_rng(1).integers(-1000, 1000, (6, 4, 5)).astype(np.int16)


@pytest.mark.parametrize("name", ["identity", "anisotropic", "oblique"])
def test_a_dicom_folder_is_read_in_the_order_of_positions(tmp_path, ct, name):
    # Row, column and slice direction of DICOM are right-handed in LPS, and a half turn about z keeps that.
    affine = np.diag([-1, -1, 1, 1]) @ GEOMETRIES[name]
    write_dicom(tmp_path / "Series é 1", ct, affine)
    volume = load_volume(tmp_path / "Series é 1")
    assert np.array_equal(volume.array, ct)
    assert volume.affine == pytest.approx(affine, abs=1e-4)


def test_slices_stored_from_head_to_feet_lie_where_their_headers_say(tmp_path, ct):
    affine = np.diag([-1.0, -1, -3, 1])
    write_dicom(tmp_path, ct, affine)
    volume = load_volume(tmp_path)
    for index in itertools.product(range(5), range(4), range(6)):
        i, j, k = np.rint(ijk_from_ras(volume.affine, ras_from_ijk(affine, [index]))[0]).astype(int)
        assert volume.array[k, j, i] == ct[index[2], index[1], index[0]]


def test_a_missing_slice_is_noticed_from_the_spacing(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2.5, 1]), slices=[0, 1, 2, 4, 5])
    with pytest.raises(InputError, match=r"missing, .* 5 mm between .*dcm and .*dcm where 2.5 mm"):
        load_volume(tmp_path)


def test_the_largest_series_of_a_folder_is_read_and_the_choice_is_logged(tmp_path, ct, caplog):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    write_dicom(tmp_path, ct[::-1], np.diag([-1, -1, 2, 1]), series="1.2.4", slices=[0, 1])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_volume(tmp_path).array, ct)
    assert "2 DICOM series; " in caplog.text
    assert "the largest with 6 files, is read. For another one" in caplog.text


def test_two_series_of_equal_size_are_refused_and_listed(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]), series="1.2.4")
    with pytest.raises(InputError, match=r"2 series of 6 files.*1\.2\.3.*1\.2\.4"):
        load_volume(tmp_path)


def test_a_tilted_gantry_is_refused(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]), shift_lps=(0, 0.5, 0))
    with pytest.raises(InputError, match="gantry tilt"):
        load_volume(tmp_path)


def test_two_time_points_in_one_series_need_a_choice(tmp_path, ct):
    write_dicom(tmp_path, ct[:2], np.diag([-1, -1, 1e-9, 1]))
    with pytest.raises(InputError, match="4-D with 2 volumes; choose one with a time index"):
        load_volume(tmp_path)
    assert np.array_equal(load_volume(tmp_path, time_index=1).array, ct[1:2])


def test_an_image_more_at_one_place_is_refused(tmp_path, ct):
    write_dicom(tmp_path, ct[:3], np.diag([-1, -1, 2, 1]))
    again = pydicom.dcmread(next(tmp_path.iterdir()))
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    again.save_as(tmp_path / "again.dcm")
    with pytest.raises(InputError, match="several images lie at the same position"):
        load_volume(tmp_path)


def test_small_errors_that_add_up_are_measured_in_millimetres(tmp_path):
    at = np.concatenate([[0], np.cumsum([2.3] * 5 + [2.5] * 5)])  # no gap is far from the others
    array = np.zeros((len(at), 4, 5), np.int16)
    for k, z in enumerate(at):
        write_dicom(tmp_path, array[k : k + 1], np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, z], [0, 0, 0, 1.0]]))
        (tmp_path / "1.2.3_0.dcm").rename(tmp_path / f"{k}.dcm")
    with pytest.raises(InputError, match=r"unevenly spaced, up to 0\.\d+ mm beside their place"):
        load_volume(tmp_path)


def test_a_tilt_of_half_a_degree_is_refused(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 5, 1]), shift_lps=(0, 5 * np.tan(np.deg2rad(0.5)), 0))
    with pytest.raises(InputError, match=r"gantry tilt\), 0\.218 mm"):
        load_volume(tmp_path)


def test_slices_turned_against_each_other_are_refused(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    one = next(tmp_path.iterdir())
    header = pydicom.dcmread(one)
    header.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
    header.save_as(one)
    with pytest.raises(InputError, match=r"have different orientations|series of"):
        load_volume(tmp_path)


def test_every_slice_has_the_values_that_its_own_header_means(tmp_path, ct):
    write_dicom(tmp_path, abs(ct), np.diag([-1, -1, 2, 1]))
    expected = abs(ct).astype(np.float64)
    for file in tmp_path.iterdir():
        header = pydicom.dcmread(file)
        number = int(header.InstanceNumber)
        header.RescaleSlope, header.RescaleIntercept = ("1", "0") if number == 1 else ("0.01", "3")
        header.save_as(file)
        expected[number - 1] = expected[number - 1] * float(header.RescaleSlope) + float(header.RescaleIntercept)
    assert load_volume(tmp_path).array == pytest.approx(expected, rel=1e-6)


def test_screenshots_without_a_place_are_refused_as_a_stack(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    for file in tmp_path.iterdir():
        header = pydicom.dcmread(file)
        del header.ImagePositionPatient, header.ImageOrientationPatient
        header.save_as(file)
    with pytest.raises(InputError, match="do not say where their slices lie"):
        load_volume(tmp_path)


@pytest.mark.parametrize("field", ["ImagePositionPatient", "PixelSpacing"])
def test_numbers_that_are_text_are_told_in_a_sentence(tmp_path, ct, field):
    write_dicom(tmp_path, ct[:1], np.diag([-1, -1, 2, 1]))
    file = next(tmp_path.iterdir())
    content = file.read_bytes()
    tag = {"ImagePositionPatient": b"\x20\x00\x32\x00", "PixelSpacing": b"\x28\x00\x30\x00"}[field]
    at = content.index(tag) + 8
    file.write_bytes(content[:at] + b"x" + content[at + 1 :])
    with pytest.raises(InputError, match=r"has no meaning|is damaged"):
        load_volume(file)


def test_what_is_no_dicom_is_told_in_a_sentence(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x" * 400)
    with pytest.raises(InputError, match=r"a\.dcm is damaged or no DICOM file"):
        load_volume(tmp_path / "a.dcm")


# ---------------------------------------------------------------------------------------------------------- many frames


def item(**values):
    made = Dataset()
    for key, value in values.items():
        setattr(made, key, value)
    return made


def enhanced(path, array, positions, rescales=None, spacing=(0.9, 0.8), sop="1.2.840.10008.5.1.4.1.1.2.1"):
    """One Enhanced CT file with a frame (J, I) for each position (LPS mm)."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = sop
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3.4"
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.Modality, header.StudyInstanceUID, header.SeriesInstanceUID = "CT", "1.2.9", "1.2.3"
    header.NumberOfFrames, header.Rows, header.Columns = array.shape
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(SliceThickness="2.5", PixelSpacing=list(spacing))],
    )
    if rescales is None:
        shared.PixelValueTransformationSequence = [item(RescaleIntercept="-1024", RescaleSlope="1", RescaleType="HU")]
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k, position in enumerate(positions):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=list(position))])
        if rescales is not None:
            slope, offset = rescales[k]
            frame.PixelValueTransformationSequence = [item(RescaleIntercept=str(offset), RescaleSlope=str(slope))]
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    header.PixelData = array.astype("<u2").tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def stored():
    return np.random.default_rng(2).integers(0, 3000, (4, 3, 5)).astype(np.uint16)


def test_frames_in_any_order_lie_where_their_own_headers_say(tmp_path, stored):
    positions = [(5, 6, 7 + 2.5 * k) for k in (2, 0, 3, 1)]
    volume = load_volume(enhanced(tmp_path / "a.dcm", stored, positions))
    assert np.array_equal(volume.array, stored[[1, 3, 0, 2]].astype(int) - 1024)
    assert volume.affine == pytest.approx(np.array([[-0.8, 0, 0, -5], [0, -0.9, 0, -6], [0, 0, 2.5, 7], [0, 0, 0, 1]]))


def test_a_missing_frame_is_noticed(tmp_path, stored):
    with pytest.raises(InputError, match=r"5 mm between frame 2 and frame 3 where 2.5 mm"):
        load_volume(enhanced(tmp_path / "a.dcm", stored, [(5, 6, z) for z in (0, 2.5, 7.5, 10)]))


def test_two_times_of_frames_need_a_choice(tmp_path, stored):
    path = enhanced(tmp_path / "a.dcm", stored, [(5, 6, 2.5 * (k % 2)) for k in range(4)])
    with pytest.raises(InputError, match="4-D with 2 volumes; choose one"):
        load_volume(path)
    assert np.array_equal(load_volume(path, time_index=1).array, stored[2:].astype(int) - 1024)


def test_each_frame_has_the_values_that_its_own_header_means(tmp_path, stored):
    rescales = [(1, -1024), (0.5, 0), (2, 7), (0.25, -3)]
    path = enhanced(tmp_path / "a.dcm", stored, [(0, 0, 2 * k) for k in range(4)], rescales)
    expected = np.stack([stored[k].astype(float) * slope + offset for k, (slope, offset) in enumerate(rescales)])
    assert load_volume(path).array == pytest.approx(expected)


def test_a_tilted_stack_of_frames_is_refused(tmp_path, stored):
    with pytest.raises(InputError, match="gantry tilt"):
        load_volume(enhanced(tmp_path / "a.dcm", stored, [(0, 0.3 * k, 2 * k) for k in range(4)]))


def test_a_clip_of_pictures_without_a_place_is_read_one_by_one(tmp_path, stored):
    path = enhanced(tmp_path / "a.dcm", stored, [(0, 0, 2 * k) for k in range(4)])
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence, header.SharedFunctionalGroupsSequence
    header.save_as(path)
    with pytest.raises(InputError, match="4-D with 4 volumes"):
        load_volume(path)
    assert load_volume(path, time_index=2).shape == (1, 3, 5)


def test_a_file_that_describes_other_frames_than_it_says_is_refused(tmp_path, stored):
    path = enhanced(tmp_path / "a.dcm", stored, [(0, 0, 2 * k) for k in range(4)])
    header = pydicom.dcmread(path)
    header.NumberOfFrames = 3
    header.save_as(path)
    with pytest.raises(InputError, match="3 frames and describes 4"):
        load_volume(path)


def test_a_dicom_segmentation_is_no_image(tmp_path, stored):
    path = enhanced(tmp_path / "a.dcm", stored, [(0, 0, 2 * k) for k in range(4)], sop=SEGMENTATION)
    with pytest.raises(InputError, match="is a DICOM segmentation"):
        read_file(path, "a.dcm")


def test_one_dicom_file_is_one_slice(tmp_path, ct):
    write_dicom(tmp_path, ct[:1], np.diag([-2, -3, 1, 1]))
    expected = load_volume(tmp_path)
    volume = load_volume(tmp_path / "1.2.3_0.dcm")
    assert np.array_equal(volume.array, ct[:1])
    assert volume.same_geometry(expected)


def test_a_folder_without_dicom_is_refused(tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="holds no DICOM series"):
        load_volume(tmp_path)
    assert capfd.readouterr().err == ""
