"""Masks that are shown before they are accepted, painted into the layers of their segments and taken off again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .EditableArea import EditableArea
from .Geometry import Array, shapeOf
from .Layers import (
    LABELMAP,
    arrayFromLayer,
    existing,
    gridMap,
    layerOf,
    orientedImage,
    otherGrid,
    resizedLayer,
    segmentOf,
    viewThrough,
)
from .SegmentSlice import SegmentSlice

_MARGIN = 32  # voxels that a layer grows beyond a mask, so that the next click seldom makes it grow again


@dataclass(frozen=True, eq=False)
class LiveMask:
    """A mask as it was painted into the layer of its segment. Arrays are slices (rows, columns) of the volume."""

    place: SegmentSlice
    mask: Array
    exact: Array
    """Index map from the layer's grid to the volume's."""
    added: Array
    """Which voxels the segment got."""
    lost: Mapping[str, Array]
    """Which voxels segments lost, by their ID: the segment itself, and those covered in its layer."""


class LiveMasks:
    """Several may lie on each other; what lies below comes back voxel by voxel.

    Nothing here is told to the views: whoever calls knows which segments to have redrawn.
    """

    def __init__(self, segmentationNode: Any, volumeNode: Any, area: EditableArea) -> None:
        self._segmentationNode, self._volumeNode, self._area = segmentationNode, volumeNode, area
        self._segmentation = segmentationNode.GetSegmentation()
        self._live: list[LiveMask] = []  # later ones are on top
        self._extents: dict[Any, tuple[int, ...]] = {}  # of layers that grew for live masks, as they were

    def show(self, place: SegmentSlice, mask: Array) -> None:
        """Paint a mask (rows, columns) on a slice, in place of the one before, below those that are on top of it."""
        above = self._takenOffFrom(place)
        self._putOn(place, mask)
        self.putBack(above)

    def remove(self, place: SegmentSlice) -> None:
        """Take the mask off its slice; voxels that somebody else has painted meanwhile stay as they are."""
        self.putBack(self._takenOffFrom(place))
        self.shrinkUnused()

    def takenOff(self, places: Collection[SegmentSlice] | None = None, number: int = 0) -> list[LiveMask]:
        """Take off and return the live masks, from a number on, that share voxels with some places (None: all).

        So do those on top of them, for only the topmost can be taken off.
        """
        taken: list[LiveMask] = []
        kept = self._live[:number]
        for live in self._live[number:]:
            under = [*(places or ()), *(other.place for other in taken)]
            (taken if places is None or any(map(live.place.meets, under)) else kept).append(live)
        self._live = kept
        for live in reversed(taken):
            self._takeOff(live)
        return taken

    def putBack(self, taken: Iterable[LiveMask]) -> None:
        """Paint masks that were taken off again, in their order, as far as their segments are there."""
        for live in taken:
            if existing(self._segmentationNode, [live.place.segmentId]):
                self._putOn(live.place, live.mask)

    def shrinkUnused(self) -> None:
        """Give layers that grew for live masks their extent back when these are gone, unless somebody painted there."""
        ids = existing(self._segmentationNode, (live.place.segmentId for live in self._live))
        for layer in set(self._extents) - {layerOf(self._segmentationNode, segmentId) for segmentId in ids}:
            shrunk = resizedLayer(layer, self._extents.pop(layer), layer)
            if np.count_nonzero(arrayFromLayer(shrunk)) == np.count_nonzero(arrayFromLayer(layer)):
                self._exchange(layer, shrunk)

    def _putOn(self, place: SegmentSlice, mask: Array) -> None:
        """Paint a live mask on top of the others."""
        current = self._area.maskOf(place.segmentId, place)
        removed, painted = self._area.lostAndPainted(place, mask, current)
        added = painted & ~current
        covered = self._coveredBy(place, added)
        if set(covered) - set(self._area.overwritable(place.segmentId)):
            taken = self.takenOff()
            self._segmentation.SeparateSegmentLabelmap(place.segmentId)
            self.putBack(taken)
            self._putOn(place, mask)  # without the other masks on top of it, the segment may have more voxels here
            return
        self._growFor(place, added)
        layer = layerOf(self._segmentationNode, place.segmentId)
        if arrayFromLayer(layer).size:
            exact = self._mapOf(place.segmentId)
            plane, where = self._planeOf(layer, exact, place)
            plane[removed[where]] = 0
            plane[added[where]] = segmentOf(self._segmentationNode, place.segmentId).GetLabelValue()
            layer.GetPointData().GetScalars().Modified()
            self._live.append(LiveMask(place, mask, exact, added, {place.segmentId: removed, **covered}))

    def _takeOff(self, live: LiveMask) -> None:
        """Undo what `_putOn` painted, where nobody has painted since; segments may be gone or in other layers now."""
        for segmentId, mask in [(live.place.segmentId, live.added), *live.lost.items()]:
            segment = self._segmentation.GetSegment(segmentId)
            if segment is None:
                continue
            layer, value = segment.GetRepresentation(LABELMAP), segment.GetLabelValue()
            plane, where = self._planeOf(layer, live.exact, live.place)
            was, becomes = (value, 0) if mask is live.added else (0, value)
            plane[mask[where] & (plane == was)] = becomes
            layer.GetPointData().GetScalars().Modified()

    def _takenOffFrom(self, place: SegmentSlice) -> list[LiveMask]:
        """Take off the live mask of a place and those on top of it; returns the latter."""
        numbers = [number for number, live in enumerate(self._live) if live.place == place]
        return self.takenOff([place], numbers[0])[1:] if numbers else []

    def _mapOf(self, segmentId: str) -> Array:
        layer = layerOf(self._segmentationNode, segmentId)
        exact = gridMap(layer, self._segmentationNode, self._volumeNode)
        if exact is None:
            raise otherGrid(self._segmentationNode, segmentId, self._volumeNode)
        return exact

    def _planeOf(self, layer: Any, exact: Array, place: SegmentSlice) -> tuple[Array, tuple[slice, slice]]:
        return viewThrough(layer, exact).onSlice(shapeOf(self._volumeNode), place.axis, place.index)

    def _coveredBy(self, place: SegmentSlice, added: Array) -> dict[str, Array]:
        """Return which voxels of other segments in the same layer are to be painted over, by their ID."""
        layer = layerOf(self._segmentationNode, place.segmentId)
        if not arrayFromLayer(layer).size:
            return {}
        plane, where = self._planeOf(layer, self._mapOf(place.segmentId), place)
        present = set(np.unique(plane[added[where]]).tolist())
        covered = {}
        for segmentId, value in self._labelValues(layer).items():
            if value in present and segmentId != place.segmentId:
                covered[segmentId] = np.zeros(added.shape, bool)
                covered[segmentId][where] = added[where] & (plane == value)
        return covered

    def _growFor(self, place: SegmentSlice, added: Array) -> None:
        """See to it that the segment's layer reaches as far as the voxels to be added."""
        layer = layerOf(self._segmentationNode, place.segmentId)
        if added.any() and not _contains(layer.GetExtent(), self._boxImage(place, added, 0).GetExtent()):
            box = self._boxImage(place, added, _MARGIN)
            grown = resizedLayer(layer, _union(layer.GetExtent(), box.GetExtent()), box)
            self._extents[grown] = self._extents.pop(layer, layer.GetExtent())
            self._exchange(layer, grown)

    def _labelValues(self, layer: Any) -> dict[str, int]:
        """Return {segment ID: label value} of the segments that share a layer."""
        segments = {
            segmentId: self._segmentation.GetSegment(segmentId) for segmentId in self._segmentation.GetSegmentIDs()
        }
        return {i: s.GetLabelValue() for i, s in segments.items() if s.GetRepresentation(LABELMAP) is layer}

    def _exchange(self, layer: Any, other: Any) -> None:
        """Give all segments of a layer another. To change its extent in place would remove the surfaces of all."""
        for segmentId in self._labelValues(layer):
            self._segmentation.GetSegment(segmentId).AddRepresentation(LABELMAP, other)

    def _boxImage(self, place: SegmentSlice, mask: Array, margin: int) -> Any:
        """Return the part of a slice that holds a mask, and a margin, as an image on the grid of its segment."""
        spans = []
        for axis, size in enumerate(mask.shape):
            used = np.flatnonzero(mask.any(axis=1 - axis))
            spans.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
        first = [span.start for span in spans]
        first.insert(place.axis, place.index)
        part = np.expand_dims(mask[tuple(spans)], place.axis).astype(np.uint8)
        layer = layerOf(self._segmentationNode, place.segmentId)
        k, j, i = first
        return orientedImage(part, (k, j, i), self._volumeNode, self._segmentationNode, layer)


def _contains(extent: Sequence[int], part: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(extent[::2], part[::2], strict=True)) and all(
        a >= b for a, b in zip(extent[1::2], part[1::2], strict=True)
    )


def _union(extent: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the extent that holds both; one that is empty does not count."""
    if any(high < low for low, high in zip(extent[::2], extent[1::2], strict=True)):
        return list(other)
    pick = (min, max) * 3
    return [choose(a, b) for choose, a, b in zip(pick, extent, other, strict=True)]
