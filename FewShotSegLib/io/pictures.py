"""PNG, JPEG, TIFF and BMP: integrity checks, and their interpretation as images or masks.

ITK reads some of them without checking their end. Pillow reads them to the end, including checksums; the chain of TIFF
pages, whose end nothing else marks, is followed here.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.errors import InputError, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_TIFF_SUFFIXES = (".tif", ".tiff")
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_MOST_PAGES = 100_000
_CONTRAST = 64  # grey values between the two sides of a soft edge
_EDGE_PIXELS = 6.0  # maximum number of intermediate pixels per pair of pixels at the edge of a mask
_RINGING = 32  # deviation of JPEG grey values from the two values of a mask
_PLAIN_SHARE = 0.8  # fraction of the pixels of such a mask with one of its two values
_MANY_SHADES = 8


def check_picture(path: Path, name: str) -> None:
    """Raise `InputError` if an image file is corrupt or truncated."""
    if path.suffix.lower() in _TIFF_SUFFIXES:
        _check_pages(path, name)
    if path.suffix.lower() in _JPEG_SUFFIXES and not _has_end(path):
        raise InputError(f"{name} cannot be read: the file was cut short; copy it again.")
    _decoded(path, name)


def has_size(path: Path) -> bool:
    """Whether the pixel size in the header is physical: in TIFF files of microscopes. The dots per inch of other
    formats refer to print."""
    return path.suffix.lower() in _TIFF_SUFFIXES


def grey_picture(path: Path, name: str) -> Array | None:
    """Return the grey values (1, J, I) of a grey + alpha image, which ITK does not read; None for others.

    Transparent pixels keep their grey values; that there are some is logged.
    """
    picture = _decoded(path, name)
    if picture is None or picture.mode not in ("LA", "La"):
        return None
    both = np.asarray(picture.convert("LA"))
    grey, alpha = both[..., 0], both[..., 1]
    if alpha.min() < 255:
        log.warning("%s is transparent in places; its grey values are used there too.", name)
    return grey[np.newaxis]


def mask_picture(path: Path, name: str) -> Array | None:
    """Return the labels (1, J, I) of a mask saved as a 2-D image; None if ITK reads it as well.

    Palette indices are labels. A binary mask with soft edges, or blurred by JPEG, is reduced to its two values. Colours
    without a palette identify no label and are rejected.
    """
    picture = _decoded(path, name)
    if picture is None or getattr(picture, "n_frames", 1) > 1:
        return None
    if picture.mode == "P":
        return np.asarray(picture)[np.newaxis]
    if picture.mode in ("1", "L", "LA", "La"):
        array = np.asarray(picture.convert("L") if picture.mode != "1" else picture).astype(np.uint8)
        return _hardened(array, path.suffix.lower() in _JPEG_SUFFIXES, name)[np.newaxis]
    if picture.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "RGBX"):
        return _grey_of_colours(np.asarray(picture.convert("RGB")), path, name)[np.newaxis]
    return None


def _grey_of_colours(colours: Array, path: Path, name: str) -> Array:
    """Labels of an image whose colours are all grey; others are rejected."""
    jpeg = path.suffix.lower() in _JPEG_SUFFIXES
    spread = int((colours.max(axis=-1).astype(int) - colours.min(axis=-1)).max())
    if spread > (16 if jpeg else 0):
        raise InputError(
            f"{name} is no labelmap: it holds colours, and which label a colour means is not said; save the mask with "
            "grey values 0, 1, 2, ... or with a palette."
        )
    return _hardened(colours[..., 1], jpeg, name)


def _hardened(array: Array, jpeg: bool, name: str) -> Array:
    """The labels (J, I) of a grey mask: its values, or the two values between which soft edges interpolate."""
    low, high = int(array.min()), int(array.max())
    margin = (high - low) / 4 if jpeg else 0
    shades = np.count_nonzero((array > low + margin) & (array < high - margin))
    plain = np.count_nonzero((array <= low + _RINGING) | (array >= high - _RINGING)) >= _PLAIN_SHARE * array.size
    two = high - low >= _CONTRAST and plain and shades <= _EDGE_PIXELS * _edges(array)
    if jpeg and not two:
        raise InputError(f"{name} is no labelmap: JPEG blurs labels; save the mask as PNG.")
    if not jpeg:
        areas = _areas(array)
        kinds = len(set(np.unique(array).tolist()) - areas)
        if not (two and kinds and areas == {low, high}):
            if kinds < _MANY_SHADES:
                return array
            raise InputError(
                f"{name} is no labelmap: it holds {kinds} shades between its labels, as a photograph or a mask with "
                "soft edges does; save a mask with one whole number for each structure."
            )
    log.warning("%s has soft edges; what is nearer to %d than to %d is the structure.", name, high, low)
    return np.where(array >= (low + high) / 2, np.uint8(255 if jpeg else high), np.uint8(0))


def _areas(array: Array) -> set[int]:
    """The values that fill at least 3 x 3 pixels somewhere: labels do, edge values do not."""
    if min(array.shape) < 3:
        return set(np.unique(array).tolist())
    blocks = np.lib.stride_tricks.sliding_window_view(array, (3, 3)).reshape(-1, 9)
    return set(np.unique(blocks[(blocks == blocks[:, :1]).all(axis=1), 0]).tolist())


def _edges(array: Array) -> int:
    """Number of neighbouring pixel pairs on opposite sides of an edge."""
    high = array > (int(array.min()) + int(array.max())) / 2
    return int((high[1:] != high[:-1]).sum() + (high[:, 1:] != high[:, :-1]).sum())


def _decoded(path: Path, name: str) -> Image | None:
    """The image, read to its end; None for kinds of TIFF that Pillow does not support."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
            for page in range(getattr(picture, "n_frames", 1)):
                picture.seek(page)
                picture.load()
            picture.seek(0)
            return picture
    except UnidentifiedImageError:
        if path.suffix.lower() in _TIFF_SUFFIXES:
            return None
        raise InputError(f"{name} cannot be read: the file is damaged or not what its name says.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} cannot be read: it has more than 178 million pixels; make it smaller.") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, ..., depending on the damage
        if path.suffix.lower() in _TIFF_SUFFIXES and "decoder" in str(error) and "not available" in str(error):
            return None
        reason = reason_of(error)
        raise InputError(f"{name} cannot be read: the file is damaged or was cut short ({reason}).") from None


