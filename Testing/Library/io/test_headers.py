"""Headers of NRRD and MetaImage files: what they promise must be there, beside them, and make sense."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.headers import check_volume_file, is_detached, layout_of
from FewShotSegLib.io.volumes import load_volume

ARRAY = np.random.default_rng(0).integers(-900, 900, (4, 5, 6)).astype(np.int16)


def written(path: Path, *, compress: bool) -> bytes:
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path), useCompression=compress)
    check_volume_file(path, str(path))  # as it was written it passes
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_the_layout_is_that_of_the_file(name: str, compress: bool, tmp_path: Path) -> None:
    written(tmp_path / name, compress=compress)
    layout = layout_of(tmp_path / name)
    assert tuple(size for size in layout.sizes if size > 1) == ARRAY.shape[::-1]
    assert layout.length == ARRAY.nbytes
    assert is_detached(tmp_path / name) == (name in ("a.nhdr", "a.mhd"))
    if not compress:
        content = layout.data.read_bytes()[layout.skip :]
        assert np.array_equal(np.frombuffer(content, layout.dtype).reshape(ARRAY.shape), ARRAY)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_file_cut_short_anywhere_is_refused(suffix: str, compress: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = written(path, compress=compress)
    for length in range(0, len(content), 23):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="cannot be read"):
            load_volume(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_a_flipped_bit_in_compressed_voxels_is_never_read_as_other_voxels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = written(path, compress=True)
    start = {".nrrd": content.find(b"\n\n") + 2, ".mha": content.find(b"LOCAL\n") + 6, ".nii.gz": 12}[suffix]
    for at in range(start, len(content), 11):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        try:
            found = load_volume(path).array
        except InputError:
            continue
        assert np.array_equal(found, ARRAY), at


WRONG_META = {
    "NDims = -1": ("NDims = 3", "NDims = -1"),
    "NDims = 99999999": ("NDims = 3", "NDims = 99999999"),
    "a pattern": ("ElementDataFile = LOCAL", "ElementDataFile = %s%s%s%n"),
    "a list": ("ElementDataFile = LOCAL", "ElementDataFile = LIST"),
    "elsewhere": ("ElementDataFile = LOCAL", "ElementDataFile = /etc/hostname"),
    "above": ("ElementDataFile = LOCAL", "ElementDataFile = ../a.raw"),
    "negative size": ("DimSize = 6 5 4", "DimSize = 6 -5 4"),
    "huge size": ("DimSize = 6 5 4", "DimSize = 60000 50000 40000"),
    "text for a number": ("DimSize = 6 5 4", "DimSize = six 5 4"),
    "unknown type": ("MET_SHORT", "MET_SHORTS"),
    "infinite spacing": ("ElementSpacing = 1 1 1", "ElementSpacing = 1 1 inf"),
}
WRONG_NRRD = {
    "no dimension": ("dimension: 3", "dimension: 0"),
    "many dimensions": ("dimension: 3", "dimension: 99999999"),
    "other count of sizes": ("sizes: 6 5 4", "sizes: 6 5"),
    "huge size": ("sizes: 6 5 4", "sizes: 60000 50000 40000"),
    "elsewhere": ("encoding: raw", "encoding: raw\ndata file: /etc/hostname"),
    "above": ("encoding: raw", "encoding: raw\ndata file: ../a.raw"),
    "a list": ("encoding: raw", "encoding: raw\ndata file: LIST"),
    "a pattern": ("encoding: raw", "encoding: raw\ndata file: a%03d.raw 1 4 1"),
    "missing": ("encoding: raw", "encoding: raw\ndata file: other.raw"),
    "unknown type": ("type: short", "type: block"),
    "unknown encoding": ("encoding: raw", "encoding: zstd"),
    "negative skip": ("encoding: raw", "encoding: raw\nbyte skip: -7"),
    "infinite origin": ("space origin: (0,0,0)", "space origin: (0,inf,0)"),
}


@pytest.mark.parametrize(
    ("suffix", "change"),
    [(".mha", change) for change in WRONG_META.values()] + [(".nrrd", change) for change in WRONG_NRRD.values()],
    ids=[*WRONG_META, *(f"NRRD {name}" for name in WRONG_NRRD)],
)
def test_a_header_that_makes_no_sense_is_refused_in_one_sentence(
    suffix: str, change: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    content = written(path, compress=False)
    before, after = (text.encode() for text in change)
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    with pytest.raises(InputError) as refused:
        load_volume(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_voxels_beside_the_header_are_read_and_not_through_a_link(tmp_path: Path) -> None:
    written(tmp_path / "a.nhdr", compress=False)
    assert np.array_equal(load_volume(tmp_path / "a.nhdr").array, ARRAY)
    (tmp_path / "a.raw").rename(tmp_path / "secret")
    (tmp_path / "a.raw").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="a link or no file"):
        load_volume(tmp_path / "a.nhdr")


def test_voxels_behind_skipped_lines_and_bytes_are_found(tmp_path: Path) -> None:
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: {}\n{}data file: a.raw\n\n"
    for packing, skips, before in (
        ("raw", "byte skip: -1\n", b"any"),
        ("raw", "line skip: 1\nbyte skip: 2\n", b"l\nxx"),
    ):
        (tmp_path / "a.nhdr").write_text(head.format(packing, skips))
        (tmp_path / "a.raw").write_bytes(before + ARRAY.tobytes())
        assert np.array_equal(load_volume(tmp_path / "a.nhdr").array, ARRAY), skips
    (tmp_path / "a.nhdr").write_text(head.format("gzip", ""))
    (tmp_path / "a.raw").write_bytes(gzip.compress(ARRAY.tobytes()))
    assert np.array_equal(load_volume(tmp_path / "a.nhdr").array, ARRAY)


@pytest.mark.parametrize("changed", [b"CompressedDataSiz_ =", b"CompressedDataSize = 0 #"])
def test_packed_voxels_of_unknown_length_are_refused(changed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 100, (4, 20, 20), dtype=np.int16))
    sitk.WriteImage(image, str(path), useCompression=True)
    content = path.read_bytes()
    assert b"CompressedDataSize =" in content
    path.write_bytes(content.replace(b"CompressedDataSize =", changed))
    with pytest.raises(InputError, match="cannot be read"):
        load_volume(path)
