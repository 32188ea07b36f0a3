"""Label overlays on grey slices: filled or outlined, in distinguishable colours, in radiological orientation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.structures import Color
from FewShotSegLib.errors import InputError

Array = NDArray[Any]


def upright(image: Array, affine: Array, axis: int) -> Array:
    """Return a slice (H, W) across array axis `axis` in radiological orientation.

    Anterior or superior up, the patient's right on the left side; in sagittal views, anterior on the left. Oblique
    slices are oriented to the nearest of these.
    """
    columns = [affine[:3, 2 - a] / np.linalg.norm(affine[:3, 2 - a]) for a in range(3) if a != axis]  # RAS per row, col
    named = _nearest_axes(columns)
    if named[0] < named[1]:  # rows must be along the later of R, A, S
        image, named, columns = image.T, named[::-1], columns[::-1]
    # Rows increase to posterior or inferior, columns to the patient's left or posterior. All RAS minus.
    if columns[0][named[0]] > 0:
        image = image[::-1]
    if columns[1][named[1]] > 0:
        image = image[:, ::-1]
    return image


def _nearest_axes(directions: Sequence[Array]) -> list[int]:
    first = int(np.argmax(np.abs(directions[0])))
    other = np.abs(directions[1]).copy()
    other[first] = -1.0
    return [first, int(np.argmax(other))]


def overlay_png(
    slice01: Array,
    pred: Array,
    ref: Array | None,
    colors: Mapping[int, Color],
    upscale: int = 3,
    *,
    pixel_mm: tuple[float, float] = (1.0, 1.0),
) -> bytes:
    """Return a PNG of a slice (H, W) in [0, 1] with the prediction as a translucent fill and the reference as a
    contour.

    `pred`, `ref`: integer labels (H, W); labels without a colour are not drawn. `pixel_mm`: height and width of a
    pixel, to preserve the aspect ratio; the finer side is enlarged by `upscale`.
    """
    image = np.asarray(slice01, dtype=np.float32)
    if image.ndim != 2 or np.shape(pred) != image.shape or (ref is not None and np.shape(ref) != image.shape):
        raise InputError(
            f"An overlay needs a slice and labels of one shape (H, W), got {image.shape}, {np.shape(pred)} and "
            f"{None if ref is None else np.shape(ref)}."
        )
    finest = min(pixel_mm)
    size = tuple(max(round(n * upscale * mm / finest), 1) for n, mm in zip(image.shape, pixel_mm, strict=True))
    shown = np.repeat(np.clip(_resized(image, size), 0, 1)[:, :, None], 3, axis=2)
    for value, color in colors.items():
        shown = _mixed(shown, 0.36 * _coverage(np.asarray(pred) == value, size), color)
    for value, color in colors.items() if ref is not None else ():
        shown = _outlined(shown, np.asarray(ref) == value, color, upscale)
    return png_bytes(np.rint(shown * 255).astype(np.uint8))


def _outlined(shown: Array, mask: Array, color: Color, upscale: int) -> Array:
    """A light line of the colour over a thin dark one, visible on bright and dark background."""
    if not mask.any():
        return shown
    from scipy.ndimage import distance_transform_edt

    inside = _resized(mask.astype(np.float32), shown.shape[:2])
    core = inside > 0.5
    if core.all() or not core.any():
        return shown
    to_line = np.where(core, distance_transform_edt(core), distance_transform_edt(~core)) - 0.5
    half = 0.22 * upscale + 0.25
    shown = _mixed(shown, 0.5 * np.clip(half + 1.6 - to_line, 0, 1), (0.0, 0.0, 0.0))
    light = tuple(0.35 + 0.65 * part for part in color)
    return _mixed(shown, np.clip(half + 0.5 - to_line, 0, 1), light)


def _mixed(shown: Array, share: Array, color: Sequence[float]) -> Array:
    share = share[:, :, None].astype(np.float32)
    return shown * (1 - share) + np.asarray(color, dtype=np.float32) * share


def _coverage(mask: Array, size: tuple[int, ...]) -> Array:
    """Fraction of each enlarged pixel inside the mask; the soft edge of interpolation becomes one pixel wide."""
    smooth = _resized(mask.astype(np.float32), size)
    return np.clip((smooth - 0.5) * 2.5 * max(size[0] / mask.shape[0], 1) / 3 + 0.5, 0, 1)


def _resized(image: Array, size: tuple[int, ...]) -> Array:
    """Bilinear, pixel centres aligned as areas."""
    from scipy.ndimage import map_coordinates

    rows, columns = (
        (np.arange(new, dtype=np.float32) + 0.5) * old / new - 0.5 for new, old in zip(size, image.shape, strict=True)
    )
    return map_coordinates(image, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")


def png_bytes(rgb: NDArray[np.uint8]) -> bytes:
    """Return an RGB image (H, W, 3) as PNG."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None}  # omitting the version makes the output reproducible
    imsave(stream, np.ascontiguousarray(rgb), format="png", metadata=metadata)
    return stream.getvalue()


def outlined(
    image: NDArray[Any], labels: NDArray[Any], colors: Mapping[int, tuple[float, float, float]]
) -> NDArray[np.uint8]:
    """A slice (H, W) in [0, 1] as an RGB image (H, W, 3), with the outline of each label in its colour (0..1)."""
    picture = np.repeat((255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    for value, color in colors.items():
        picture[outline(labels == value)] = np.round(255 * np.array(color)).astype(np.uint8)
    return picture


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)