def _has_end(path: Path) -> bool:
    """Whether a JPEG file has its end marker; some programs append zeros or notes."""
    return b"\xff\xd9" in path.read_bytes()[-65536:]


# ---------------------------------------------------------------------------------------------------------------- TIFF


def _check_pages(path: Path, name: str) -> None:
    """Follow the chain of pages of a TIFF or BigTIFF file: each directory, strip and tile must be within the file."""
    damaged = InputError(f"{name} cannot be read: the file is damaged or was cut short; copy it again.")
    try:
        content = np.memmap(path, np.uint8, "r")
        for offsets, counts in _strips(content):
            if any(offset + count > content.size for offset, count in zip(offsets, counts, strict=False)):
                raise damaged
    except (struct.error, ValueError, IndexError, OverflowError):
        raise damaged from None


def _strips(content: Any) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and lengths of the strips or tiles of each page."""
    mark = bytes(content[:4])
    order = {b"II": "<", b"MM": ">"}[mark[:2]] if mark[:2] in (b"II", b"MM") else ""
    big = bool(order) and struct.unpack(f"{order}H", mark[2:4])[0] == 43
    if not order:
        raise ValueError("no TIFF")
    word, size, entry = ("Q", 8, 20) if big else ("I", 4, 12)

    def read(form: str, at: int) -> tuple[int, ...]:
        length = struct.calcsize(order + form)
        if at < 0 or at + length > content.size:
            raise ValueError("beyond the end")
        return struct.unpack(order + form, bytes(content[at : at + length]))

    (at,) = read(word, 8 if big else 4)
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) > _MOST_PAGES:
            raise ValueError("a circle of pages")
        seen.add(at)
        (count,) = read("Q" if big else "H", at)
        first = at + (8 if big else 2)
        tags: dict[int, tuple[int, ...]] = {}
        for number in range(count):
            here = first + number * entry
            tag, kind = read("HH", here)
            (many,) = read(word, here + 4)
            form = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if tag in (273, 279, 324, 325) and form:
                length = many * struct.calcsize(form)
                where = here + 4 + size
                tags[tag] = read(f"{many}{form}", where if length <= size else read(word, where)[0])
        yield tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
        (at,) = read(word, first + count * entry)
