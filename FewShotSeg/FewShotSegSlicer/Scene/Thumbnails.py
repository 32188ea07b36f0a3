"""Pictures of slices, turned as radiologists look at them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from FewShotSegLib.data.structures import structure_colors

from .Geometry import Array

_OPACITY = 0.45
# Directions in RAS to the right and down on the screen, as in Slicer's sagittal, coronal and axial views.
_SCREEN = {0: ((0, -1, 0), (0, 0, -1)), 1: ((-1, 0, 0), (0, 0, -1)), 2: ((-1, 0, 0), (0, -1, 0))}


def thumbnail(
    image: Array,
    labels: Array,
    structures: Mapping[int, str],
    window: tuple[float, float],
    axis: int,
    affine: Array,
    size: int = 128,
) -> Array:
    """Return a picture (H, W, 3), uint8, as `asOnScreen` turns it, with the structures in their colours.

    `image` and `labels` (rows, columns) are a slice along array `axis`; `window` are the values shown black and white.
    """
    low, high = window
    grey = np.clip((image.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    rgb = np.repeat(grey[..., np.newaxis], 3, axis=2)
    for value, color in structure_colors(structures).items():
        mask = labels == value
        rgb[mask] = (1 - _OPACITY) * rgb[mask] + _OPACITY * np.array(color)
    return asOnScreen((255 * rgb).round().astype(np.uint8), axis, affine, size)


def asOnScreen(picture: Array, axis: int, affine: Array, size: int) -> Array:
    """Return a picture (rows, columns, ...) of a slice along array `axis`, turned as in Slicer's views, with square
    pixels of which the longer side gets `size`: nearest neighbours.
    """
    rows, columns = (affine[:3, 2 - a] for a in range(3) if a != axis)  # step to the next row or column, RAS mm
    normal = np.linalg.inv(affine[:3, :3])[2 - axis]
    right, down = np.array(_SCREEN[int(np.abs(normal).argmax())])
    if abs(rows @ right) > abs(columns @ right):
        picture, rows, columns = picture.swapaxes(0, 1), columns, rows
    picture = picture if rows @ down > 0 else picture[::-1]
    picture = picture if columns @ right > 0 else picture[:, ::-1]
    extents = np.array([picture.shape[0] * np.linalg.norm(rows), picture.shape[1] * np.linalg.norm(columns)])
    pixels = np.maximum((extents / extents.max() * size).round().astype(int), 1)
    at = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(pixels, picture.shape, strict=False)]
    return np.ascontiguousarray(picture[np.ix_(*at)])
