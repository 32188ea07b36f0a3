"""Headers of NIfTI files, versions 1 and 2; ITK reads version 1 only."""

from __future__ import annotations

import contextlib
import math
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .layouts import Layout, Wrong, checked_sizes, decompressed, unpacked

_NIFTI_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    128: "3u1",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    2304: "4u1",
}


@dataclass(frozen=True)
class NiftiHeader:
    """A parsed NIfTI header. `version` 1 or 2, `order` "<" or ">"; `content` is the raw header."""

    version: int
    order: str
    content: bytes
    sizes: tuple[int, ...]
    datatype: int
    start: int


def nifti_header(path: Path) -> tuple[NiftiHeader, bool]:
    """The header, and whether the file is gzipped; some programs write plain NIfTI as .nii.gz."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        content = b""
        for block in decompressed(stream, "gzip") if packed else iter(lambda: stream.read(540), b""):
            content += block
            if len(content) >= 540:
                break
    for version, length in ((1, 348), (2, 540)):
        for order in "<>":
            if content[:4] == struct.pack(f"{order}i", length) and len(content) >= length:
                return _nifti_fields(version, order, content[:length]), packed
    raise Wrong("the file is damaged or not what its name says: it does not begin like a NIfTI file")


def _nifti_fields(version: int, order: str, content: bytes) -> NiftiHeader:
    if version == 1:
        count, *sizes = struct.unpack_from(f"{order}8h", content, 40)
        (datatype,) = struct.unpack_from(f"{order}h", content, 70)
        (start,) = struct.unpack_from(f"{order}f", content, 108)
        magic = content[344:347]
    else:
        count, *sizes = struct.unpack_from(f"{order}8q", content, 16)
        (datatype,) = struct.unpack_from(f"{order}h", content, 12)
        (start,) = struct.unpack_from(f"{order}q", content, 168)
        magic = content[4:7]
    if magic[:2] == b"ni":
        raise Wrong("its voxels lie in another file (.img); save it as one file")
    if not 1 <= count <= 7:
        raise Wrong(f"its header says {count} dimensions")
    if not math.isfinite(start) or not 0 <= start < 2**31:
        raise Wrong(f"its header says that the voxels begin at byte {start}")
    return NiftiHeader(version, order, content, checked_sizes(sizes[:count], "sizes"), datatype, int(start))


def nifti_layout(path: Path) -> Layout:
    """The location of the voxels; `Wrong` if the header is invalid."""
    header, packed = nifti_header(path)
    kind = _NIFTI_TYPES.get(header.datatype)
    if kind is None:
        raise Wrong(f"its voxels have the type {header.datatype}, which is no real number; save it in another type")
    dtype = np.dtype(kind if kind[0].isdigit() else header.order + kind)
    return Layout(
        header.sizes,
        dtype,
        "gzip" if packed else "raw",
        path,
        0,
        start=header.start,
        scan=kind in ("f4", "f8"),
    )


@contextlib.contextmanager
def as_version_1(path: Path) -> Iterator[Path]:
    """Yield the file itself or, for NIfTI-2, a temporary NIfTI-1 copy with the same voxels and geometry.

    The copy is readable by this user only. `Wrong` if the sizes exceed NIfTI-1's limits.
    """
    header, _ = nifti_header(path)
    if header.version == 1:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fewshotseg-") as folder:
        copy = Path(folder) / "volume.nii"
        layout = nifti_layout(path)
        with copy.open("wb") as stream:
            stream.write(_version_1(header))
            skip = layout.start
            for block in unpacked(layout):
                stream.write(block[skip:])
                skip = max(skip - len(block), 0)
        yield copy


def _version_1(header: NiftiHeader) -> bytes:
    """348 bytes of a NIfTI-1 header, and four for "no extensions"."""
    order, content = header.order, header.content
    if max(header.sizes) > 32767:
        raise Wrong(f"it is NIfTI-2 with the sizes {header.sizes}, too large to be read here; save it as NRRD")
    made = bytearray(352)

    def put(form: str, at: int, form_2: str, at_2: int) -> None:
        values = struct.unpack_from(order + form_2, content, at_2)
        struct.pack_into(order + form, made, at, *values)

    struct.pack_into(f"{order}i", made, 0, 348)
    put("8h", 40, "8q", 16)  # dim
    put("2h", 70, "2h", 12)  # datatype, bitpix
    put("8f", 76, "8d", 104)  # pixdim
    struct.pack_into(f"{order}f", made, 108, 352.0)  # vox_offset
    put("2f", 112, "2d", 176)  # scl_slope, scl_inter
    put("2h", 252, "2i", 344)  # qform_code, sform_code
    put("6f", 256, "6d", 352)  # quatern_b, c, d, qoffset_x, y, z
    put("12f", 280, "12d", 400)  # srow_x, y, z
    made[123] = struct.unpack_from(f"{order}i", content, 500)[0] & 0xFF  # xyzt_units
    made[344:348] = b"n+1\0"
    return bytes(made)
