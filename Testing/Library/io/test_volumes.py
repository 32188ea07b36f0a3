"""Volumes and labelmaps keep their place in the patient through every file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from FewShotSegLib.data.volume import Labelmap, Volume, as_labels, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.images import SAVE_SUFFIXES
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_labelmap, save_volume
from Testing.Library.grids import GEOMETRIES, affine_of, blocks, geometries


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 3000, (4, 5, 6)).astype(np.int16)


numbers = st.floats(-500, 500)
spacings = st.floats(0.05, 20)


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


# ---------------------------------------------------------------------------------------------------- bad files


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.nrrd does not exist"):
        load_volume(tmp_path / "nowhere.nrrd")


def test_voxels_that_are_no_numbers_are_counted_and_the_file_is_named(tmp_path):
    array = np.ones((2, 3, 4), np.float32)
    array[0, 1, 1:] = np.nan, np.inf, -np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match=r"a\.nrrd: 3 voxels have no value"):
        load_volume(tmp_path / "a.nrrd")
    with pytest.raises(InputError, match=r"^Patient 3: 3 voxels"):
        load_volume(tmp_path / "a.nrrd", name="Patient 3")


# ------------------------------------------------------------------------------------------------------ labelmaps


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


def test_labels_that_a_scale_in_the_header_made_almost_whole_are_whole(tmp_path):
    array = np.array([[[0, 1.0010, 2.0020, 1.9989, 100.00001]]], np.float32)
    save_volume(Volume(array, np.eye(4)), tmp_path / "a.nrrd")
    assert load_labelmap(tmp_path / "a.nrrd").volume.array.tolist() == [[[0, 1, 2, 2, 100]]]
    save_volume(Volume(array + np.float32(0.3), np.eye(4)), tmp_path / "a.nrrd")
    with pytest.raises(InputError, match=r"5 voxels hold fractions.*round them"):
        load_labelmap(tmp_path / "a.nrrd")


def test_a_segmentation_with_a_broken_name_in_its_header_is_refused_in_words(tmp_path: Path) -> None:
    array = np.zeros((3, 20, 20), np.uint8)
    array[1, 5:9, 5:9] = 1
    path = tmp_path / "a.seg.nrrd"
    save_labelmap(Labelmap(Volume(array, np.eye(4)), {1: "liver"}), path)
    content = path.read_bytes()
    assert content.count(b"Segment0_Extent") == 1
    path.write_bytes(content.replace(b"Segment0_Extent", b"Segment0_\x07\x10\xae\xe1nt"))
    with pytest.raises(InputError, match="its header is damaged; copy or export it again"):
        load_labelmap(path)
