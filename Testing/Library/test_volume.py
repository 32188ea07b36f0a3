"""Volumes and labelmaps keep their place in the patient through every file format."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume, as_labels, ijk_from_ras, label_values, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed, resample_labelmap
from FewShotSegLib.io.images import SAVE_SUFFIXES
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_labelmap, save_volume

ROOT = Path(__file__).parents[2]


def affine_of(angles=(0, 0, 0), spacing=(1.0, 1.0, 1.0), origin=(0, 0, 0), flips=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing) * flips
    affine[:3, 3] = origin
    return affine


GEOMETRIES = {
    "identity": affine_of(),
    "anisotropic": affine_of(spacing=(0.7, 0.9, 5.0), origin=(-120.5, 33.25, 1017.125)),
    "flipped": affine_of(spacing=(2, 3, 4), flips=(-1, -1, 1), origin=(90, 100, -50)),
    "left-handed": affine_of(spacing=(2, 3, 4), flips=(1, 1, -1), origin=(1, 2, 3)),
    "oblique": affine_of((17, -33, 50), (0.8, 1.1, 3.3), (-100.3, 22.2, 17.77)),
    "oblique left-handed": affine_of((-70, 15, 140), (1.5, 0.4, 6), (5, -6, 7), (-1, 1, 1)),
    "sagittal": affine_of()[:, [2, 0, 1, 3]] * [1, 2, 3, 1],
}
geometries = pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 3000, (4, 5, 6)).astype(np.int16)


# ---------------------------------------------------------------------------------------------------- the object


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 5)), "3 dimensions .* got 2"),
        (np.zeros((2, 3, 4, 5)), "3 dimensions .* got 4"),
        (np.zeros((0, 3, 4)), r"at least one voxel, got the shape \(0, 3, 4\)"),
        (np.zeros((2, 2, 2), complex), "real numbers"),
        (np.array([[["a"]]]), "real numbers"),
        (np.array([[[np.nan, 1, np.inf]]]), "2 voxels are not a finite number"),
        (np.array([[[-np.inf, 1, 1]]], np.float32), "1 voxel is not a finite number"),
    ],
)
def test_an_array_that_is_no_volume_is_refused(bad, message):
    with pytest.raises(InputError, match=message):
        Volume(bad, np.eye(4))


@pytest.mark.parametrize(
    "bad", [np.eye(3), np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.diag([1, 1, 1, 2])]
)
def test_an_affine_that_places_nothing_is_refused(bad, array):
    with pytest.raises(InputError, match="affine"):
        Volume(array, bad)


def test_two_axes_along_one_line_are_refused_and_tiny_voxels_are_not(array):
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    with pytest.raises(InputError, match="invertible"):
        Volume(array, flat)
    assert Volume(array, np.diag([1e-5, 1e-5, 1e-5, 1])).spacing_mm == pytest.approx([1e-5] * 3)


def test_spacing_is_in_ijk_order(array):
    volume = Volume(array, GEOMETRIES["oblique"])
    assert volume.spacing_mm == pytest.approx([0.8, 1.1, 3.3])
    assert volume.shape == (4, 5, 6)


def test_like_keeps_the_place_and_refuses_another_shape(array):
    volume = Volume(array, GEOMETRIES["oblique"])
    assert np.array_equal(volume.like(array > 0).affine, volume.affine)
    with pytest.raises(InputError, match="does not fit"):
        volume.like(array[1:])


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((4, 5, 6), (1, 1, 1), 0),
        ((4, 5, 6), (1, 1, 5), 0),
        ((4, 5, 6), (1, 5, 1), 1),
        ((4, 5, 6), (5, 1, 1), 2),
        ((4, 5, 6), (3, 3, 1), 1),
        ((4, 5, 6), (1.0004, 1.0001, 1), 0),
        ((4, 5, 1), (1, 1, 5), 2),
        ((4, 1, 6), (1, 1, 5), 1),
        ((1, 5, 6), (4, 4, 1), 0),
    ],
)
def test_the_acquisition_axis_is_across_the_thick_slices(shape, spacing, axis):
    volume = Volume(np.zeros(shape), GEOMETRIES["oblique"] / [0.8, 1.1, 3.3, 1] * [*spacing, 1])
    assert volume.acquisition_axis == axis


def test_geometry_is_compared_where_the_difference_is_largest(array):
    volume = Volume(array, np.eye(4))
    assert volume.same_geometry(Volume(array, affine_of(origin=(5e-4, 0, 0))))
    assert not volume.same_geometry(Volume(array, affine_of(origin=(2e-3, 0, 0))))
    assert not volume.same_geometry(Volume(array[1:], np.eye(4)))
    long = np.zeros((1, 1, 400))
    stretched = Volume(long, affine_of(spacing=(1 + 5e-6, 1, 1)))  # 5e-6 mm at the first voxel, 2e-3 mm at the last
    assert not Volume(long, np.eye(4)).same_geometry(stretched)


numbers = st.floats(-500, 500)
spacings = st.floats(0.05, 20)


@given(
    angles=st.tuples(numbers, numbers, numbers),
    spacing=st.tuples(spacings, spacings, spacings),
    origin=st.tuples(numbers, numbers, numbers),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    points=st.lists(st.tuples(numbers, numbers, numbers), max_size=4),
)
def test_ijk_to_ras_and_back_is_the_identity(angles, spacing, origin, flips, points):
    affine = affine_of(angles, spacing, origin, flips)
    points_ijk = np.reshape(points, (-1, 3))
    back = ijk_from_ras(affine, ras_from_ijk(affine, points_ijk))
    assert back.shape == points_ijk.shape
    assert back == pytest.approx(points_ijk, abs=1e-6)


# -------------------------------------------------------------------------------------------------- save and load


@geometries
@pytest.mark.parametrize("suffix", SAVE_SUFFIXES)
def test_array_and_geometry_survive_a_file(tmp_path, array, affine, suffix):
    volume = Volume(array, affine)
    path = tmp_path / f"Bauch Größe 1{suffix}"
    save_volume(volume, path)
    again = load_volume(path)
    assert np.array_equal(again.array, array)
    assert again.array.dtype == array.dtype
    nifti = ".nii" in suffix  # NIfTI stores 32-bit numbers: 1e-7 of the largest coordinate
    assert again.affine == pytest.approx(volume.affine, abs=2e-4 if nifti else 1e-9)
    assert again.same_geometry(volume)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(numbers, numbers, numbers),
    spacing=st.tuples(spacings, spacings, spacings),
    origin=st.tuples(numbers, numbers, numbers),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_any_orthogonal_geometry_survives_nrrd(tmp_path_factory, angles, spacing, origin, flips):
    volume = Volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), affine_of(angles, spacing, origin, flips))
    path = tmp_path_factory.mktemp("nrrd") / "a.nrrd"
    save_volume(volume, path)
    assert load_volume(path).affine == pytest.approx(volume.affine, abs=1e-9)


@geometries
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_the_affine_agrees_with_simpleitk_about_where_a_voxel_is(tmp_path, array, affine, suffix):
    save_volume(Volume(array, affine), tmp_path / f"a{suffix}")
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    x, y, z = image.TransformIndexToPhysicalPoint((5, 1, 3))  # LPS
    assert ras_from_ijk(affine, [[5, 1, 3]])[0] == pytest.approx([-x, -y, z], abs=1e-3)
    assert image.GetPixel(5, 1, 3) == array[3, 1, 5]


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8", ">i2", ">f4"])
def test_every_real_type_can_be_saved(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save_volume(Volume(array, np.eye(4)), tmp_path / "a.nrrd")
    assert np.array_equal(load_volume(tmp_path / "a.nrrd").array, array)


def test_an_uncompressed_file_reads_the_same(tmp_path, array):
    volume = Volume(array, GEOMETRIES["oblique"])
    save_volume(volume, tmp_path / "a.nrrd", compress=False)
    again = load_volume(tmp_path / "a.nrrd")
    assert np.array_equal(again.array, array)
    assert again.same_geometry(volume)
    assert (tmp_path / "a.nrrd").stat().st_size > array.nbytes


def test_a_view_with_strides_is_saved_as_it_is_indexed(tmp_path, array):
    save_volume(Volume(array.transpose(2, 0, 1)[::-1], np.eye(4)), tmp_path / "a.mha")
    assert np.array_equal(load_volume(tmp_path / "a.mha").array, array.transpose(2, 0, 1)[::-1])


def test_equal_volumes_give_equal_bytes(tmp_path, array):
    for name in ("a.nrrd", "b.nrrd", "a.nii.gz", "b.nii.gz"):
        save_volume(Volume(array, GEOMETRIES["oblique"]), tmp_path / name)
    assert (tmp_path / "a.nrrd").read_bytes() == (tmp_path / "b.nrrd").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_sheared_volume_is_refused_at_save(tmp_path, array):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(InputError, match="sheared"):
        save_volume(Volume(array, sheared), tmp_path / "a.nrrd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.mhd", "a.png"])
def test_a_format_that_cannot_be_written_in_one_piece_is_refused(tmp_path, array, name):
    with pytest.raises(InputError, match=r"allowed file types are \.nrrd"):
        save_volume(Volume(array, np.eye(4)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
@pytest.mark.parametrize("suffix", SAVE_SUFFIXES)
def test_a_disk_that_fills_up_leaves_neither_half_a_file_nor_silence(tmp_path, suffix):
    # A limit on the size of files makes the writers fail as they do on a full disk: in the middle.
    code = f"""
