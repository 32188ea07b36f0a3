"""Validation of NRRD, MetaImage and NIfTI files before ITK reads them: does the content match the header?

ITK misreads some corrupt files, allocates gigabytes because a header says so, crashes on an invalid number, and follows
the name of a data file wherever it leads. What passes here is read correctly.

Formats: https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/MetaIO/Documentation,
https://nifti.nimh.nih.gov/nifti-1 and nifti-2.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from FewShotSegLib.errors import InputError

from .files import known_suffix
from .layouts import Layout, Packing, Wrong, check_content, check_length, checked_sizes
from .nifti import nifti_layout

_LONGEST_HEADER = 16 << 20  # bytes; segmentations with hundreds of segments have long headers
_LONGEST_LINE = 1 << 20
_UNREADABLE = (struct.error, ValueError, OverflowError, UnicodeError, IndexError, KeyError, EOFError, zlib.error)


def check_volume_file(path: Path, name: str) -> None:
    """Raise `InputError` if a NRRD, MetaImage or NIfTI file is corrupt, truncated, shorter than its header says, or
    stores its voxels elsewhere than next to its header."""
    try:
        layout = layout_of(path)
        check_length(layout)
        check_content(layout, name)
    except Wrong as error:
        raise InputError(f"{name} cannot be read: {error}.") from None
    except InputError:  # a ValueError, too
        raise
    except _UNREADABLE as error:
        raise InputError(f"{name} cannot be read: the file is damaged or not what its name says ({error}).") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from None


def is_detached(path: Path) -> bool:
    """Whether the voxels of a volume file are in a separate file; `InputError` if it cannot be read."""
    try:
        return layout_of(path).data != path
    except (Wrong, OSError, *_UNREADABLE) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def layout_of(path: Path) -> Layout:
    """The location of the voxels according to the header."""
    suffix = known_suffix(path).lower().removeprefix(".seg")
    if suffix in (".nrrd", ".nhdr"):
        return _nrrd(path)
    return _meta_image(path) if suffix in (".mha", ".mhd") else nifti_layout(path)


def _beside(header: Path, name: str) -> Path:
    """The data file that a header names: next to it, and not a symbolic link."""
    if "%" in name or name.split(None, 1)[0].upper() == "LIST":
        raise Wrong("its voxels lie in a list of files; save it as one file")
    if Path(name).name != name or "\\" in name or name in (".", ".."):
        raise Wrong(f'its voxels lie in the file "{name}", which is not beside it; put both into one folder')
    data = header.with_name(name)
    if not os.path.lexists(data):
        raise Wrong(f'its voxels lie in the file "{name}", which is missing; put it beside it')
    if data.is_symlink() or not data.is_file():
        raise Wrong(f'its voxels lie in "{name}", which is a link or no file; put the file itself beside it')
    return data


# ---------------------------------------------------------------------------------------------------------------- NRRD

_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_NRRD_DTYPE = {word: kind for kind, words in _NRRD_TYPES.items() for word in words}
_NRRD_PACKING: dict[str, Packing] = {
    **dict.fromkeys(("raw",), "raw"),
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
    **dict.fromkeys(("gz", "gzip"), "gzip"),
    **dict.fromkeys(("bz2", "bzip2"), "bzip2"),
}


def _nrrd(path: Path) -> Layout:
    fields, end = _nrrd_fields(path)
    sizes = checked_sizes([int(word) for word in fields.get("sizes", "").split()], "sizes")
    if int(fields.get("dimension", "0")) != len(sizes):
        raise Wrong(f"its header says {fields.get('dimension', 'no')} dimensions and {len(sizes)} sizes")
    called, encoded = fields.get("type", ""), fields.get("encoding", "")
    kind, packing = _NRRD_DTYPE.get(called.lower()), _NRRD_PACKING.get(encoded.lower())
    if kind is None or packing is None:
        what = f'the type "{called}"' if kind is None else f'the encoding "{encoded}"'
        raise Wrong(f"its header says {what}, which is not read here; save it again, for example with 3D Slicer")
    for key in ("space directions", "space origin", "spacings", "thicknesses"):
        _check_numbers(fields.get(key, ""))
    dtype = np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + kind)
    named = fields.get("data file", fields.get("datafile"))
    data = path if named is None else _beside(path, named)
    layout = Layout(sizes, dtype, packing, data, end if named is None else 0)
    return _skipped(layout, int(fields.get("line skip", "0")), int(fields.get("byte skip", "0")))


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the header by name in lower case, and its length; key/value pairs are left out."""
    content = _head(path)
    if content[:4] != b"NRRD":
        raise Wrong("the file is damaged or not what its name says: it does not begin like a NRRD file")
    end = re.search(rb"\r?\n\r?\n", content)
    if end is None and len(content) == _LONGEST_HEADER:
        raise Wrong("its header has no end; the file is damaged")
    header = content[: end.start() if end else len(content)].decode("latin-1")
    fields: dict[str, str] = {}
    for line in header.splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon and not value.startswith("=") and line[0] != "#":
            fields[key.strip().lower()] = value.strip()
    return fields, end.end() if end else len(content)


