"""Outlines of masks, and masks of outlines, on one slice.

Outlines run along pixel edges, half a pixel from the nearest centres: rounding in a file moves no pixel to the other
side, a single pixel has an outline, and the polygon area equals the pixel area.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_ON_THE_LINE = 1e-3  # tolerance in pixels for a centre to lie on an outline
_SHIFTS = _ON_THE_LINE * np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])


def outlines(mask: Array) -> list[Array]:
    """Return the outline of each connected component of a mask (H, W) as a polygon (N, 2) of (column, row) vertices.

    The centre of the first pixel is (0, 0). A hole is joined to the outer ring by a keyhole, a line traversed in both
    directions, so that a single polygon represents both.

    >>> sorted(outlines(np.array([[True, True]]))[0].tolist())
    [[-0.5, -0.5], [-0.5, 0.5], [1.5, -0.5], [1.5, 0.5]]
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(np.asarray(mask, bool), 1).astype(np.float64)
    found = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    return [
        _corners_only(_joined([_along_edges(points[a:b]) for a, b in pairwise(offsets)])) / 2.0 - 1.0
        for points, offsets in zip(*found, strict=True)
    ]


def _along_edges(points: Array) -> Array:
    """The pixel corners (N, 2) between consecutive edges given by their midpoints; all coordinates doubled.

    In doubled coordinates centres of pixels are even and corners odd.
    """
    edges = np.rint(2 * points).astype(np.int64)
    here, after = edges[:-1], edges[1:]
    return np.where(here % 2, here, np.where(after % 2, after, (here + after) // 2))


def _joined(rings: Sequence[Array]) -> Array:
    """Join an outer ring with its holes: from the leftmost corner of each hole to the ring on its left."""
    path = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: int(ring[:, 0].min())):
        start = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        x, y = hole[start]
        # An edge of the hole goes down from that corner; the nearest edge to its left belongs to the path.
        after = np.roll(path, -1, axis=0)
        upright = (path[:, 0] == after[:, 0]) & (path[:, 1] + after[:, 1] == 2 * y + 2) & (path[:, 0] < x)
        edge = int(np.flatnonzero(upright)[np.argmax(path[upright, 0])])
        at = edge if path[edge, 1] == y else (edge + 1) % len(path)
        path = np.concatenate([path[: at + 1], np.roll(hole, -start, axis=0), hole[start : start + 1], path[at:]])
    return path


def _corners_only(path: Array) -> Array:
    """The vertices of a closed path where its direction changes."""
    before, after = np.sign(path - np.roll(path, 1, axis=0)), np.sign(np.roll(path, -1, axis=0) - path)
    return path[(before != after).any(axis=1)]


def area(polygon: Array) -> float:
    """Return the area of a polygon (N, 2) in pixels.

    >>> area(np.array([[0, 0], [2, 0], [2, 1], [0, 1]]))
    2.0
    """
    x, y = np.asarray(polygon, np.float64).T
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


def filled(polygons: Iterable[tuple[Array, bool]], shape: tuple[int, int]) -> tuple[Array, bool]:
    """Return the mask (H, W) of the polygons (N, 2) of one structure on a slice, and whether some overlap partially.

    A polygon within another one is a hole in it, one in the hole an island. Partially overlapping ones are merged or,
    where both are flagged (the bool of each), combined by exclusive or. Within a polygon the even-odd rule applies. A
    pixel belongs to it if its centre does; centres on the line count as inside the structure.
    """
    mask, overlapping = np.zeros(shape, bool), False
    for polygon, exclusive in sorted(polygons, key=lambda pair: -area(pair[0])):
        each = [_even_odd(polygon + shift, shape) for shift in _SHIFTS]
        widest, narrowest = np.logical_or.reduce(each), np.logical_and.reduce(each)
        if not (narrowest & mask).any():
            mask |= widest
        elif not (narrowest & ~mask).any():
            mask &= ~narrowest
        elif exclusive:
            mask ^= narrowest
        else:
            mask, overlapping = mask | widest, True
    return mask, overlapping


def _even_odd(polygon: Array, shape: tuple[int, int]) -> Array:
    """The pixels (H, W) with an odd number of polygon edges on their left."""
    height, width = shape
    x, y = polygon.T
    x_after, y_after = np.roll(x, -1), np.roll(y, -1)
    first = np.clip(np.ceil(np.minimum(y, y_after)), 0, height).astype(np.int64)
    count = np.clip(np.ceil(np.maximum(y, y_after)), 0, height).astype(np.int64) - first
    side = np.repeat(np.arange(len(x)), count)
    row = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
    crossing = x[side] + (row - y[side]) * (x_after - x)[side] / (y_after - y)[side]
    column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    crossed = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(crossed, axis=1)[:, :width] % 2 == 1