import resource, sys
import numpy as np
from FewShotSegLib.errors import InputError
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.io.volumes import save_volume
volume = Volume(np.random.default_rng(0).integers(0, 30000, (20, 50, 50)).astype(np.int16), np.eye(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    save_volume(volume, sys.argv[1] + "/a{suffix}")
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stdout.startswith(f"Cannot write {tmp_path}/a{suffix}"), process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path, array):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        save_volume(Volume(array, np.eye(4)), tmp_path / "file" / "a.nrrd")


# ---------------------------------------------------------------------------------------------------- bad files


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.nrrd does not exist"):
        load_volume(tmp_path / "nowhere.nrrd")


def test_an_unknown_file_type_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(InputError, match=r"a\.docx has an unknown file type; allowed are \.nrrd .* DICOM"):
        load_volume(tmp_path / "a.docx")


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha", ".png", ".jpg", ".tif", ".dcm"])
def test_a_damaged_file_is_named_in_one_line_and_nothing_else_is_printed(tmp_path, suffix, capfd):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"this is not an image" * 50)
    with pytest.raises(InputError) as caught:
        load_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 30000, (20, 30, 30)).astype(np.int16)
    path = tmp_path / f"a{suffix}"
    save_volume(Volume(array, np.eye(4)), path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="cannot be read"):
        load_volume(path)


