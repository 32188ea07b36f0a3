"""Volumes and labelmaps: an array, and its geometry in patient space.

Arrays are indexed (K, J, I), as in SimpleITK and Slicer; coordinates are written (i, j, k). The affine maps the
indices (i, j, k) of voxel centres to RAS millimetres (x right, y anterior, z superior).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

AXES = {"k": 0, "j": 1, "i": 2}  # letter of an IJK axis -> axis of a (K, J, I) array
AXIS_LETTERS = "kji"  # array axis -> letter


def axis_index(axis: Any) -> int:
    """Return the array axis along which slices are stacked, given as a letter or as the axis itself.

    >>> axis_index("k"), axis_index(2)
    (0, 2)
    """
    if isinstance(axis, str) and axis in AXES:
        return AXES[axis]
    if not isinstance(axis, bool) and axis in (0, 1, 2):
        return int(axis)
    raise InputError(f"The slice axis is 0 (k), 1 (j) or 2 (i), or its letter, got {axis!r}.")


# ---------------------------------------------------------------------------------------------------------- geometry


def ras_from_ijk(affine: Array, points_ijk: Array) -> Array:
    """Return RAS mm (N, 3) of voxel coordinates (N, 3) in i, j, k order.

    >>> ras_from_ijk(np.diag([2.0, 2.0, 5.0, 1.0]), [[1, 0, 3]]).tolist()
    [[2.0, 0.0, 15.0]]
    """
    points = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
    return points @ affine[:3, :3].T + affine[:3, 3]


def ijk_from_ras(affine: Array, points_ras: Array) -> Array:
    """Return continuous voxel coordinates (N, 3), i, j, k order, of RAS mm (N, 3)."""
    points = np.asarray(points_ras, dtype=np.float64).reshape(-1, 3)
    return np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).T).T


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image: array (K, J, I) of finite real numbers, affine (4, 4) from (i, j, k) to RAS mm."""

    array: Array
    affine: Array

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        _check_array(array)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @classmethod
    def from_array(cls, array: Any, spacing_mm: Any) -> Volume:
        """Return a volume from an array (K, J, I) without patient geometry: voxel spacing (3,) in mm, I, J, K order.

        Oriented like usual axial slices: i increases to the patient's left, j to posterior, k to superior, and the
        centre of the first voxel is at the origin.

        >>> Volume.from_array(np.zeros((4, 3, 2)), (0.7, 0.7, 5)).affine.diagonal().tolist()
        [-0.7, -0.7, 5.0, 1.0]
        """
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (3,) or not np.isfinite(spacing).all() or not (spacing > 0).all():
            raise InputError(f"The spacing must be three positive numbers in mm (I, J, K), got {spacing_mm!r}.")
        return cls(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (K, J, I)."""
        k, j, i = self.array.shape
        return k, j, i

    @property
    def spacing_mm(self) -> Array:
        """Voxel size (3,) in mm, in I, J, K order."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def acquisition_axis(self) -> int:
        """The array axis across the acquired slices: one voxel thick, else with the largest spacing, ties to axis 0."""
        if 1 in self.shape:
            return self.shape.index(1)
        spacing = self.spacing_mm[::-1]
        thicker = spacing > spacing[0] * (
            1 + 1e-3
        )  # rounding in headers must not change the axis of an isotropic volume
        return int(np.argmax(np.where(thicker, spacing, 0.0))) if thicker.any() else 0

    def like(self, array: Array) -> Volume:
        """Return another array of the same shape with the same geometry."""
        if np.shape(array) != self.shape:
            raise InputError(f"An array of shape {np.shape(array)} does not fit a volume of shape {self.shape}.")
        return Volume(array, self.affine)

    def same_geometry(self, other: Volume, tolerance_mm: float = 1e-3) -> bool:
        """Return whether both have the same shape and all voxel centres agree within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = corners_ijk(self.shape)  # the difference of two affine maps is largest at a corner
        distance = ras_from_ijk(self.affine, corners) - ras_from_ijk(other.affine, corners)
        return bool(np.linalg.norm(distance, axis=1).max() <= tolerance_mm)


def corners_ijk(shape: tuple[int, int, int]) -> Array:
    k, j, i = (np.array([0, n - 1]) for n in shape)
    return np.stack(np.meshgrid(i, j, k, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)


def _check_array(array: Array) -> None:
    if array.dtype.kind not in "biuf":
        raise InputError(f"Voxels must be real numbers, got the type {array.dtype}.")
    if array.ndim != 3:
        raise InputError(f"A volume has 3 dimensions (K, J, I), got {array.ndim} with shape {array.shape}.")
    if array.size == 0:
        raise InputError(f"A volume must hold at least one voxel, got the shape {array.shape}.")
    if array.dtype.kind != "f":
        return
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InputError(not_finite(bad))


def not_finite(count: int) -> str:
    """The message about voxels that are NaN or infinite."""
    voxels = "1 voxel has" if count == 1 else f"{count} voxels have"
    return (
        f"{voxels} no value (NaN or infinite), as maps often have outside the body; export the image again with a "
        "background value there, such as its lowest."
    )


def _checked_affine(affine: Any) -> Array:
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"An affine is a finite (4, 4) matrix with last row 0 0 0 1, got {matrix.tolist()}.")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # Voxel volume relative to a box with the same edges: 0 for collinear axes, dimensionless.
    if not lengths.all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise InputError(f"An affine must be invertible, with no zero spacing, got {matrix.tolist()}.")
    return matrix


# ---------------------------------------------------------------------------------------------------------- labelmaps


@dataclass(frozen=True, eq=False)
class Labelmap:
    """A volume of unsigned integers, 0 = background, and the name of each value.

    Structures of a segmentation may overlap, but a voxel has one value: `hidden` {value: mask (K, J, I)} marks the
    voxels of a structure that have the value of another one. `mask` returns all that belong to it.
    """

    volume: Volume
    structures: Mapping[int, str]
    hidden: Mapping[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.volume.array.dtype.kind != "u":
            raise InputError(f"A labelmap holds unsigned integers, got {self.volume.array.dtype}.")
        object.__setattr__(self, "structures", checked_structures(self.structures))

    def mask(self, value: int) -> Array:
        """Return the mask (K, J, I) of the structure with this value, including voxels covered by others."""
        mask = self.volume.array == value
        return mask | self.hidden[value] if value in self.hidden else mask


def checked_structures(structures: Mapping[int, str]) -> dict[int, str]:
    """Return {value: name} sorted by value; values must be at least 1, names nonempty and distinct."""
    for value, name in structures.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= 65535:
            raise InputError(f"A structure's label is a whole number from 1 to 65535, got {value!r} for {name!r}.")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"The structure with label {value} needs a name, got {name!r}.")
    names = list(structures.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f'Two labels have the same structure name "{twice[0]}"; give each structure its own name.')
    return {int(value): structures[value] for value in sorted(structures)}


def label_values(array: Array) -> tuple[int, ...]:
    """Return the sorted nonzero values of an integer array; slice by slice, to save memory.

    >>> label_values(np.array([[[0, 3], [3, 1]]], dtype=np.uint8))
    (1, 3)
    """
    found: set[int] = set()
    for plane in array:
        found.update(np.unique(plane[plane != 0]).tolist())
    return tuple(sorted(found))


_ALMOST_WHOLE = 0.01


def as_labels(array: Array, name: str) -> Array:
    """Return the array in the smallest unsigned integer type; fractions and negative values are rejected.

    Values within 0.01 of an integer are rounded: programs that rescale labels for a file turn 1 into 1.001.
    """
    if array.dtype.kind == "f":
        whole = np.rint(array)
        count = int(np.count_nonzero(np.abs(array - whole) > _ALMOST_WHOLE))
        if count:
            raise InputError(
                f"{name} is no labelmap: {count} voxels hold fractions, labels are whole numbers; round them and save "
                "it as whole numbers, or choose the labelmap instead of the image."
            )
        array = whole
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name} is no labelmap: labels are whole numbers from 0 to 65535, got {low} to {high}.")
    return array.astype(np.uint8 if high <= 255 else np.uint16, copy=False)
