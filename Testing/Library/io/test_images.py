"""Image files and DICOM folders are read whole and in the right place, or refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.images import SAVE_SUFFIXES
from FewShotSegLib.io.volumes import load_volume, save_volume
from Testing.Library.grids import affine_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 3000, (4, 5, 6)).astype(np.int16)


# -------------------------------------------------------------------------------------------------- save and load


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


def test_a_file_without_voxels_is_refused(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 0 4 4\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_text(header)
    with pytest.raises(InputError, match=r"a\.nrrd"):
        load_volume(tmp_path / "a.nrrd")


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
    with pytest.raises(InputError, match="4-D with 2 volumes; choose one with a time index from 0 to 1") as refused:
        load_volume(path)
    assert "--channel N" in str(refused.value)
    assert np.array_equal(load_volume(path, channel=1).array, array[1])
    with pytest.raises(InputError, match="time indices 0 to 1, got 3"):
        load_volume(path, channel=3)
    with pytest.raises(InputError, match="time indices 0 to 1, got 2"):
        load_volume(path, time_index=2)
    volume = load_volume(path, time_index=1)
    assert np.array_equal(volume.array, array[1])
    assert volume.spacing_mm == pytest.approx([2, 3, 4])


def test_a_4d_file_with_one_volume_is_that_volume(tmp_path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array[None], isVector=False), str(tmp_path / "a.nii.gz"))
    assert np.array_equal(load_volume(tmp_path / "a.nii.gz").array, array)


def test_a_file_may_be_the_channel_that_its_name_says(tmp_path, array):
    for number in (0, 1):
        save_volume(Volume(array + number, np.eye(4)), tmp_path / f"p_{number:04d}.nrrd")
    assert np.array_equal(load_volume(tmp_path / "p_0001.nrrd", channel=1).array, array + 1)
    with pytest.raises(InputError, match=r"is channel 1 by its name, and channel 2 was chosen; give p_0002\.nrrd\."):
        load_volume(tmp_path / "p_0001.nrrd", channel=2)
    save_volume(Volume(array, np.eye(4)), tmp_path / "p.nrrd")
    with pytest.raises(InputError, match="has one channel, got channel 1"):
        load_volume(tmp_path / "p.nrrd", channel=1)


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


# ------------------------------------------------------------------------------------------------------------ the gate


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="a pipe, a device or the like"):
        load_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["n" * 300 + ".nrrd", "a\0.nrrd", os.fsdecode(b"M\xfcller.nrrd"), "~nobody/a.nrrd"])
def test_a_name_that_no_file_can_have_is_refused_in_a_sentence(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be read|does not exist|not UTF-8"):
        load_volume(tmp_path / name)


def test_a_sheared_file_of_any_format_is_refused_before_any_work(tmp_path, array):
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0.3,2)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    (tmp_path / "tilt.nrrd").write_bytes(head.encode() + array.tobytes())
    with pytest.raises(InputError, match=r"is sheared.*correct the tilt"):
        load_volume(tmp_path / "tilt.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_voxels_that_are_no_numbers_are_refused_alike_in_all_formats(tmp_path, suffix):
    array = np.full((4, 5, 6), -80.0, np.float32)
    array[0, 0, :3] = np.nan
    array[3, 4, 5] = np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    with pytest.raises(InputError, match="4 voxels have no value"):
        load_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("origin", ["(1e30,0,0)", "(inf,0,0)"])
def test_a_place_without_meaning_is_refused(tmp_path, array, origin):
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
    head += f"space directions: (1,0,0) (0,1,0) (0,0,2)\nendian: little\nencoding: raw\nspace origin: {origin}\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + array.tobytes())
    with pytest.raises(InputError, match=r"impossible position|finite numbers belong"):
        load_volume(tmp_path / "a.nrrd")
