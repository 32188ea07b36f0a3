"""User prompts on one slice: clicks, a box, a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError

from .schema import shown
from .volume import AXES, AXIS_LETTERS, Volume, ijk_from_ras

Array = np.ndarray[Any, np.dtype[Any]]

SCRIBBLE_POINTS = 6  # clicks per scribble; each costs a forward pass of the mask decoder, and more change little
_KEYS = {
    "axis",
    "index",
    "structure",
    "points_ijk",
    "points_ras",
    "point_labels",
    "box_ijk",
    "box_ras",
    "mask",
}
_LARGEST_MASK = 1 << 30  # pixels
_ON_SLICE = 0.5 + 1e-3  # voxels: half a slice, plus rounding of coordinates converted via RAS


def _no_points() -> Array:
    return np.empty((0, 3))


def _no_labels() -> Array:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt on one slice: points (N, 3) in voxel coordinates i, j, k with labels 1 (inside) or 0 (outside), a box by
    two opposite corners (2, 3), a mask (H, W) over the two array axes other than `axis`.

    `axis` is the array axis (0 = k, 1 = j, 2 = i), `index` the slice. Without points, box and mask the prompt requests
    `structure` by name alone.
    """

    axis: int
    index: int
    points_ijk: Array = field(default_factory=_no_points)
    point_labels: Array = field(default_factory=_no_labels)
    box_ijk: Array | None = None
    mask: Array | None = None
    structure: str | None = None

    def __post_init__(self) -> None:
        _check_slice(self.axis, self.index)
        points = _coordinates("points_ijk", self.points_ijk)
        object.__setattr__(self, "points_ijk", points)
        object.__setattr__(self, "point_labels", _point_labels(self.point_labels, len(points)))
        for number, point in enumerate(points):
            self._check_on_slice(f"Point {number + 1}", point)
        if self.box_ijk is not None:
            object.__setattr__(self, "box_ijk", self._checked_box(self.box_ijk))
        if self.mask is not None:
            object.__setattr__(self, "mask", _checked_mask(self.mask))
        if self.structure is not None and not (isinstance(self.structure, str) and self.structure.strip()):
            raise InputError(f"A prompt's structure is a name, got {self.structure!r}.")
        if not self.shows_place and self.structure is None:
            raise InputError("A prompt needs a point, a box, a mask or the name of a structure, got none of them.")

    @property
    def shows_place(self) -> bool:
        """Whether it has a point, a box or a mask, and not only a name."""
        return len(self.points_ijk) > 0 or self.box_ijk is not None or self.mask is not None

    def check_inside(self, volume: Volume) -> None:
        """Raise `InputError` naming what is outside the volume; voxels extend half a voxel around their centre."""
        count = volume.shape[self.axis]
        if self.index >= count:
            letter = AXIS_LETTERS[self.axis]
            raise InputError(f"The prompt is on slice {letter}={self.index}; the volume has {letter}=0 to {count - 1}.")
        for number, (point, label) in enumerate(zip(self.points_ijk, self.point_labels, strict=True)):
            _check_in_volume(f"Point {number + 1} (label {label})", point, volume)
        for corner in self.box_ijk if self.box_ijk is not None else ():
            _check_in_volume("A corner of the box", corner, volume)
        plane = volume.shape[: self.axis] + volume.shape[self.axis + 1 :]
        if self.mask is not None and self.mask.shape != plane:
            raise InputError(f"The prompt's mask has the shape {self.mask.shape}; a slice of the volume has {plane}.")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the axis as a letter, the mask run-length encoded, starting with a run of False."""
        result: dict[str, Any] = {"axis": AXIS_LETTERS[self.axis], "index": self.index}
        if self.structure is not None:
            result["structure"] = self.structure
        if len(self.points_ijk):
            result |= {"points_ijk": self.points_ijk.tolist(), "point_labels": self.point_labels.tolist()}
        if self.box_ijk is not None:
            result["box_ijk"] = self.box_ijk.tolist()
        if self.mask is not None:
            result["mask"] = _runs_of(self.mask)
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], volume: Volume | None = None) -> Prompt:
        """Return the prompt from the output of `to_dict` or an entry of a prompt file.

        RAS coordinates, a missing axis (the acquisition plane) and a missing index (the slice of the first coordinate)
        require the volume. Missing point labels mean that all points are inside.
        """
        _check_keys(values)
        axis = _axis_of(values, volume)
        points, box = _in_ijk(values, "points", volume), _in_ijk(values, "box", volume)
        points = _no_points() if points is None else points
        return cls(
            axis=axis,
            index=_index_of(values, axis, points if len(points) else box),
            points_ijk=points,
            point_labels=values.get("point_labels", np.ones(len(points), dtype=np.int64)),
            box_ijk=box,
            mask=_mask_from_runs(values["mask"]) if values.get("mask") is not None else None,
            structure=values.get("structure"),
        )

    def _checked_box(self, box_ijk: Any) -> Array:
        box = _coordinates("box_ijk", box_ijk)
        if box.shape != (2, 3):
            raise InputError(f"A box is given by two corners of three numbers i, j, k, got the shape {box.shape}.")
        for corner in box:
            self._check_on_slice("A corner of the box", corner)
        box = np.sort(box, axis=0)
        extent = np.delete(box[1] - box[0], 2 - self.axis)
        if not (extent > 0).all():
            raise InputError(
                f"A box needs two corners that differ in both directions of the slice, got {box.tolist()}."
            )
        return box

    def _check_on_slice(self, what: str, point_ijk: Array) -> None:
        where = point_ijk[2 - self.axis]
        if abs(where - self.index) > _ON_SLICE:
            letter = AXIS_LETTERS[self.axis]
            raise InputError(f"{what} lies at {letter}={where:g}; the prompt is on slice {letter}={self.index}.")


def _check_keys(values: Any) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"A prompt is a table of names and values, got {shown(values)}.")
    unknown = sorted(set(values) - _KEYS)
    if unknown:
        raise InputError(f'Unknown key "{unknown[0]}" in a prompt; allowed are {", ".join(sorted(_KEYS))}.')


def _axis_of(values: Mapping[str, Any], volume: Volume | None) -> int:
    letter = values.get("axis")
    if letter is None and volume is not None:
        return volume.acquisition_axis
    if not isinstance(letter, str) or letter not in AXES:
        raise InputError(f"A prompt's axis is k, j or i, got {shown(letter)}.")
    return AXES[letter]


def _index_of(values: Mapping[str, Any], axis: int, coordinates_ijk: Any) -> Any:
    if values.get("index") is not None:
        return values["index"]
    coordinates = _coordinates("coordinates", coordinates_ijk if coordinates_ijk is not None else _no_points())
    if not len(coordinates):
        raise InputError("A prompt without points and box needs the index of its slice.")
    return int(np.floor(coordinates[0, 2 - axis] + 0.5))


def _in_ijk(values: Mapping[str, Any], what: str, volume: Volume | None) -> Array | None:
    given = [key for key in (f"{what}_ijk", f"{what}_ras") if values.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"A prompt has {what}_ijk or {what}_ras, got both.")
    if not given:
        return None
    coordinates = _coordinates(given[0], values[given[0]])
    if given[0].endswith("_ijk"):
        return coordinates
    if volume is None:
        raise InputError(f"{given[0]} needs the volume to become voxel coordinates; give {what}_ijk.")
    return ijk_from_ras(volume.affine, coordinates)


def _check_slice(axis: Any, index: Any) -> None:
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise InputError(f"A prompt's axis is 0 (k), 1 (j) or 2 (i), got {axis!r}.")
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < 2**31:
        raise InputError(f"A prompt's slice index is a whole number from 0, got {shown(index)}.")


def _coordinates(name: str, values: Any) -> Array:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a list of [i, j, k] numbers, got {shown(values)}.") from None
    if array.size == 0:
        return _no_points()
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise InputError(f"{name} must be a list of three finite numbers each, got {shown(array.tolist())}.")
    return array


def _point_labels(values: Any, count: int) -> Array:
    try:
        labels = np.asarray(values if np.size(values) else _no_labels())
    except (ValueError, OverflowError):  # lists of different lengths
        raise InputError(f"Point labels are 1 (inside) or 0 (outside), got {shown(values)}.") from None
    if labels.shape != (count,):
        raise InputError(f"Every point needs one label, got {count} points and labels of shape {labels.shape}.")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise InputError(f"Point labels are 1 (inside) or 0 (outside), got {shown(labels.tolist())}.")
    return labels.astype(np.int64)


def _checked_mask(mask: Any) -> Array:
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise InputError(f"A prompt's mask is a 2-D array of true and false, got {array.dtype} of shape {array.shape}.")
    return array.astype(bool)


def along(line: Array, count: int) -> Array:
    """Return up to `count` equidistant points along a line (N, 3), including both ends.

    >>> along(np.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]]), 3).tolist()
    [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
    """
    if len(line) <= 1:
        return line
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    wanted = np.linspace(0.0, travelled[-1], min(count, max(len(line), 2)))
    return np.stack([np.interp(wanted, travelled, line[:, axis]) for axis in range(3)], axis=1)


def _check_in_volume(what: str, point_ijk: Array, volume: Volume) -> None:
    sizes = volume.shape[::-1]
    slack = _ON_SLICE - 0.5
    if not all(-0.5 - slack <= x <= size - 0.5 + slack for x, size in zip(point_ijk, sizes, strict=True)):
        at = ", ".join(f"{letter}={x:g}" for letter, x in zip("ijk", point_ijk, strict=True))
        allowed = ", ".join(f"{letter}=0 to {size - 1}" for letter, size in zip("ijk", sizes, strict=True))
        raise InputError(f"{what} at {at} lies outside the volume, which has {allowed}.")


def _runs_of(mask: Array) -> dict[str, Any]:
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate([[0] if flat[0] else [], [0], changes, [flat.size]]).astype(int)
    return {"shape": list(mask.shape), "runs": np.diff(ends).tolist()}


def _mask_from_runs(values: Any) -> Array:
    wrong = InputError('A mask in a prompt file is {"shape": [H, W], "runs": [...]} with runs that add up.')
    try:
        (height, width), runs = values["shape"], np.array(values["runs"], dtype=np.float64)
        height, width = int(height), int(width)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wrong from None
    # Checked before decoding: a run may claim to be a terabyte long.
    whole = runs.ndim == 1 and bool((runs >= 0).all()) and bool((runs == np.rint(runs)).all())
    if not whole or not 0 < height * width <= _LARGEST_MASK or min(height, width) < 1 or runs.sum() != height * width:
        raise wrong
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64)).reshape(height, width)
