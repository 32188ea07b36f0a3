"""The grid to which the cases of a data set are resampled: one orientation, spacing and patch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

from .reindex import turned

_RAS_AXIS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Grid:
    """The common grid of all cases: spacing (i, j, k) in mm, patch (D, H, W) in voxels along k, j, i, and orientation.

    `orientation` is the anatomical direction of increasing i, j and k, "LPS" for axial slices as Slicer shows them.
    Oblique cases keep their tilt: axes are permuted and flipped, never rotated.
    """

    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    orientation: str = "LPS"

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in self.spacing_mm):
            raise InputError(f"A spacing is three positive numbers of mm along i, j and k, got {self.spacing_mm}.")
        if len(self.patch) != 3 or not all(size >= 1 for size in self.patch):
            raise InputError(f"A patch is three sizes (D, H, W) of at least 1 voxel, got {self.patch}.")
        axes = [_RAS_AXIS.get(letter, (-1, 0))[0] for letter in self.orientation]
        if sorted(axes) != [0, 1, 2]:
            raise InputError(f'An orientation is like "LPS": one of L R, of P A and of S I, got "{self.orientation}".')

    @classmethod
    def of(cls, volume: Volume, patch: tuple[int, int, int], spacing_mm: Sequence[float] | None = None) -> Grid:
        """The grid of a target volume, at its own spacing unless one is given."""
        i, j, k = (float(mm) for mm in (volume.spacing_mm if spacing_mm is None else spacing_mm))
        return cls((i, j, k), patch, orientation_of(volume.affine))


def orientation_of(affine: NDArray[Any]) -> str:
    """Return the nearest anatomical direction of increasing i, j, k.

    >>> orientation_of(np.diag([-1.0, -1.0, 3.0, 1.0]))
    'LPS'
    """
    letters = {pair: letter for letter, pair in _RAS_AXIS.items()}
    signed = _signed_axes(affine)
    axes = np.abs(signed).argmax(axis=0)
    return "".join(letters[(int(axes[at]), int(signed[axes[at], at]))] for at in range(3))


def _signed_axes(affine: NDArray[Any]) -> NDArray[np.int64]:
    """(3, 3) signed permutation: column i has +-1 in the row of the RAS axis along which index i runs."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    signed = np.zeros((3, 3), dtype=np.int64)
    left = np.abs(directions)
    for _ in range(3):  # the least oblique first, so that two oblique axes never claim the same direction
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        signed[row, column] = 1 if directions[row, column] > 0 else -1
        left[row, :] = left[:, column] = -1
    return signed


def onto_grid(
    image: NDArray[Any], labels: NDArray[Any], affine: NDArray[Any], grid: Grid
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return image and labels (D, H, W) in the orientation and spacing of the grid, with the size this implies.

    The image is interpolated linearly, with antialiasing where voxels become larger; labels by nearest neighbour. A
    single slice stays one.
    """
    return image_onto_grid(image, affine, grid), labels_onto_grid(labels, affine, grid)


def image_onto_grid(image: NDArray[Any], affine: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    """Return the image of `onto_grid` alone."""
    image, steps = _turned_to(image, affine, grid)
    image = image.astype(np.float32)
    for axis, step in enumerate(steps):
        at = _positions(image.shape[axis], step)
        if at is not None:
            weights = _weights(at, image.shape[axis], max(1.0, step))
            image = np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(image)


def labels_onto_grid(labels: NDArray[Any], affine: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Return the labels of `onto_grid` alone."""
    labels, steps = _turned_to(labels, affine, grid)
    for axis, step in enumerate(steps):
        at = _positions(labels.shape[axis], step)
        if at is not None:
            labels = np.take(labels, np.clip(np.floor(at + 0.5), 0, labels.shape[axis] - 1).astype(int), axis=axis)
    return np.ascontiguousarray(labels)


def _turned_to(array: NDArray[Any], affine: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], list[float]]:
    """An array reoriented to the grid, and the grid's voxel size in units of the array's, along each axis."""
    own, wanted = _signed_axes(affine), np.zeros((3, 3), dtype=np.int64)
    for index, letter in enumerate(grid.orientation):
        axis, sign = _RAS_AXIS[letter]
        wanted[axis, index] = sign
    turn = np.eye(4)
    turn[:3, :3] = wanted.T @ own
    spacing = np.abs(turn[:3, :3]) @ np.linalg.norm(affine[:3, :3], axis=0)
    steps = [new_mm / mm for mm, new_mm in zip(spacing[::-1], grid.spacing_mm[::-1], strict=True)]
    return turned(array, turn), steps


def _positions(size: int, step: float) -> NDArray[Any] | None:
    """Positions of the new voxels in old voxel coordinates, with the centre fixed; None if nothing changes."""
    if size == 1 or abs(step - 1) < 1e-3:
        return None
    new = max(1, round(size / step))
    return (np.arange(new) - (new - 1) / 2) * step + (size - 1) / 2


def _weights(at: NDArray[Any], size: int, width: float) -> NDArray[np.float32]:
    """(new, old) weights of a triangle filter of a half width in old voxels: linear interpolation, or antialiasing."""
    triangle = np.clip(1 - np.abs(at[:, None] - np.arange(size)) / width, 0, None)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