def test_voxels_that_are_no_numbers_are_counted_and_the_file_is_named(tmp_path):
    array = np.ones((2, 3, 4), np.float32)
    array[0, 1, 1:] = np.nan, np.inf, -np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match=r"a\.nrrd: 3 voxels are not a finite number"):
        load_volume(tmp_path / "a.nrrd")
    with pytest.raises(InputError, match=r"^Patient 3: 3 voxels"):
        load_volume(tmp_path / "a.nrrd", name="Patient 3")


def test_a_file_without_voxels_is_refused(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 0 4 4\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_text(header)
    with pytest.raises(InputError, match=r"a\.nrrd"):
        load_volume(tmp_path / "a.nrrd")


def test_a_sheared_file_is_refused_with_the_reason(tmp_path, array):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
        "space directions: (1,0,0) (0.5,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    volume = load_volume(tmp_path / "a.nrrd")  # NRRD can hold shear, and so does the affine; only saving cannot
    assert volume.affine[:3, :3] == pytest.approx(np.array([[-1, -0.5, 0], [0, -1, 0], [0, 0, 1]]))


def test_a_ras_header_gives_the_same_place_as_an_lps_header(tmp_path):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (5,6,7)\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    assert load_volume(tmp_path / "a.nrrd").affine == pytest.approx(affine_of(spacing=(2, 3, 4), origin=(5, 6, 7)))


# ------------------------------------------------------------------------------------- 2-D, 4-D, colour, channels


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_a_4d_file_needs_a_time_index(tmp_path, suffix):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((2, 3, 4, 1))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path))
    with pytest.raises(InputError, match="4-D with 2 volumes; choose one with a time index from 0 to 1"):
        load_volume(path)
    with pytest.raises(InputError, match="time indices 0 to 1, got 2"):
        load_volume(path, time_index=2)
    volume = load_volume(path, time_index=1)
    assert np.array_equal(volume.array, array[1])
    assert volume.spacing_mm == pytest.approx([2, 3, 4])


