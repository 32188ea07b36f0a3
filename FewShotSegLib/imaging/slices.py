"""Labelled slices of an exemplar as the network sees them, and the unlabelled ones beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .slice_frame import SliceFrame, labels_to_network
from .slice_reader import SliceReader

if TYPE_CHECKING:
    from FewShotSegLib.data.exemplar import Exemplar
    from FewShotSegLib.data.intensity import IntensitySpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One slice as the network sees it, with what is known about it."""

    image: Array = field(repr=False)
    """(S, S) float32 in [0, 1]."""
    labels: Array = field(repr=False)
    """(S, S) int32; 0 where nothing is labelled."""
    frame: SliceFrame
    source: str
    """Exemplar name, axis letter and index, for provenance."""
    annotated: bool
    """Whether the labels are known; if not, every pixel may belong to any structure."""


def labelled_slices(exemplar: Exemplar, intensity: IntensitySpec, image_size: int) -> list[LabelledSlice]:
    """Return the exemplar's annotated slices, in its order."""
    return _slices(exemplar, intensity, image_size, exemplar.annotated_slices, annotated=True)


def background_slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, limit: int | None = None
) -> list[LabelledSlice]:
    """Return the slices the user vouches hold none of the structures; at most `limit`, evenly spread."""
    indices = list(exemplar.empty_slices)
    if limit is not None and len(indices) > limit:
        indices = [indices[i] for i in np.linspace(0, len(indices) - 1, limit).round().astype(int)] if limit > 0 else []
    return _slices(exemplar, intensity, image_size, indices, annotated=True)


def neighbour_slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, per_side: int = 2
) -> list[LabelledSlice]:
    """Return the unknown slices next to the annotated ones, up to `per_side` on each side, nearest first.

    Nothing is known about them: they may hold any of the structures.
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
