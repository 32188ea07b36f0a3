"""Volumes and labelmaps: an array, and where its voxels lie in the patient.

Arrays are indexed (K, J, I), as SimpleITK and Slicer give them; coordinates are written (i, j, k). The affine maps the
indices (i, j, k) of voxel centres to RAS millimetres (x right, y anterior, z superior). Files and SimpleITK use LPS:
the first two rows change sign at load and save, and nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError
from FewShotSegLib.files import known_suffix
from FewShotSegLib.image_files import affine_of, array_of, image_from, one_volume, read_image, write_image
from FewShotSegLib.segments import header_fields, merged_layers, segments_from

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

AXES = {"k": 0, "j": 1, "i": 2}  # letter of an IJK axis -> axis of a (K, J, I) array
AXIS_LETTERS = "kji"  # array axis -> letter


# ---------------------------------------------------------------------------------------------------------- geometry


def ras_from_ijk(affine: Array, points_ijk: Array) -> Array:
    """Return RAS mm (N, 3) of voxel coordinates (N, 3) in i, j, k order.

    >>> ras_from_ijk(np.diag([2.0, 2.0, 5.0, 1.0]), [[1, 0, 3]]).tolist()
    [[2.0, 0.0, 15.0]]
    """
    points = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
    return points @ affine[:3, :3].T + affine[:3, 3]


def ijk_from_ras(affine: Array, points_ras: Array) -> Array:
    """Return voxel coordinates (N, 3), i, j, k order, not rounded, of RAS mm (N, 3)."""
    points = np.asarray(points_ras, dtype=np.float64).reshape(-1, 3)
    return np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).T).T


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image: array (K, J, I) of real finite numbers, affine (4, 4) from (i, j, k) to RAS mm."""

    array: Array
    affine: Array

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        _check_array(array)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", _checked_affine(self.affine))

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
        """The array axis across the slices as acquired: one voxel thick, else the largest spacing, ties to axis 0."""
        if 1 in self.shape:
            return self.shape.index(1)
        spacing = self.spacing_mm[::-1]
        thicker = spacing > spacing[0] * (1 + 1e-3)  # rounded headers must not turn an isotropic volume around
        return int(np.argmax(np.where(thicker, spacing, 0.0))) if thicker.any() else 0

    def like(self, array: Array) -> Volume:
        """Return another array of the same shape in the same place."""
        if np.shape(array) != self.shape:
            raise InputError(f"An array of shape {np.shape(array)} does not fit a volume of shape {self.shape}.")
        return Volume(array, self.affine)

    def same_geometry(self, other: Volume, tolerance_mm: float = 1e-3) -> bool:
        """Return whether both have the same shape and no voxel centre lies further apart than `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = _corners_ijk(self.shape)  # an affine difference is largest at a corner
        distance = ras_from_ijk(self.affine, corners) - ras_from_ijk(other.affine, corners)
        return bool(np.linalg.norm(distance, axis=1).max() <= tolerance_mm)


def _corners_ijk(shape: tuple[int, int, int]) -> Array:
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
        voxels = "1 voxel is" if bad == 1 else f"{bad} voxels are"
        raise InputError(f"{voxels} not a finite number (NaN or Inf); replace them, for example by the lowest value.")


def _checked_affine(affine: Any) -> Array:
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"An affine is a finite (4, 4) matrix with last row 0 0 0 1, got {matrix.tolist()}.")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # The volume of the voxel relative to a box with the same edges: 0 for two axes along one line, free of units.
    if not lengths.all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise InputError(f"An affine must be invertible, with no zero spacing, got {matrix.tolist()}.")
    return matrix


# ------------------------------------------------------------------------------------------------------------- files


def load_volume(
    path: str | os.PathLike[str], *, channel: int | None = None, time_index: int | None = None, name: str | None = None
) -> Volume:
    """Load NRRD, NIfTI, MetaImage, PNG, JPEG, TIFF, BMP, one DICOM file, or a folder with one DICOM series.

    Two-dimensional images get K = 1 and 1 mm thickness. Colour becomes luminance unless `channel` picks one.
    `time_index` picks one volume of a four-dimensional file. `name` is what error messages call it (default: the path).
    """
    path = Path(path)
    name = name or str(path)
    image = read_image(path, name)
    return _named_volume(one_volume(image, path, channel, time_index, name), affine_of(image), name)


def _named_volume(array: Array, affine: Array, name: str) -> Volume:
    try:
        return Volume(array, affine)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def save_volume(volume: Volume, path: str | os.PathLike[str], *, compress: bool = True) -> None:
    """Write NRRD, NIfTI or MetaImage, whole or not at all; the geometry survives exactly (NIfTI: as 32-bit numbers).

    Without `compress` it is ten times faster, for files that are read once and removed.
    """
    write_image(image_from(volume.array, volume.affine), Path(path), compress=compress)


# ---------------------------------------------------------------------------------------------------------- labelmaps


@dataclass(frozen=True, eq=False)
class Labelmap:
    """A volume of unsigned integers, 0 = background, and the name of each value."""

    volume: Volume
    structures: Mapping[int, str]

    def __post_init__(self) -> None:
        if self.volume.array.dtype.kind != "u":
            raise InputError(f"A labelmap holds unsigned integers, got {self.volume.array.dtype}.")
        object.__setattr__(self, "structures", checked_structures(self.structures))


def checked_structures(structures: Mapping[int, str]) -> dict[int, str]:
    """Return {value: name} in order of value; values are at least 1, names are not empty and differ."""
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
    """Return the values other than 0 of an integer array, in order; slice by slice, so that memory stays small.

    >>> label_values(np.array([[[0, 3], [3, 1]]], dtype=np.uint8))
    (1, 3)
    """
    found: set[int] = set()
    for plane in array:
        found.update(np.unique(plane[plane != 0]).tolist())
    return tuple(sorted(found))


def as_labels(array: Array, name: str) -> Array:
    """Return the array in the smallest unsigned integer type; fractions and negative values are refused."""
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        count = int(np.count_nonzero(array != np.rint(array)))
        raise InputError(f"{name} is no labelmap: {count} voxels hold fractions, labels are whole numbers.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name} is no labelmap: labels are whole numbers from 0 to 65535, got {low} to {high}.")
    return array.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def load_labelmap(path: str | os.PathLike[str]) -> Labelmap:
    """Load a labelmap; segment names come from a segmentation file (.seg.nrrd), otherwise each value is its own name.

    The layers of a segmentation become one labelmap: where segments overlap the higher layer wins, which is logged.
    Label values are kept when they differ; segments that share a value in different layers are numbered 1, 2, ... in
    the order of the file.
    """
    path = Path(path)
    name = str(path)
    image = read_image(path, name)
    if image.HasMetaDataKey("Segment0_ID"):
        header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
        layers = _layers_of(array_of(image), image.GetNumberOfComponentsPerPixel(), image.GetDimension(), name)
        merged, structures, overlapping = merged_layers(layers, segments_from(header, len(layers), name))
        if overlapping:
            log.warning("%s: segments overlap in %d voxels; the higher layer is kept.", name, overlapping)
        return Labelmap(_named_volume(as_labels(merged, name), affine_of(image), name), structures)
    volume = _named_volume(one_volume(image, path, None, None, name), affine_of(image), name)
    labels = as_labels(volume.array, name)
    return Labelmap(volume.like(labels), {value: str(value) for value in label_values(labels)})


def _layers_of(array: Array, components: int, dimension: int, name: str) -> list[Array]:
    """Return the layers, each (K, J, I): a file keeps them as values per voxel or as a fourth dimension."""
    if components > 1:
        layers = [array[..., layer] for layer in range(components)]
    else:
        layers = list(array) if dimension == 4 else [array]
    if layers[0].ndim == 2:
        layers = [layer[np.newaxis] for layer in layers]
    if layers[0].ndim != 3 or not layers[0].size:
        raise InputError(f"{name}: a segmentation has 3 dimensions and layers, got the shape {array.shape}.")
    return [as_labels(layer, name) for layer in layers]


def save_labelmap(labelmap: Labelmap, path: str | os.PathLike[str]) -> None:
    """Write the labelmap in its own geometry; `.seg.nrrd` is a Slicer segmentation with names and colours.

    Values without a name are named by their number. Other formats keep the values only.
    """
    path = Path(path)
    volume = labelmap.volume
    structures = {value: str(value) for value in label_values(volume.array)} | dict(labelmap.structures)
    array = volume.array.astype(np.uint8 if max(structures, default=0) <= 255 else np.uint16)
    image = image_from(array, volume.affine)
    if known_suffix(path).lower() == ".seg.nrrd":
        for key, text in header_fields(array, volume.affine, structures).items():
            image.SetMetaData(key, text)
    write_image(image, path)


# -------------------------------------------------------------------------------------------------------- other grids


def resample_labelmap(labelmap: Volume, onto: Volume) -> Volume:
    """Return the labels at the voxel centres of `onto`, nearest neighbour, 0 outside. Only where it is asked for."""
    index_from_index = np.linalg.inv(labelmap.affine) @ onto.affine  # (i, j, k) of onto -> (i, j, k) of labelmap
    sizes = np.array(labelmap.shape[::-1])
    result = np.zeros(onto.shape, dtype=labelmap.array.dtype)
    j, i = np.meshgrid(np.arange(onto.shape[1]), np.arange(onto.shape[2]), indexing="ij")
    for k in range(onto.shape[0]):  # one slice at a time: coordinates need 48 bytes per voxel
        plane = np.stack([i.ravel(), j.ravel(), np.full(i.size, k)], axis=1)
        nearest = np.floor(ras_from_ijk(index_from_index, plane) + 0.5).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < sizes)).all(axis=1)
        at = nearest[inside]
        result[k].reshape(-1)[inside] = labelmap.array[at[:, 2], at[:, 1], at[:, 0]]
    return onto.like(result)


def reindexed(labelmap: Volume, onto: Volume, *, crop: bool = False, tolerance: float = 1e-2) -> Volume | None:
    """Return the same voxels in the index order of `onto`, or None where the two grids are not the same.

    Slicer turns axes of left-handed files around on load, so a segmentation saved there may list the same voxels in
    another order; that is undone exactly, without interpolation. `crop`: the labelmap may cover a part of `onto`
    only (0 elsewhere). `tolerance` in voxels.
    """
    exact = index_map(labelmap.affine, labelmap.shape, onto.affine, tolerance)
    if exact is None:
        return None
    landed = ras_from_ijk(exact, _corners_ijk(labelmap.shape))
    low, high = landed.min(axis=0).astype(int), landed.max(axis=0).astype(int) + 1
    sizes = np.array(onto.shape[::-1])
    if (low < 0).any() or (high > sizes).any() or not (crop or ((low == 0).all() and (high == sizes).all())):
        return None
    result = np.zeros(onto.shape, dtype=labelmap.array.dtype)
    part = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    result[part] = turned(labelmap.array, exact)
    return onto.like(result)


def index_map(own: Array, shape: tuple[int, int, int], onto: Array, tolerance: float = 1e-2) -> Array | None:
    """Return the (4, 4) matrix of whole numbers from voxel (i, j, k) of one grid to the same voxel of the other.

    `own` and `onto` are the affines, `shape` (K, J, I) is how far the first grid reaches. None where a voxel centre
    lies further than `tolerance` voxels from one of the other grid. Axes may be permuted and flipped.
    """
    onto_from_own = np.linalg.inv(onto) @ own
    exact = np.eye(4)
    exact[:3] = np.rint(onto_from_own[:3])
    turn = np.abs(exact[:3, :3])
    if not (turn.sum(axis=0) == 1).all() or not (turn.sum(axis=1) == 1).all():
        return None
    corners = _corners_ijk(shape)  # an affine difference is largest at a corner
    off = np.abs(ras_from_ijk(onto_from_own, corners) - ras_from_ijk(exact, corners)).max()
    return exact if off <= tolerance else None


def turned(array: Array, exact: Array) -> Array:
    """Return a view of an array (K, J, I) with its axes permuted and flipped as an `index_map` says."""
    turn = exact[:3, :3]
    source = np.abs(turn).argmax(axis=1)  # own axis that becomes axis i, j, k of the other grid
    moved = array.transpose(2, 1, 0).transpose(source)
    signs = turn[np.arange(3), source]
    return moved[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)].transpose(2, 1, 0)
