"""NIfTI headers of both versions."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.nifti import as_version_1, nifti_header
from FewShotSegLib.io.volumes import load_volume

ARRAY = np.random.default_rng(0).integers(-900, 900, (4, 5, 6)).astype(np.int16)
AFFINE = np.array([[0.7, 0, 0, -20], [0, 0.9, 0, 30.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def version_2(array: np.ndarray, affine: np.ndarray, order: str = "<") -> bytes:
    """A NIfTI-2 file, by the fields of nifti2.h."""
    made = bytearray(544)
    struct.pack_into(f"{order}i8s2h", made, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16)
    struct.pack_into(f"{order}8q", made, 16, 3, *array.shape[::-1], 1, 1, 1, 1)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    struct.pack_into(f"{order}8d", made, 104, 1, *spacing, 0, 0, 0, 0)
    struct.pack_into(f"{order}qdd", made, 168, 544, 1.0, 0.0)
    struct.pack_into(f"{order}2i", made, 344, 0, 1)
    struct.pack_into(f"{order}12d", made, 400, *affine[:3].ravel())
    return bytes(made) + array.astype(f"{order}i2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_version_2_is_read_at_its_place(order: str, name: str, tmp_path: Path) -> None:
    content = version_2(ARRAY, AFFINE, order)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    volume = load_volume(tmp_path / name)
    assert np.array_equal(volume.array, ARRAY)
    assert volume.affine == pytest.approx(AFFINE, abs=1e-5)
    with as_version_1(tmp_path / name) as copy:
        assert nifti_header(copy)[0].version == 1
    assert not copy.exists()


def test_version_1_is_read_as_it_is(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / "a.nii"))
    with as_version_1(tmp_path / "a.nii") as same:
        assert same == tmp_path / "a.nii"


CHANGES = {
    "no dimension": (40, "<h", 0),
    "many dimensions": (40, "<h", 9),
    "negative size": (42, "<h", -6),
    "huge size": (42, "<h", 32000),
    "complex voxels": (70, "<h", 32),
    "voxels nowhere": (108, "<f", float("nan")),
    "voxels before the file": (108, "<f", -5.0),
    "voxels in another file": (344, "<4s", b"ni1\0"),
    "no header": (0, "<i", 77),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_header_that_makes_no_sense_is_refused_in_a_sentence(change: str, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / "a.nii"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    at, form, value = CHANGES[change]
    struct.pack_into(form, content, at, value)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii cannot be read: ") as refused:
        load_volume(tmp_path / "a.nii")
    assert "\n" not in str(refused.value)
