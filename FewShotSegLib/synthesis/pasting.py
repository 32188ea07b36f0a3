"""Cutting structures out of a slice, transforming them and other arrays, and pasting them elsewhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from FewShotSegLib.imaging.slices import LabelledSlice

from .plan import Placement

if TYPE_CHECKING:
    from .plan import SynthesisRecipe

Array = np.ndarray[Any, Any]
Window = tuple[slice, slice]

# Fraction of the smaller structure's contour from which two structures are connected. At 0.1, organs that are merely
# adjacent moved together, too, which reduced accuracy on abdominal MR.
_CONTACT = 0.5
_ELASTIC_NODES = 6  # control points per side: deformations no finer than a third of the image


@dataclass(frozen=True, eq=False)
class Cutout:
    """One structure of a slice with some surroundings, to be transformed."""

    pixels: Array  # (3, h + 2, w + 2) float32, bordered: image, mask, distance to the mask in pixels
    origin: Array  # (2,) row and column in the slice of its first pixel inside the border
    box: Array  # (2, 2) first and last row and column that may contribute
    centroid: Array  # (2,) of the structure, or of its group
    area: int


@dataclass(frozen=True, eq=False)
class Pasted:
    """One structure as placed in the sample."""

    window: Window
    image: Array
    mask: Array
    opacity: Array  # of the rim; 1 on the mask
    area: float  # pixels it would cover without occlusion and image borders


def cutouts_of(
    piece: LabelledSlice, recipe: SynthesisRecipe, groups: Sequence[Sequence[int]] = ()
) -> dict[int, Cutout]:
    """Return the slice's structures by label value; in the paper's composite, only those with a pixel above 0. Those of
    a group share one centroid, so that one transform moves them rigidly together.
    """
    cutouts = {int(value): _cutout(piece, int(value), recipe) for value in np.unique(piece.labels) if value}
    for group in (group for group in groups if len(group) > 1):
        centroid = np.argwhere(np.isin(piece.labels, group)).mean(0)
        cutouts.update({value: replace(cutouts[value], centroid=centroid) for value in group})
    return {value: cutout for value, cutout in cutouts.items() if cutout.area}


def moving_together(labels: Array) -> list[tuple[int, ...]]:
    """Return the structures of labels (S, S) in connected groups, such as a wall and its cavity: they share at least
    half of the contour of the smaller one. Every structure is in exactly one group.
    """
    values = [int(value) for value in np.unique(labels) if value]
    rims = {value: ndimage.binary_dilation(labels == value) & (labels != value) for value in values}
    group = {value: value for value in values}
    for one, other in itertools.combinations(values, 2):
        shorter = min(rims[one].sum(), rims[other].sum())
        if (rims[one] & (labels == other)).sum() >= _CONTACT * shorter:
            merged, gone = group[one], group[other]
            group = {value: merged if of == gone else of for value, of in group.items()}
    return [tuple(value for value in values if group[value] == of) for of in sorted(set(group.values()))]


def _cutout(piece: LabelledSlice, value: int, recipe: SynthesisRecipe) -> Cutout:
    mask = piece.labels == value
    reach = 0.0 if recipe.composite == "paper" else recipe.rim * piece.image.shape[0] + recipe.feather_px
    margin = int(np.ceil(reach)) + 2
    rows, columns = np.nonzero(mask)
    h, w = piece.frame.content
    top, bottom = max(0, rows.min() - margin), min(h, rows.max() + margin + 1)
    left, right = max(0, columns.min() - margin), min(w, columns.max() + margin + 1)
    window = slice(top, bottom), slice(left, right)
    inside, image = mask[window], piece.image[window]
    # Holes move with the surrounding structure: a vessel in the liver, not whatever the background has there.
    distance = np.minimum(ndimage.distance_transform_edt(~ndimage.binary_fill_holes(inside)), reach + 1)
    # A rim of a neighbouring structure would be foreground labelled as background.
    distance[(piece.labels[window] != 0) & ~inside] = reach + 1
    if recipe.composite == "paper":
        image, inside = image * inside, inside & (image > 0)
    return Cutout(
        pixels=bordered([image, inside, distance], outside=[0.0, 0.0, reach + 1]),
        origin=np.array([top, left]),
        box=np.array([[top, left], [bottom - 1, right - 1]], dtype=np.float64),
        centroid=np.array([rows.mean(), columns.mean()]),
        area=int(inside.sum()),
    )


def paste(
    cutout: Cutout,
    placement: Placement,
    follow: tuple[Array, Array] | None,
    coordinates: tuple[Array, Array],
    bounds: tuple[float, tuple[int, int]],
    recipe: SynthesisRecipe,
) -> Pasted:
    """Transform a cutout, by `placement` and then by `follow`.

    `coordinates`: sampling position of each pixel before that; `bounds`: its maximum displacement, and the content.
    """
    matrix, offset = placement.transform.inverse(cutout.centroid, len(coordinates[0]))
    if follow is not None:  # sample -> slice -> cutout
        matrix, offset = matrix @ follow[0], matrix @ follow[1] + offset
    window = _reach(matrix, offset, cutout.box, *bounds)
    rows, columns = moved(matrix, offset - cutout.origin, *(array[window] for array in coordinates))
    image, inside, distance = interpolated(cutout.pixels, rows, columns, recipe.interpolation)
    mask = image > 0 if recipe.composite == "paper" else inside > 0.5
    opacity = mask.astype(np.float32)
    rim_px = min(placement.rim_px, recipe.rim * len(coordinates[0]))  # the distance map extends no further
    if recipe.composite == "mask" and rim_px + recipe.feather_px > 0:
        fading = (rim_px + recipe.feather_px - distance) / max(recipe.feather_px, 1e-3)
        opacity = np.maximum(opacity, np.clip(fading, 0.0, 1.0))
    image = image * np.float32(placement.gain) + np.float32(placement.bias)
    return Pasted(window, image, mask, opacity, cutout.area / abs(float(np.linalg.det(matrix))))


def _reach(matrix: Array, offset: Array, box: Array, elastic_px: float, content: tuple[int, int]) -> Window:
    """Return the part of the sample whose pixels can sample from `box`."""
    corners = np.array([[box[i, 0], box[j, 1]] for i in (0, 1) for j in (0, 1)])
    reached = np.linalg.solve(matrix, (corners - offset).T)
    first = np.floor(reached.min(axis=1) - elastic_px - 1).astype(int)
    last = np.ceil(reached.max(axis=1) + elastic_px + 2).astype(int)
    rows, columns = (slice(*np.clip((first[i], last[i]), 0, content[i])) for i in (0, 1))
    return rows, columns


def hidden(pasted: Mapping[int, Pasted], min_visible: float, content: tuple[int, int]) -> list[int]:
    """Return the structures whose visible fraction is below `min_visible` after pasting all, or zero."""
    painted = np.zeros(content, np.int32)
    for value in sorted(pasted, key=lambda value: (-pasted[value].area, value)):
        painted[pasted[value].window][pasted[value].mask] = value
    visible = np.bincount(painted.ravel(), minlength=max(pasted) + 1)
    return [value for value, cut in pasted.items() if visible[value] < max(min_visible * cut.area, 1)]


def content_window(piece: LabelledSlice) -> Window:
    """Return the part of the slice that is not padding."""
    h, w = piece.frame.content
    return slice(0, h), slice(0, w)


def centre_of(piece: LabelledSlice) -> Array:
    """Return (row, column) of the centre of the content."""
    return (np.array(piece.frame.content) - 1) / 2


@functools.lru_cache(maxsize=4)
def grid(image_size: int) -> tuple[Array, Array]:
    """Return every pixel's row and column, each (S, S) float32, read-only."""
    rows, columns = np.indices((image_size, image_size), dtype=np.float32)
    rows.flags.writeable = columns.flags.writeable = False
    return rows, columns


