"""Mapping between a slice and the network's input square: isotropic resizing, padding, and the exact inverse.

A slice of a volume is `array.take(index, axis)`, shape (H, W): the two remaining array axes in their order. The network
input is a square of `image_size` pixels that are isotropic in mm; the longest side fills the square and the rest is
zero padding at the bottom or on the right.

Pixel centres are at integers and pixel areas reach half a pixel beyond them (the "half pixel" or `align_corners=False`
convention), for voxels as for network pixels: `x = (c + 0.5) * sx - 0.5`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SliceFrame:
    """Position of a slice in its volume and in the network's square; depends on geometry only, never on content."""

    axis: int
    """Array axis of (K, J, I) across which is sliced."""
    index: int
    shape: tuple[int, int]
    """(H, W) of the slice in voxels."""
    scale: tuple[float, float]
    """(sy, sx) network pixels per voxel."""
    image_size: int
    content: tuple[int, int]
    """(h, w) network pixels in use; the rest is padding at the bottom and on the right."""

    @property
    def source_axes(self) -> tuple[int, int]:
        """Columns of a (N, 3) array of I, J, K coordinates that hold the slice's (row, column)."""
        rows, columns = (2 - axis for axis in range(3) if axis != self.axis)
        return rows, columns


def frame_of(volume: Volume, axis: int, index: int, image_size: int) -> SliceFrame:
    """Return the frame of slice `index` along array axis `axis` (0: K, 1: J, 2: I).

    Both sides are rounded to whole network pixels, so pixels are isotropic up to half a pixel over the whole side.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"The slice axis must be 0 (k), 1 (j) or 2 (i), got {axis!r}.")
    if image_size < 1:
        raise InputError(f"The image size must be at least 1 pixel, got {image_size}.")
    shape = volume.array.shape
    if not 0 <= index < shape[axis]:
        letter, last = "kji"[axis], shape[axis] - 1
        raise InputError(f"Slice {letter}={index} is outside the volume, which has {letter}=0 to {last}.")
    spacing_mm = tuple(volume.spacing_mm)[::-1]  # array order
    (height, height_mm), (width, width_mm) = ((shape[a], shape[a] * spacing_mm[a]) for a in range(3) if a != axis)
    pixels_per_mm = image_size / max(height_mm, width_mm)
    h, w = (min(image_size, max(1, round(side_mm * pixels_per_mm))) for side_mm in (height_mm, width_mm))
    return SliceFrame(axis, int(index), (height, width), (h / height, w / width), int(image_size), (h, w))


def to_network(image: Array, frame: SliceFrame) -> Array:
    """Return a slice (H, W) as the network's (S, S) float32: bilinear, antialiased when downsampling, zero-padded."""
    _check_shape(image, frame)
    (height, width), (h, w) = frame.shape, frame.content
    content = _resize(image, _weights(h, height, height / h), _weights(w, width, width / w))
    return _padded(content, frame)


def labels_to_network(labels: Array, frame: SliceFrame) -> Array:
    """Return integer labels (H, W) as the network's (S, S) int32.

    Upsampling is nearest neighbour, which nearest-neighbour downsampling inverts exactly. Downsampling is a vote of the
    voxels with the weights of `to_network`: nearest neighbour would be half a voxel off centre at every even factor,
    shifting labels against the image. A pixel that is half structure is structure, and a structure that would vanish
    keeps the pixel with its largest fraction.
    """
    _check_shape(labels, frame)
    (height, width), (h, w) = frame.shape, frame.content
    if h >= height and w >= width:
        content = labels[_nearest(h, height, height / h)][:, _nearest(w, width, width / w)]
    else:
        content = _vote(labels, _weights(h, height, height / h), _weights(w, width, width / w))
    return _padded(content.astype(np.int32), frame)


def mask_from_network(logits: Array, frame: SliceFrame) -> Array:
    """Return logits (or probabilities) on the voxel grid, (H, W) float32.

    `logits` (h', w') may have any resolution as long as they cover the whole padded square. A single bilinear
    interpolation to the voxels, antialiased where voxels are larger than logit pixels.
    """
    step_y, step_x = (scale * n / frame.image_size for scale, n in zip(frame.scale, logits.shape, strict=True))
    rows = _weights(frame.shape[0], logits.shape[0], step_y)
    columns = _weights(frame.shape[1], logits.shape[1], step_x)
    return _resize(logits, rows, columns)


def xy_from_ijk(points_ijk: Array, frame: SliceFrame) -> Array:
    """Return (N, 3) voxel coordinates as (N, 2) network pixel coordinates, x to the right and y down."""
    points_ijk = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
    rows, columns = frame.source_axes
    sy, sx = frame.scale
    return np.stack([(points_ijk[:, columns] + 0.5) * sx - 0.5, (points_ijk[:, rows] + 0.5) * sy - 0.5], axis=1)


@functools.lru_cache(maxsize=256)
def _weights(n_out: int, n_in: int, step: float) -> Any:
    """Return the sparse (n_out, n_in) float32 matrix of linear interpolation along one axis.

    Output i is at input coordinate `(i + 0.5) * step - 0.5`. The triangle filter has a half width of one input pixel,
    or of `step` when downsampling (antialiasing); rows sum to 1, so edge values are replicated.
    """
    support = max(1.0, step)
    centres = np.minimum((np.arange(n_out) + 0.5) * step - 0.5, n_in - 1.0)
    first = np.floor(centres - support).astype(int)
    taps = first[:, None] + np.arange(int(np.ceil(2 * support)) + 2)
    values = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / support)
    values[(taps < 0) | (taps >= n_in)] = 0.0
    values /= values.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(values)
    entries = (values[rows, columns].astype(np.float32), (rows, taps[rows, columns]))
    return sparse.csr_array(entries, shape=(n_out, n_in))


def _nearest(n_out: int, n_in: int, step: float) -> Array:
    """Return for each output the index of the input pixel that contains its centre."""
    # A centre on the edge between two pixels must not change sides by rounding.
    return np.clip(np.floor((np.arange(n_out) + 0.5) * step + 1e-9).astype(int), 0, n_in - 1)


def _resize(image: Array, rows: Any, columns: Any) -> Array:
    """Return `rows @ image @ columns.T` as float32; sparse, as each row has two to four weights."""
    half = rows @ np.ascontiguousarray(image, dtype=np.float32)
    return np.ascontiguousarray((columns @ np.ascontiguousarray(half.T)).T)


def _vote(labels: Array, rows: Any, columns: Any) -> Array:
    """Return the label with the largest fraction of each output pixel that is at least half structure."""
    values = np.unique(labels)
    values = values[values != 0]
    result = np.zeros((rows.shape[0], columns.shape[0]), np.int32)
    if not len(values):
        return result
    shares = np.stack([_resize(labels == value, rows, columns) for value in values])
    winner = values[shares.argmax(axis=0)]
    inside = shares.sum(axis=0) >= 0.5 - 1e-6
    result[inside] = winner[inside]
    for value, share in zip(values, shares, strict=True):
        if not (result == value).any():
            result[np.unravel_index(share.argmax(), share.shape)] = value
    return result


def _padded(content: Array, frame: SliceFrame) -> Array:
    square = np.zeros((frame.image_size, frame.image_size), content.dtype)
    square[: content.shape[0], : content.shape[1]] = content
    return square


def _check_shape(image: Array, frame: SliceFrame) -> None:
    if image.shape != frame.shape:
        raise InputError(f"A slice of {frame.shape[0]} x {frame.shape[1]} voxels is expected here, got {image.shape}.")