def test_a_4d_file_with_one_volume_is_that_volume(tmp_path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array[None], isVector=False), str(tmp_path / "a.nii.gz"))
    assert np.array_equal(load_volume(tmp_path / "a.nii.gz").array, array)


def test_a_time_index_for_a_3d_file_is_refused(tmp_path, array):
    save_volume(Volume(array, np.eye(4)), tmp_path / "a.nrrd")
    assert np.array_equal(load_volume(tmp_path / "a.nrrd", time_index=0).array, array)
    with pytest.raises(InputError, match="time indices 0 to 0, got 1"):
        load_volume(tmp_path / "a.nrrd", time_index=1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".nrrd", ".mha", ".nii"])
def test_a_2d_image_is_one_slice(tmp_path, suffix):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    volume = load_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.array, array[None])
    assert volume.acquisition_axis == 0
    assert volume.affine == pytest.approx(np.diag([-1, -1, 1, 1]))


def test_a_2d_image_keeps_spacing_and_origin(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4), np.uint8))
    image.SetSpacing((0.5, 0.25))
    image.SetOrigin((10, 20))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    expected = np.diag([-0.5, -0.25, 1, 1])
    expected[:2, 3] = -10, -20
    assert load_volume(tmp_path / "a.mha").affine == pytest.approx(expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_becomes_luminance_unless_a_channel_is_chosen(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 255, (5, 6, channels)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "é a.png"))
    luminance = load_volume(tmp_path / "é a.png").array
    assert luminance[0] == pytest.approx(array[..., :3] @ np.array([0.299, 0.587, 0.114]), abs=1e-3)
    assert np.array_equal(load_volume(tmp_path / "é a.png", channel=1).array[0], array[..., 1])
    with pytest.raises(InputError, match=f"channels 0 to {channels - 1}, got 9"):
        load_volume(tmp_path / "é a.png", channel=9)


def test_several_mr_contrasts_in_one_file_need_a_channel(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match="4 values per voxel; choose one with a channel from 0 to 3"):
        load_volume(tmp_path / "a.nrrd")
    assert np.array_equal(load_volume(tmp_path / "a.nrrd", channel=2).array, array[..., 2])


def test_a_channel_of_a_grey_image_is_refused(tmp_path, array):
    save_volume(Volume(array, np.eye(4)), tmp_path / "a.nrrd")
    assert np.array_equal(load_volume(tmp_path / "a.nrrd", channel=0).array, array)
    with pytest.raises(InputError, match="one channel, got channel 1"):
        load_volume(tmp_path / "a.nrrd", channel=1)


# ---------------------------------------------------------------------------------------------------------- DICOM


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
    with pytest.raises(InputError, match=r"missing or unevenly spaced, 5 mm between .*dcm and .*dcm where 2.5 mm"):
        load_volume(tmp_path)


def test_the_largest_series_of_a_folder_is_read_and_the_choice_is_logged(tmp_path, ct, caplog):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    write_dicom(tmp_path, ct[::-1], np.diag([-1, -1, 2, 1]), series="1.2.4", slices=[0, 1])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_volume(tmp_path).array, ct)
    assert "2 DICOM series; the largest, with 6 files" in caplog.text


def test_two_series_of_equal_size_are_refused_and_listed(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]))
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]), series="1.2.4")
    with pytest.raises(InputError, match=r"2 series of 6 files.*1\.2\.3.*1\.2\.4"):
        load_volume(tmp_path)


def test_a_tilted_gantry_is_refused(tmp_path, ct):
    write_dicom(tmp_path, ct, np.diag([-1, -1, 2, 1]), shift_lps=(0, 0.5, 0))
    with pytest.raises(InputError, match="gantry tilt"):
        load_volume(tmp_path)


def test_two_time_points_in_one_series_are_refused(tmp_path, ct):
    write_dicom(tmp_path, ct[:2], np.diag([-1, -1, 1e-9, 1]))
    with pytest.raises(InputError, match="same position"):
        load_volume(tmp_path)


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


# ------------------------------------------------------------------------------------------------------ labelmaps


def blocks(shape=(5, 6, 7)):
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:4, 3:6] = 3
    labels[3, 1, 1] = 200
    return labels


