"""Packed voxels are read to their end, whatever the header says of them."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.layouts import Layout, Wrong, check_content, check_length, checked_sizes, unpacked

DATA = np.arange(3000, dtype=np.float32)
PACKED = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress, "raw": bytes}


def layout(path: Path, packing: str, count: int = 3000, **more: object) -> Layout:
    return Layout((count,), np.dtype("<f4"), packing, path, 0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", PACKED)
def test_what_was_packed_comes_out(packing: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PACKED[packing](DATA.tobytes()))
    assert b"".join(unpacked(layout(tmp_path / "a", packing))) == DATA.tobytes()
    check_length(layout(tmp_path / "a", packing))
    check_content(layout(tmp_path / "a", packing), "a")


@pytest.mark.parametrize("packing", ["gzip", "zlib", "bzip2"])
def test_damage_and_a_missing_end_are_noticed(packing: str, tmp_path: Path) -> None:
    content = PACKED[packing](DATA.tobytes())
    for wrong in (content[:-1], content[: len(content) // 2], content[:-6] + bytes(6)):
        (tmp_path / "a").write_bytes(wrong)
        with pytest.raises(Wrong, match="damaged"):
            check_content(layout(tmp_path / "a", packing), "a")
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(Wrong, match="cut short"):
        check_content(layout(tmp_path / "a", packing, count=3001), "a")


def test_a_file_of_several_members_is_one(tmp_path: Path) -> None:
    half = DATA.tobytes()[:6000]
    (tmp_path / "a").write_bytes(gzip.compress(half) + gzip.compress(half) + bytes(100))
    assert b"".join(unpacked(layout(tmp_path / "a", "gzip"))) == 2 * half


def test_a_header_that_promises_gigabytes_costs_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(Wrong, match="promises 4e"):
        check_length(layout(tmp_path / "a", "gzip", count=10**9))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(Wrong, match="more than its header says"):
        check_content(layout(tmp_path / "a", "gzip", count=100), "a")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_voxels_that_are_no_numbers_are_counted_across_blocks(tmp_path: Path) -> None:
    values = np.zeros(600_001, np.float32)
    values[[0, 262_143, 262_144, 600_000]] = np.nan, np.inf, -np.inf, np.nan
    (tmp_path / "a").write_bytes(b"xyz" + values.tobytes())
    with pytest.raises(InputError, match="a: 4 voxels have no value"):
        check_content(layout(tmp_path / "a", "raw", count=600_001, start=3, scan=True), "a")


@pytest.mark.parametrize("sizes", [[], [1] * 8, [3, 0], [3, -1], [2**31, 1]])
def test_sizes_without_meaning_are_wrong(sizes: list[int]) -> None:
    with pytest.raises(Wrong):
        checked_sizes(sizes, "sizes")