def _check_numbers(text: str) -> None:
    """Reject invalid numbers in a header, which make ITK fail obscurely."""
    for word in re.split(r"[\s(),]+", text):
        if word and word.lower() not in ("none", "nan") and not math.isfinite(float(word)):
            raise Wrong(f'its header says "{text}", where finite numbers belong')


def _skipped(layout: Layout, lines: int, count: int) -> Layout:
    """The layout of a NRRD file after skipping lines and bytes; -1 bytes: the voxels are at the end."""
    if lines < 0 or count < -1 or lines > 10**6 or (count == -1 and layout.packing != "raw"):
        raise Wrong(f"its header says to skip {lines} lines and {count} bytes")
    skip = layout.skip
    if count == -1:
        skip = max(layout.data.stat().st_size - layout.length, 0)
    else:
        with layout.data.open("rb") as stream:
            stream.seek(skip)
            for _ in range(lines):
                if not stream.readline(_LONGEST_LINE):
                    break
            skip = stream.tell() + (count if layout.packing == "raw" else 0)
    start = count if count > 0 and layout.packing != "raw" else 0
    return replace(layout, skip=skip, start=start)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_LONGEST_HEADER)


# ----------------------------------------------------------------------------------------------------------- MetaImage

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def _meta_image(path: Path) -> Layout:
    fields, end = _meta_fields(path)
    count = int(fields.get("NDims", "0"))
    sizes = checked_sizes([int(word) for word in fields.get("DimSize", "").split()], "sizes")
    if count != len(sizes):
        raise Wrong(f"its header says {count} dimensions and {len(sizes)} sizes")
    kind = _META_TYPES.get(fields.get("ElementType", "").upper().removesuffix("_ARRAY"))
    if kind is None:
        raise Wrong(f'its header says the type "{fields.get("ElementType", "")}"')
    for key in ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "TransformMatrix", "Rotation"):
        _check_numbers(fields.get(key, ""))
    components = int(fields.get("ElementNumberOfChannels", "1"))
    order = ">" if _is_true(fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", ""))) else "<"
    named = fields["ElementDataFile"]
    data = path if named.upper() == "LOCAL" else _beside(path, named)
    packing: Packing = "zlib" if _is_true(fields.get("CompressedData", "")) else "raw"
    if packing == "zlib" and int(fields.get("CompressedDataSize", "0")) < 1:
        raise Wrong("its header does not say how many bytes the packed voxels take")  # ITK was seen to misread them
    if packing == "raw" and "BinaryData" in fields and not _is_true(fields["BinaryData"]):
        packing = "text"
    layout = Layout(
        checked_sizes([components, *sizes], "sizes"), np.dtype(order + kind), packing, data, end if data == path else 0
    )
    skip = int(fields.get("HeaderSize", "0"))
    if skip == -1:
        return replace(layout, skip=max(data.stat().st_size - layout.length, 0))
    if skip < 0:
        raise Wrong(f"its header says to skip {skip} bytes")
    return replace(layout, skip=layout.skip + skip)


def _is_true(text: str) -> bool:
    return text.strip()[:1].upper() in ("T", "1", "Y")


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the header, and its length; it ends with the line that names the data."""
    content = _head(path)
    match = re.search(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)[ \t]*\r?$\n?", content, re.MULTILINE)
    if match is None or re.search(rb"^NDims[ \t]*=", content[: match.start()], re.MULTILINE) is None:
        raise Wrong("the file is damaged or not what its name says: its header is not that of a MetaImage")
    fields: dict[str, str] = {}
    for line in content[: match.end()].decode("latin-1").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            fields[key.strip()] = value.strip()
    if not fields.get("ElementDataFile"):
        raise Wrong("its header does not say where the voxels are")
    return fields, match.end()
