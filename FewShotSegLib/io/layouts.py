"""The location of the voxels in an image file, and whether they are complete and intact."""

from __future__ import annotations

import bz2
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from FewShotSegLib.data.volume import not_finite
from FewShotSegLib.errors import InputError

Packing = Literal["raw", "gzip", "zlib", "bzip2", "text"]

_MOST_DIMENSIONS = 7
_BLOCK = 1 << 20
# Maximum compression ratio: deflate reaches 1032, bzip2 some ten thousands.
_MOST_PACKED: dict[Packing, int] = {"raw": 1, "text": 1, "gzip": 1100, "zlib": 1100, "bzip2": 50_000}
_SPARE = 1 << 20  # trailing bytes that some programs write


class Wrong(Exception):  # noqa: N818 - named after what it says
    """What is wrong with a file, as a phrase that follows its name."""


@dataclass(frozen=True)
class Layout:
    """The location of the voxels of a file: in `data`, from byte `start` of its decompressed content.

    `sizes` as in the header, fastest first. `dtype` has the byte order of the file, None if ITK determines it. `skip`
    is the file offset of the compressed data. Non-finite voxels are searched for where ITK would change them silently
    (`scan`).
    """

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    packing: Packing
    data: Path
    skip: int
    start: int = 0
    scan: bool = False

    @property
    def length(self) -> int:
        """Size of all voxels in bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def checked_sizes(sizes: list[int], called: str) -> tuple[int, ...]:
    """Return the sizes of a header; too many dimensions, none, or invalid sizes are wrong."""
    if not 1 <= len(sizes) <= _MOST_DIMENSIONS:
        raise Wrong(f"its header says {len(sizes)} dimensions")
    if min(sizes) < 1 or max(sizes) >= 2**31:
        raise Wrong(f"its header says the {called} {' '.join(map(str, sizes))}")
    return tuple(sizes)


def check_length(layout: Layout) -> None:
    """Raise `Wrong` if the file is shorter than its header says, without reading it."""
    there = layout.data.stat().st_size - layout.skip
    if layout.packing == "text":
        if there < 2 * math.prod(layout.sizes) - 1:
            raise Wrong("the file was cut short; copy it again")
    elif there * _MOST_PACKED[layout.packing] < layout.start + layout.length:
        raise Wrong(
            f"the file was cut short, or its header is damaged: it promises {layout.length / 1e6:.3g} MB of voxels, "
            f"and {max(there, 0) / 1e6:.3g} MB are there; copy it again"
        )


def check_content(layout: Layout, name: str) -> None:
    """Decompress to the end, including checksums, and check every voxel where ITK would change some."""
    if layout.packing == "text" or (layout.packing == "raw" and not layout.scan):
        return
    wanted, got, bad = layout.start + layout.length, 0, 0
    rest = b""
    for block in unpacked(layout):
        voxels = rest + block[max(layout.start - got, 0) : max(wanted - got, 0)]
        got += len(block)
        if layout.scan:
            whole = len(voxels) - len(voxels) % layout.dtype.itemsize
            values = np.frombuffer(voxels[:whole], layout.dtype)
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            rest = voxels[whole:]
        if got > wanted + _SPARE:
            raise Wrong("it holds more than its header says; the header is damaged, copy the file again")
    if got < wanted:
        raise Wrong("the file was cut short; copy it again")
    if bad:
        raise InputError(f"{name}: {not_finite(bad)}")


def unpacked(layout: Layout) -> Iterator[bytes]:
    """The decompressed blocks of the data file after `skip`; `Wrong` if it is corrupt."""
    with layout.data.open("rb") as stream:
        stream.seek(layout.skip)
        if layout.packing == "raw":
            while block := stream.read(_BLOCK):
                yield block
            return
        yield from decompressed(stream, layout.packing)


def decompressed(stream: Any, packing: Packing) -> Iterator[bytes]:
    """The decompressed blocks of a stream; checksums are verified at its end (gzip: of each member)."""
    damaged = Wrong("its compressed voxels are damaged; copy it again")
    try:
        if packing == "bzip2":
            unpacker = bz2.BZ2Decompressor()
            while not unpacker.eof:
                given = stream.read(_BLOCK) if unpacker.needs_input else b""
                if unpacker.needs_input and not given:
                    raise damaged
                yield unpacker.decompress(given, _BLOCK)
            return
        left = b""
        while True:
            inflater = zlib.decompressobj(31 if packing == "gzip" else 15)
            while not inflater.eof:
                left = left or stream.read(_BLOCK)
                if not left:
                    raise damaged
                yield inflater.decompress(left, _BLOCK)
                left = inflater.unconsumed_tail
            left = (inflater.unused_data or stream.read(_BLOCK)).lstrip(b"\0")
            if packing != "gzip" or left[:2] != b"\x1f\x8b":
                return
    except (zlib.error, OSError) as error:
        raise damaged from error