@geometries
def test_names_colours_values_and_geometry_survive_a_segmentation_file(tmp_path, affine):
    labelmap = Labelmap(Volume(blocks(), affine), {200: "Läsion links", 3: "liver", 7: "not there"})
    save_labelmap(labelmap, tmp_path / "é 1.seg.nrrd")
    again = load_labelmap(tmp_path / "é 1.seg.nrrd")
    assert again.structures == {3: "liver", 7: "not there", 200: "Läsion links"}
    assert np.array_equal(again.volume.array, blocks())
    assert again.volume.array.dtype == np.uint8
    assert again.volume.affine == pytest.approx(labelmap.volume.affine, abs=1e-9)


def test_the_header_has_the_fields_that_slicer_reads(tmp_path):
    volume = Volume(blocks().astype(np.uint32), affine_of(spacing=(2, 3, 4), origin=(1, 0, 0)))
    save_labelmap(Labelmap(volume, {3: "liver", 7: "not there"}), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert image.GetPixelID() == sitk.sitkUInt8
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    geometry = "2;0;0;1;0;3;0;0;0;0;4;0;0;0;0;1;0;6;0;5;0;4;"  # as vtkSegmentationConverter writes it
    assert header.pop("Segmentation_ConversionParameters") == f"Reference image geometry|{geometry}|&"
    assert header.pop("Segmentation_MasterRepresentation") == "Binary labelmap"
    assert header.pop("Segmentation_ContainedRepresentationNames") == "Binary labelmap|"
    assert header.pop("Segmentation_ReferenceImageExtentOffset") == "0 0 0"
    segments = [("3", "liver", "3 5 2 3 1 2"), ("7", "not there", "0 -1 0 -1 0 -1"), ("200", "200", "1 1 1 1 3 3")]
    for index, (value, name, extent) in enumerate(segments):
        fields = {key: header.pop(f"Segment{index}_{key}") for key in ["ID", "Name", "LabelValue", "Layer", "Extent"]}
        assert fields == {"ID": f"Segment_{value}", "Name": name, "LabelValue": value, "Layer": "0", "Extent": extent}
        color = [float(part) for part in header.pop(f"Segment{index}_Color").split()]
        assert len(color) == 3
        assert all(0 <= part <= 1 for part in color)
        assert header.pop(f"Segment{index}_NameAutoGenerated") == "0"
        assert header.pop(f"Segment{index}_ColorAutoGenerated") == "0"
        assert header.pop(f"Segment{index}_Tags").endswith("|")
    assert header == {}


def write_segments(path, layers, segments, *, vector=True):
    """Write a segmentation of several layers as Slicer does (a list axis) or as a fourth dimension."""
    stacked = np.stack(layers, axis=-1 if vector else 0).astype(np.uint8)
    image = sitk.GetImageFromArray(stacked, isVector=vector)
    for index, fields in enumerate(segments):
        for key, value in fields.items():
            image.SetMetaData(f"Segment{index}_{key}", value)
    sitk.WriteImage(image, str(path))


def two_layers():
    first, second = np.zeros((2, 3, 4, 5), np.uint8)
    first[0], first[2] = 1, 2
    second[0, :2], second[1] = 1, 1
    return [first, second]


@pytest.mark.parametrize("vector", [True, False])
def test_layers_are_merged_and_the_higher_one_wins_where_they_overlap(tmp_path, caplog, vector):
    segments = [
        {"ID": "a", "Name": "Liver", "LabelValue": "1", "Layer": "0"},
        {"ID": "b", "Name": "Tumör", "LabelValue": "1", "Layer": "1"},
        {"ID": "c", "Name": "Spleen", "LabelValue": "2", "Layer": "0"},
    ]
    write_segments(tmp_path / "a.seg.nrrd", two_layers(), segments, vector=vector)
    with caplog.at_level(logging.WARNING):
        labelmap = load_labelmap(tmp_path / "a.seg.nrrd")
    expected = np.zeros((3, 4, 5), int)
    expected[0], expected[0, :2], expected[1], expected[2] = 1, 2, 2, 3  # numbered in the order of the file
    assert np.array_equal(labelmap.volume.array, expected)
    assert labelmap.structures == {1: "Liver", 2: "Tumör", 3: "Spleen"}
    assert "overlap in 10 voxels" in caplog.text


def test_label_values_of_layers_are_kept_when_they_differ(tmp_path):
    layers = two_layers()
    layers[1] *= 9
    segments = [
        {"ID": "a", "Name": "Liver", "LabelValue": "1", "Layer": "0"},
        {"ID": "b", "Name": "Tumor", "LabelValue": "9", "Layer": "1"},
    ]
    write_segments(tmp_path / "a.seg.nrrd", layers, segments)
    labelmap = load_labelmap(tmp_path / "a.seg.nrrd")
    assert labelmap.structures == {1: "Liver", 9: "Tumor"}
    assert label_values(labelmap.volume.array) == (1, 9)  # 2 belongs to no segment


def test_files_of_old_slicers_have_one_layer_for_each_segment(tmp_path):
    layers = [np.uint8(layer > 0) for layer in two_layers()]
    write_segments(tmp_path / "a.seg.nrrd", layers, [{"ID": "a", "Name": "Liver"}, {"ID": "b", "Name": "Liver"}])
    labelmap = load_labelmap(tmp_path / "a.seg.nrrd")
    assert labelmap.structures == {1: "Liver", 2: "Liver (2)"}
    assert np.array_equal(labelmap.volume.array == 2, layers[1] == 1)


def test_names_that_are_not_utf8_are_read_as_latin_1(tmp_path):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nSegment0_ID:=a\nSegment0_Name:=Läsion\n\n"
    )
    (tmp_path / "a.seg.nrrd").write_bytes(header.encode("latin-1") + bytes([0, 1] * 4))
    assert load_labelmap(tmp_path / "a.seg.nrrd").structures == {1: "Läsion"}


