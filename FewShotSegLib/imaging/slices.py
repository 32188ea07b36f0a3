"""Labelled slices of an exemplar as network input, and their unlabelled neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from .slice_frame import SliceFrame, labels_to_network
from .slice_reader import SliceReader

if TYPE_CHECKING:
    from FewShotSegLib.data.exemplar import Exemplar
    from FewShotSegLib.data.intensity import IntensitySpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One slice as network input, with its labels."""

    image: Array = field(repr=False)
    """(S, S) float32 in [0, 1]."""
    labels: Array = field(repr=False)
    """(S, S) int32; 0 where nothing is labelled."""
    frame: SliceFrame
    source: str
    """Exemplar name, axis letter and index, for provenance."""
    annotated: bool
    """Whether the labels are known; if not, any pixel may belong to any structure."""


def labelled_slices(exemplar: Exemplar, intensity: IntensitySpec, image_size: int) -> list[LabelledSlice]:
    """Return the exemplar's annotated slices, in its order."""
    return _slices(exemplar, intensity, image_size, exemplar.annotated_slices, annotated=True)


def in_one_piece(slices: Sequence[LabelledSlice], structures: Mapping[int, str]) -> list[str]:
    """The names of structures with one connected component, or a few of similar size, per slice: over all slices,
    components below 30 % of the largest one make up at most 5 % of their area. Lesions are excluded by this.
    """
    found = []
    for value, name in structures.items():
        small = whole = 0.0
        for piece in slices:
            parts, _ = ndimage.label(piece.labels == value, np.ones((3, 3)))
            areas = np.bincount(parts.ravel())[1:]
            if len(areas):
                small, whole = small + areas[areas < 0.3 * areas.max()].sum(), whole + areas.sum()
        if whole and small <= 0.05 * whole:
            found.append(name)
    return found


def shown_together(slices: Sequence[LabelledSlice], structures: Mapping[int, str]) -> list[list[str]]:
    """The names of structures that occur together on a slice, one list per distinct set."""
    sets = {tuple(name for value, name in structures.items() if (piece.labels == value).any()) for piece in slices}
    return [list(names) for names in sorted(sets) if names]


def background_slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, limit: int | None = None
) -> list[LabelledSlice]:
    """Return the slices that the user declared empty of all structures; at most `limit`, evenly spread."""
    indices = list(exemplar.empty_slices)
    if limit is not None and len(indices) > limit:
        indices = [indices[i] for i in np.linspace(0, len(indices) - 1, limit).round().astype(int)] if limit > 0 else []
    return _slices(exemplar, intensity, image_size, indices, annotated=True)


def neighbour_slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, per_side: int = 2
) -> list[LabelledSlice]:
    """Return the unknown slices next to the annotated ones, up to `per_side` on each side, nearest first.

    Nothing is known about them: they may contain any of the structures.
    """
    count = exemplar.volume.array.shape[exemplar.axis]
    known = {*exemplar.annotated_slices, *exemplar.empty_slices}
    distances: dict[int, int] = {}
    for index in exemplar.annotated_slices:
        for side in (range(index + 1, count), range(index - 1, -1, -1)):
            unknown = [other for other in side if other not in known]
            for other in unknown[:per_side]:
                distances[other] = min(abs(other - index), distances.get(other, count))
    nearest_first = sorted(distances, key=lambda other: (distances[other], other))
    return _slices(exemplar, intensity, image_size, nearest_first, annotated=False)


def _slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, indices: Iterable[int], *, annotated: bool
) -> list[LabelledSlice]:
    axis = exemplar.axis
    reader = SliceReader(exemplar.volume, intensity, image_size, axis)
    slices = []
    for index in indices:
        frame = reader.frame(int(index))
        labels = exemplar.labelmap.take(index, axis) if annotated else np.zeros(frame.shape, np.int32)
        source = f"{exemplar.name} {'kji'[axis]}={index}"
        slices.append(LabelledSlice(reader.square(index), labels_to_network(labels, frame), frame, source, annotated))
    return slices