def moved(matrix: Array, offset: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Return `matrix @ (row, column) + offset` for arrays of rows and columns, in float32."""
    m, o = matrix.astype(np.float32), offset.astype(np.float32)
    return m[0, 0] * rows + (m[0, 1] * columns + o[0]), m[1, 0] * rows + (m[1, 1] * columns + o[1])


@functools.lru_cache(maxsize=4)
def _bends(image_size: int) -> Array:
    """Return the cubic B-splines of the control points, (S, nodes) float32; rows sum to 1."""
    x = np.linspace(1, _ELASTIC_NODES - 2, image_size)[:, None] - np.arange(_ELASTIC_NODES)
    x = np.abs(x)
    spline = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))
    return spline.astype(np.float32)


def displacement(seed: int, largest_px: float, image_size: int) -> tuple[Array, Array]:
    """Return a smooth displacement field (down, right) in pixels, at most `largest_px` in either direction.

    Control points are a third of the image apart and the slope is at most 1.5 * largest_px over that distance: 0.23 at
    5 % of the image, so it cannot fold.
    """
    nodes = np.random.default_rng(seed).uniform(-largest_px, largest_px, (2, _ELASTIC_NODES, _ELASTIC_NODES))
    bends = _bends(image_size)
    down, right = (bends @ plane.astype(np.float32) @ bends.T for plane in nodes)
    return down, right


def bordered(channels: Sequence[Array], outside: Sequence[float] | None = None) -> Array:
    """Return (C, h + 2, w + 2) float32: with a one-pixel border that holds the padding values."""
    height, width = channels[0].shape
    source = np.empty((len(channels), height + 2, width + 2), np.float32)
    for plane, channel, value in zip(source, channels, outside or [0.0] * len(channels), strict=True):
        plane[...] = value
        plane[1:-1, 1:-1] = channel
    return source


def interpolated(source: Array, rows: Array, columns: Array, how: str) -> Array:
    """Sample a bordered source (C, h + 2, w + 2) at rows and columns of its interior, as (C, *rows.shape) float32.

    The weights are shared by all channels: 2.7 ms for three channels of 256 x 256 on one core, against 4.8 ms for three
    calls of `scipy.ndimage.map_coordinates` with the same boundary handling.
    """
    channels, height, width = source.shape
    flat = source.reshape(channels, -1)
    y = np.clip(rows + np.float32(1), 0, height - 1)
    x = np.clip(columns + np.float32(1), 0, width - 1)
    if how == "nearest":
        nearest_y, nearest_x = ((axis + np.float32(0.5)).astype(np.intp) for axis in (y, x))
        return flat.take(nearest_y * width + nearest_x, axis=1)
    top = np.minimum(y.astype(np.int32), height - 2)
    left = np.minimum(x.astype(np.int32), width - 2)
    y -= top.astype(np.float32)
    x -= left.astype(np.float32)
    corner = (top * width + left).astype(np.intp)
    result = np.empty((channels, *corner.shape), np.float32)
    for channel, out in zip(flat, result, strict=True):
        upper = _between(channel[corner], channel[corner + 1], x)
        lower = _between(channel[corner + width], channel[corner + (width + 1)], x)
        out[...] = _between(upper, lower, y)
    return result


def _between(first: Array, second: Array, weight: Array) -> Array:
    """Return `first + weight * (second - first)`; both are overwritten."""
    second -= first
    second *= weight
    first += second
    return first