@pytest.mark.parametrize("fields", [{"LabelValue": "one"}, {"LabelValue": "0"}, {"Layer": "-1"}, {"Layer": "x"}])
def test_a_segment_with_a_damaged_header_is_refused(tmp_path, fields):
    write_segments(tmp_path / "a.seg.nrrd", two_layers(), [{"ID": "a", "Name": "Liver"} | fields])
    with pytest.raises(InputError, match=r'a\.seg\.nrrd: segment "Liver" points to'):
        load_labelmap(tmp_path / "a.seg.nrrd")


def test_a_segment_that_points_to_a_missing_layer_is_refused(tmp_path):
    write_segments(tmp_path / "a.seg.nrrd", two_layers(), [{"ID": "a", "Name": "Liver", "Layer": "2"}])
    with pytest.raises(InputError, match=r'segment "Liver" points to label 1 in layer 2'):
        load_labelmap(tmp_path / "a.seg.nrrd")


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.int64, np.uint16])
def test_values_of_a_plain_labelmap_are_their_own_names(tmp_path, dtype):
    save_volume(Volume(blocks().astype(dtype), np.eye(4)), tmp_path / "a.nii.gz")
    labelmap = load_labelmap(tmp_path / "a.nii.gz")
    assert labelmap.structures == {3: "3", 200: "200"}
    assert labelmap.volume.array.dtype == np.uint8
    assert np.array_equal(labelmap.volume.array, blocks())


@pytest.mark.parametrize(
    ("value", "message"), [(0.5, "1 voxels hold fractions"), (-1, "got -1 to 200"), (70000, "got 0 to 70000")]
)
def test_an_image_that_is_no_labelmap_is_refused(tmp_path, value, message):
    array = blocks().astype(np.float32)
    array[0, 0, 0] = value
    save_volume(Volume(array, np.eye(4)), tmp_path / "a.nrrd")
    with pytest.raises(InputError, match=rf"a\.nrrd is no labelmap: .*{message}"):
        load_labelmap(tmp_path / "a.nrrd")


