"""An annotated case: its image, labels, and the slices on which they are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from FewShotSegLib.errors import InputError

from .intensity import looks_like_hounsfield
from .volume import (
    AXIS_LETTERS,
    Volume,
    as_labels,
    checked_structures,
    label_values,
)

Array = np.ndarray[Any, np.dtype[Any]]
Slices = tuple[int, ...] | Literal["all"] | None


@dataclass(frozen=True, eq=False)
class Exemplar:
    """A volume, its labelmap (K, J, I), and the slices along array axis `axis` on which the labels are complete.

    On `annotated_slices` every voxel of the listed structures has its label, all else there is background.
    `empty_slices` are declared to contain none of the structures. All other slices are unknown, not background.
    `overlapping` is the number of voxels that belong to several structures but have the label of one. `channel` is the
    selected one of a multi-channel image.
    """

    volume: Volume
    labelmap: Array
    structures: Mapping[int, str]
    axis: int
    annotated_slices: tuple[int, ...]
    empty_slices: tuple[int, ...] = ()
    name: str = "exemplar"
    overlapping: int = 0
    channel: int | None = None

    def __post_init__(self) -> None:
        labelmap = np.asarray(self.labelmap)
        if labelmap.shape != self.volume.shape:
            raise InputError(f"{self.name}: image and labelmap differ in shape, {self.volume.shape} {labelmap.shape}.")
        object.__setattr__(self, "labelmap", as_labels(labelmap, self.name))
        object.__setattr__(self, "structures", checked_structures(self.structures))
        if isinstance(self.axis, bool) or self.axis not in (0, 1, 2):
            raise InputError(f"{self.name}: the slice axis is 0 (k), 1 (j) or 2 (i), got {self.axis!r}.")
        object.__setattr__(self, "annotated_slices", self._checked_slices(self.annotated_slices))
        object.__setattr__(self, "empty_slices", self._checked_slices(self.empty_slices))
        self._check_known_slices()

    def _checked_slices(self, slices: Sequence[int]) -> tuple[int, ...]:
        count, letter = self.volume.shape[self.axis], AXIS_LETTERS[self.axis]
        for index in slices:
            if not isinstance(index, int | np.integer) or not 0 <= index < count:
                raise InputError(f"{self.name}: slice {letter}={index} does not exist, allowed are 0 to {count - 1}.")
        return tuple(sorted({int(index) for index in slices}))

    def _check_known_slices(self) -> None:
        if not self.structures:
            raise InputError(f"{self.name}: no structure is named; annotate at least one.")
        if not self.annotated_slices and not self.empty_slices:
            raise InputError(f"{self.name}: no slice is annotated; label at least one slice.")
        both = sorted(set(self.annotated_slices) & set(self.empty_slices))
        if both:
            raise InputError(f"{self.name}: slice {both[0]} is listed as annotated and as empty; choose one.")
        for index in self.empty_slices:
            if self.labels_on(index).any():
                raise InputError(f"{self.name}: slice {index} is listed as empty and holds labels; choose one.")
        for index in self.annotated_slices:
            unknown = set(np.unique(self.labels_on(index)).tolist()) - {0, *self.structures}
            if unknown:
                raise InputError(f"{self.name}: slice {index} holds label {min(unknown)}, which has no structure name.")

    def image_on(self, index: int) -> Array:
        """Return the raw image (H, W) of a slice."""
        return np.take(self.volume.array, index, axis=self.axis)

    def labels_on(self, index: int) -> Array:
        """Return the labels (H, W) of a slice."""
        return np.take(self.labelmap, index, axis=self.axis)

    def annotated_structures(self) -> dict[int, str]:
        """Return {value: name} of the structures that have a voxel on an annotated slice."""
        seen = set().union(*(np.unique(self.labels_on(index)).tolist() for index in self.annotated_slices))
        return {value: name for value, name in self.structures.items() if value in seen}


def check_exemplars(exemplars: Sequence[Exemplar]) -> dict[int, str]:
    """Return {value: name} of all structures, or raise `InputError`: none given, names that disagree between exemplars,
    a structure without a voxel on any annotated slice."""
    if not exemplars:
        raise InputError("At least one exemplar is needed: an image with one annotated slice.")
    structures: dict[int, str] = {}
    for exemplar in exemplars:
        for value, name in exemplar.structures.items():
            if structures.setdefault(value, name) != name:
                raise InputError(
                    f'{exemplar.name} calls label {value} "{name}", another exemplar "{structures[value]}"; use the '
                    "same labels in all exemplars."
                )
    structures = checked_structures(structures)
    seen: set[int] = set().union(*(exemplar.annotated_structures() for exemplar in exemplars))
    missing = {value: name for value, name in structures.items() if value not in seen}
    if missing:
        raise InputError(
            f"No exemplar shows {listed(missing)} on an annotated slice; annotate it once or leave it out."
        )
    return structures


def preflight(exemplars: Sequence[Exemplar]) -> list[str]:
    """Return warnings about what will make training hard; what makes it impossible raises `InputError`."""
    structures = check_exemplars(exemplars)
    warnings: list[str] = []
    for exemplar in exemplars:
        for index in exemplar.annotated_slices:
            warnings += _slice_warnings(exemplar, index)
        if exemplar.overlapping:
            warnings.append(
                f"{exemplar.name}: structures overlap in {exemplar.overlapping} voxels, and each is learned as the one "
                "on top only; adapt to them one by one if that matters."
            )
    shown = [exemplar.annotated_structures().values() for exemplar in exemplars]
    for name in structures.values():
        count = sum(name in names for names in shown)
        if count < len(exemplars):
            warnings.append(
                f"{name} is drawn in {count} of {len(exemplars)} exemplars only; on the annotated slices of the "
                "others it counts as absent, so draw it there if it can be seen."
            )
    return warnings + _intensity_warnings(exemplars)


def _slice_warnings(exemplar: Exemplar, index: int) -> list[str]:
    where = f"{exemplar.name}, slice {AXIS_LETTERS[exemplar.axis]}={index}"
    image, labels = exemplar.image_on(index), exemplar.labels_on(index)
    warnings = []
    if image.min() == image.max():
        warnings.append(f"{where}: the image is constant, there is nothing to learn from.")
    if not labels.any():
        warnings.append(f"{where}: listed as annotated and holds no label.")
    for value in label_values(labels[np.newaxis]):
        mask, name = labels == value, exemplar.structures[value]
        if np.count_nonzero(mask) == 1:
            warnings.append(f"{where}: {name} is a single voxel; check that it was meant.")
        if mask[[0, -1]].any() or mask[:, [0, -1]].any():
            warnings.append(f"{where}: {name} touches the border of the image; its shape is cut off there.")
    return warnings


def _intensity_warnings(exemplars: Sequence[Exemplar]) -> list[str]:
    first = exemplars[0]
    is_ct = looks_like_hounsfield(first.volume.array)
    kinds = ("has Hounsfield units", "has not") if is_ct else ("has no Hounsfield units", "has")
    return [
        f"{first.name} {kinds[0]} and {other.name} {kinds[1]}, but all are read with the intensity window of "
        f"{first.name}; adapt to one modality at a time."
        for other in exemplars[1:]
        if looks_like_hounsfield(other.volume.array) != is_ct
    ]


def listed(structures: Mapping[int, str]) -> str:
    return ", ".join(f"{name} (label {value})" for value, name in structures.items())