def test_labels_above_255_need_two_bytes(tmp_path):
    array = blocks().astype(np.uint16) * 5
    save_labelmap(Labelmap(Volume(array, np.eye(4)), {1000: "a"}), tmp_path / "a.seg.nrrd")
    again = load_labelmap(tmp_path / "a.seg.nrrd")
    assert again.volume.array.dtype == np.uint16
    assert again.structures == {15: "15", 1000: "a"}
    assert as_labels(np.array([[[300.0]]]), "a").dtype == np.uint16


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ({0: "background"}, "from 1 to 65535, got 0"),
        ({-1: "a"}, "got -1"),
        ({1.5: "a"}, r"got 1\.5"),
        ({1: ""}, "needs a name"),
        ({1: None}, "needs a name"),
        ({1: "liver", 2: "liver"}, 'same structure name "liver"'),
    ],
)
def test_structures_without_sense_are_refused(structures, message):
    with pytest.raises(InputError, match=message):
        Labelmap(Volume(blocks(), np.eye(4)), structures)


def test_a_labelmap_of_signed_numbers_is_refused():
    with pytest.raises(InputError, match="unsigned integers, got int16"):
        Labelmap(Volume(blocks().astype(np.int16), np.eye(4)), {1: "a"})


def test_structures_have_different_and_familiar_colours():
    names = ["liver", "Left Kidney", "right_kidney", "kidney", "spleen", "thing", "other", "Tumour", "skin", "body"]
    colors = structure_colors(dict(enumerate(names, 1)))
    assert len(set(colors.values())) == len(names)
    assert colors[1] == pytest.approx((221 / 255, 130 / 255, 101 / 255))
    assert len(set(structure_colors({n: f"part {n}" for n in range(1, 200)}).values())) == 199


# ------------------------------------------------------------------------------------------------- other grids


def random_labels(shape=(4, 5, 6)):
    return np.random.default_rng(3).integers(0, 5, shape).astype(np.uint8)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_the_same_voxels_in_another_order_are_put_back_exactly(order, signs):
    onto = Volume(np.zeros((4, 5, 6)), GEOMETRIES["oblique left-handed"])
    labels = random_labels()
    moved = labels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    # The affine of the turned array, from its own definition: where do its first voxel and its steps lie?
    index = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), axis=-1)[..., ::-1]  # i, j, k
    where = index.transpose(*order, 3)[tuple(slice(None, None, sign) for sign in signs)]
    step = np.stack([where[0, 0, 1], where[0, 1, 0], where[1, 0, 0]]) - where[0, 0, 0]
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = step.T, where[0, 0, 0]
    result = reindexed(Volume(moved, onto.affine @ turn), onto)
    assert result is not None
    assert np.array_equal(result.array, labels)
    assert result.same_geometry(onto)


def test_a_part_of_the_grid_is_placed_when_asked():
    onto = Volume(np.zeros((6, 7, 8)), GEOMETRIES["oblique"])
    shift = np.eye(4)
    shift[:3, 3] = 2, 1, 1
    part = Volume(random_labels(), onto.affine @ shift)
    assert reindexed(part, onto) is None
    placed = reindexed(part, onto, crop=True)
    assert placed is not None
    assert np.array_equal(placed.array[1:5, 1:6, 2:8], part.array)
    assert np.count_nonzero(placed.array) == np.count_nonzero(part.array)
    assert reindexed(Volume(random_labels((6, 7, 8)), part.affine), onto, crop=True) is None  # reaches out of the grid


@pytest.mark.parametrize(
    "affine",
    [affine_of(origin=(0.4, 0, 0)), affine_of(spacing=(1, 1, 1.2)), affine_of((0, 0, 30)), affine_of((3, 0, 0))],
)
def test_a_different_grid_is_not_the_same_voxels(affine):
    assert reindexed(Volume(random_labels(), affine), Volume(random_labels(), np.eye(4)), crop=True) is None


def test_resampling_takes_the_nearest_label_and_nothing_outside():
    source = Volume(random_labels((9, 10, 11)), affine_of((10, -20, 30), (1.5, 1, 2), (3, 4, 5)))
    onto = Volume(np.zeros((12, 13, 14)), affine_of((0, 5, 0), (1, 1.3, 1.1), (3, 4, 18), (1, 1, -1)))
    index = np.stack(np.meshgrid(*map(np.arange, onto.shape), indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    source_ijk = ijk_from_ras(source.affine, ras_from_ijk(onto.affine, index))
    expected = map_coordinates(source.array, source_ijk.T[::-1], order=0, mode="grid-constant").reshape(onto.shape)
    result = resample_labelmap(source, onto)
    assert result.array.dtype == source.array.dtype
    assert np.count_nonzero(result.array) > 100
    assert np.array_equal(result.array, expected)
