"""One slice of one segment at a time: shown while the user clicks, accepted, undone."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.errors import InputError

from .Geometry import Array, checkedSlice, shapeOf, voxelsOf
from .Layers import (
    LABELMAP,
    SURFACE,
    arrayFromLayer,
    checkGrid,
    gridMap,
    layerOf,
    orientedImage,
    otherGrid,
    rebuildSurfaces,
    resizedLayer,
    segmentOf,
    viewThrough,
)
from .Segmentations import sliceMask

OVERWRITE_MODES = ("none", "visible", "all")

_UNDO_LEVELS = 200
_MARGIN = 32  # voxels that a layer grows beyond a mask, so that the next click seldom makes it grow again


@dataclass(frozen=True)
class _Place:
    segmentId: str
    axis: int
    index: int

    def meets(self, other: _Place) -> bool:
        """Whether two slices share voxels: only parallel ones do not."""
        return self.axis != other.axis or self.index == other.index


@dataclass(frozen=True, eq=False)
class _Live:
    """A live mask, painted into the layer of its segment. Arrays are slices (rows, columns) of the volume."""

    place: _Place
    mask: Array
    exact: Array
    """Index map from the layer's grid to the volume's."""
    added: Array
    """Which voxels the segment got."""
    lost: Mapping[str, Array]
    """Which voxels segments lost, by their ID: the segment itself, and those covered in its layer."""


@dataclass(frozen=True, eq=False)
class _Change:
    """Which voxels, by their numbers in the flattened volume (K, J, I), segments (by ID) lost and got on slices."""

    places: Collection[_Place]
    lost: Mapping[str, Array]
    got: Mapping[str, Array]

    def reversed(self) -> _Change:
        """Return the change that takes this one back."""
        return replace(self, lost=self.got, got=self.lost)


class SegmentWriter:
    """Writes slices of a volume into the segments of a segmentation.

    A live mask is painted into its segment's own layer, and the voxels below it are kept: that takes a millisecond or
    two, and the 3-D surface waits for `idle`. Several slices may be live at once. `overwriteMode` and the editable area
    mean what they mean in the Segment Editor; a segment that must not be overwritten never is, not even while a mask is
    live.

    Undo is about accepted slices, voxel by voxel: what the user has painted, renamed or added since stays.
    (vtkSegmentationHistory would take it away.)
    """

    def __init__(self, segmentationNode: Any, volumeNode: Any) -> None:
        """Raise `InputError` where slices of the volume cannot be written to the segmentation, and say why."""
        checkGrid(segmentationNode, volumeNode)
        self.editableInside: str | None = None
        """ID of the one segment inside which voxels may change, None for everywhere. If it may be overwritten, what was
        carved out of it may change too, and returns to it when it is lost."""
        self.editableIntensity: tuple[float, float] | None = None
        """Lowest and highest intensity of voxels that may change, None for all."""
        self._overwriteMode = "none"
        self._segmentationNode, self._volumeNode = segmentationNode, volumeNode
        self._segmentation = segmentationNode.GetSegmentation()
        self._live: list[_Live] = []  # later ones are on top
        self._extents: dict[Any, tuple[int, ...]] = {}  # of layers that grew for live masks, as they were
        self._undo: deque[_Change] = deque(maxlen=_UNDO_LEVELS)
        self._staleSurfaces: set[str] = set()
        self._editor = slicer.vtkSlicerSegmentEditorLogic()
        self._editorNode = slicer.vtkMRMLSegmentEditorNode()
        self._editor.SetSegmentEditorNode(self._editorNode)

    @property
    def overwriteMode(self) -> str:
        """Which other segments lose voxels to an accepted mask: "none", "visible" ones, or "all"."""
        return self._overwriteMode

    @overwriteMode.setter
    def overwriteMode(self, mode: str) -> None:
        if mode not in OVERWRITE_MODES:
            raise InputError(f"The overwrite mode is one of {', '.join(OVERWRITE_MODES)}, got {mode!r}.")
        self._overwriteMode = mode

    def showLive(self, segmentId: str, axis: int, index: int, mask: Array) -> None:
        """Show the segment on a slice as `accept` would leave it; `mask` (rows, columns) replaces the one before.

        It is no step of undo. Segments that may be overwritten and share the layer make way meanwhile.
        """
        place, mask = self._checked(segmentId, axis, index, mask)
        above = self._takenOffFrom(place)
        self._putOn(place, mask)
        self._putBack(above)
        self._notify([segmentId])

    def restore(self, segmentId: str, axis: int, index: int) -> None:
        """Take a live mask off its slice; voxels that somebody else has painted meanwhile stay as they are."""
        self._putBack(self._takenOffFrom(_Place(segmentId, axis, index)))
        self._shrinkUnused()
        self._notify([segmentId])

    def accept(self, segmentId: str, axis: int, index: int, mask: Array) -> None:
        """Give the segment the voxels of `mask` (rows, columns) on a slice, as one step of undo; ends its live mask."""
        self.acceptSlices(segmentId, axis, {index: mask})

    def acceptSlices(self, segmentId: str, axis: int, masks: Mapping[int, Array]) -> None:
        """Do for many slices {index: mask} what `accept` does for one: in one step, and in hardly more time."""
        checkGrid(self._segmentationNode, self._volumeNode)
        masksByPlace = dict(self._checked(segmentId, axis, index, mask) for index, mask in masks.items())
        taken = self._takenOff(masksByPlace)
        self._shrinkUnused()
        change = _merged([self._changeBy(place, mask) for place, mask in masksByPlace.items()])
        self._write(change)
        self._undo.append(change)
        self._putBack(live for live in taken if live.place not in masksByPlace)
        self._notify(live.place.segmentId for live in taken)

    def undo(self) -> bool:
        """Take back what was accepted last; returns whether there was anything."""
        if not self._undo:
            return False
        checkGrid(self._segmentationNode, self._volumeNode)
        change = self._undo.pop().reversed()
        taken = self._takenOff(change.places)
        self._shrinkUnused()
        self._write(change)
        self._putBack(taken)
        self._notify(live.place.segmentId for live in taken)
        return True

    def idle(self) -> None:
        """Bring the 3-D surfaces, where there are any, in step with the voxels; call it when the user pauses."""
        stale = self._existing(self._staleSurfaces)
        self._staleSurfaces.clear()
        if stale and self._segmentation.ContainsRepresentation(SURFACE):
            rebuildSurfaces(self._segmentationNode, stale)

    def close(self) -> None:
        """Take off all live masks and bring the 3-D surfaces in step; undo ends here."""
        self._notify(live.place.segmentId for live in self._takenOff())
        self._shrinkUnused()
        self.idle()
        self._undo.clear()
        self._editor.SetSegmentEditorNode(None)

    # ------------------------------------------------------------------------------------------------------ what is due

    def _checked(self, segmentId: str, axis: int, index: int, mask: Array) -> tuple[_Place, Array]:
        segmentOf(self._segmentationNode, segmentId)
        shape = checkedSlice(self._volumeNode, axis, index)
        mask = np.array(mask, dtype=bool)
        if mask.shape != shape:
            raise InputError(f"A mask of this slice has {shape} voxels (rows, columns), got {mask.shape}.")
        return _Place(segmentId, axis, index), mask

    def _maskOf(self, segmentId: str, axis: int, index: int) -> Array:
        return sliceMask(self._segmentationNode, segmentId, self._volumeNode, axis, index)

    def _lostAndPainted(self, place: _Place, mask: Array, current: Array) -> tuple[Array, Array]:
        """Return which voxels the segment loses, and which it covers with the mask, as far as the area is editable."""
        lost, painted = current & ~mask, mask.copy()
        inside = self.editableInside
        if inside is not None:
            area = self._maskOf(inside, place.axis, place.index)
            painted &= area
            if inside not in self._overwritable(place.segmentId):  # otherwise it was carved out of that segment
                lost &= area
        if self.editableIntensity is not None:
            low, high = self.editableIntensity
            image = voxelsOf(self._volumeNode).take(place.index, place.axis)
            area = (image >= low) & (image <= high)
            lost, painted = lost & area, painted & area
        return lost, painted

    def _changeBy(self, place: _Place, mask: Array) -> _Change:
        current = self._maskOf(place.segmentId, place.axis, place.index)
        lost, painted = self._lostAndPainted(place, mask, current)
        losses, gains = {place.segmentId: lost}, {place.segmentId: painted & ~current}
        overwritable = self._overwritable(place.segmentId)
        for other in overwritable:
            losses[other] = self._maskOf(other, place.axis, place.index) & painted
        if self.editableInside in overwritable:
            free = lost.copy()
            for other in set(self._segmentation.GetSegmentIDs()) - {place.segmentId}:
                free &= ~self._maskOf(other, place.axis, place.index)
            gains[self.editableInside] = free
        shape = shapeOf(self._volumeNode)
        return _Change([place], _voxelNumbers(losses, place, shape), _voxelNumbers(gains, place, shape))

    def _overwritable(self, segmentId: str) -> list[str]:
        others = [other for other in self._segmentation.GetSegmentIDs() if other != segmentId]
        if self._overwriteMode == "visible":
            displayNode = self._segmentationNode.GetDisplayNode()
            return [other for other in others if displayNode is None or displayNode.GetSegmentVisibility(other)]
        return others if self._overwriteMode == "all" else []

    # ------------------------------------------------------------------------------------------------------------- live

    def _putOn(self, place: _Place, mask: Array) -> None:
        """Paint a live mask on top of the others."""
        current = self._maskOf(place.segmentId, place.axis, place.index)
        removed, painted = self._lostAndPainted(place, mask, current)
        added = painted & ~current
        covered = self._coveredBy(place, added)
        if set(covered) - set(self._overwritable(place.segmentId)):
            taken = self._takenOff()
            self._segmentation.SeparateSegmentLabelmap(place.segmentId)
            self._putBack(taken)
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
            self._live.append(_Live(place, mask, exact, added, {place.segmentId: removed, **covered}))

    def _takeOff(self, live: _Live) -> None:
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

    def _takenOff(self, places: Collection[_Place] | None = None, number: int = 0) -> list[_Live]:
        """Take off and return the live masks, from a number on, that share voxels with some places (None: all).

        So do those on top of them, for only the topmost can be taken off.
        """
        taken: list[_Live] = []
        kept = self._live[:number]
        for live in self._live[number:]:
            under = [*(places or ()), *(other.place for other in taken)]
            (taken if places is None or any(map(live.place.meets, under)) else kept).append(live)
        self._live = kept
        for live in reversed(taken):
            self._takeOff(live)
        return taken

    def _takenOffFrom(self, place: _Place) -> list[_Live]:
        """Take off the live mask of a place and those on top of it; returns the latter."""
        numbers = [number for number, live in enumerate(self._live) if live.place == place]
        return self._takenOff([place], numbers[0])[1:] if numbers else []

    def _putBack(self, taken: Iterable[_Live]) -> None:
        for live in taken:
            if self._existing([live.place.segmentId]):
                self._putOn(live.place, live.mask)

    def _notify(self, segmentIds: Iterable[str]) -> None:
        """Have the views redrawn; to report the source as modified would remove the surfaces of all segments."""
        for segmentId in set(segmentIds):
            self._segmentation.InvokeEvent(self._segmentation.RepresentationModified, segmentId)
            self._staleSurfaces.add(segmentId)

    # ----------------------------------------------------------------------------------------------------------- layers

    def _mapOf(self, segmentId: str) -> Array:
        layer = layerOf(self._segmentationNode, segmentId)
        exact = gridMap(layer, self._segmentationNode, self._volumeNode)
        if exact is None:
            raise otherGrid(self._segmentationNode, segmentId, self._volumeNode)
        return exact

    def _planeOf(self, layer: Any, exact: Array, place: _Place) -> tuple[Array, tuple[slice, slice]]:
        return viewThrough(layer, exact).onSlice(shapeOf(self._volumeNode), place.axis, place.index)

    def _coveredBy(self, place: _Place, added: Array) -> dict[str, Array]:
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

    def _growFor(self, place: _Place, added: Array) -> None:
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

    def _existing(self, segmentIds: Iterable[str]) -> list[str]:
        return [segmentId for segmentId in segmentIds if self._segmentation.GetSegment(segmentId) is not None]

    def _shrinkUnused(self) -> None:
        """Give layers that grew for live masks their extent back when these are gone, unless somebody painted there."""
        ids = self._existing(live.place.segmentId for live in self._live)
        for layer in set(self._extents) - {layerOf(self._segmentationNode, segmentId) for segmentId in ids}:
            shrunk = resizedLayer(layer, self._extents.pop(layer), layer)
            if np.count_nonzero(arrayFromLayer(shrunk)) == np.count_nonzero(arrayFromLayer(layer)):
                self._exchange(layer, shrunk)

    def _exchange(self, layer: Any, other: Any) -> None:
        """Give all segments of a layer another. To change its extent in place would remove the surfaces of all."""
        for segmentId in self._labelValues(layer):
            self._segmentation.GetSegment(segmentId).AddRepresentation(LABELMAP, other)

    def _boxImage(self, place: _Place, mask: Array, margin: int) -> Any:
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

    # --------------------------------------------------------------------------------------------------------- accepted

    def _write(self, change: _Change) -> None:
        """Let segments lose and get voxels. Losing comes first, so that no layers are split for nothing."""
        touched = {*change.lost, *change.got}
        with self._withoutSurfaces(touched):
            for segmentId, numbers in change.lost.items():
                self._modify(segmentId, numbers, self._editor.ModificationModeRemove)
            for segmentId, numbers in change.got.items():
                self._modify(segmentId, numbers, self._editor.ModificationModeAdd)
        self._staleSurfaces |= touched

    def _modify(self, segmentId: str, numbers: Array, mode: int) -> None:
        if not self._existing([segmentId]):  # removed by the user since
            return
        image = self._imageOf(segmentId, numbers)
        # Removing with all others "overwritten" takes nothing from them; otherwise they would be moved to other layers.
        removing = mode == self._editor.ModificationModeRemove
        node = self._editorNode
        node.SetOverwriteMode(node.OverwriteAllSegments if removing else node.OverwriteNone)
        self._editor.ModifySegmentByLabelmap(
            self._segmentationNode, segmentId, image, mode, image.GetExtent(), False, False
        )

    def _imageOf(self, segmentId: str, numbers: Array) -> Any:
        """Return numbered voxels, as 1 in a box of 0, as an image on the grid of their segment."""
        indices = np.array(np.unravel_index(numbers, shapeOf(self._volumeNode)))
        first, last = indices.min(axis=1), indices.max(axis=1)
        box = np.zeros(last - first + 1, np.uint8)
        box[tuple(indices - first[:, None])] = 1
        k, j, i = (int(index) for index in first)
        layer = layerOf(self._segmentationNode, segmentId)
        return orientedImage(box, (k, j, i), self._volumeNode, self._segmentationNode, layer)

    @contextmanager
    def _withoutSurfaces(self, segmentIds: Iterable[str]) -> Iterator[None]:
        """Keep the 3-D surfaces out of the way: every write would compute them anew, a large one takes 0.4 s."""
        segments = [self._segmentation.GetSegment(segmentId) for segmentId in self._existing(segmentIds)]
        surfaces = [(segment, segment.GetRepresentation(SURFACE)) for segment in segments]
        for segment, _ in surfaces:
            segment.RemoveRepresentation(SURFACE)
        try:
            yield
        finally:
            for segment, surface in surfaces:
                if surface is not None:
                    segment.AddRepresentation(SURFACE, surface)


def _voxelNumbers(masks: Mapping[str, Array], place: _Place, shape: tuple[int, int, int]) -> dict[str, Array]:
    """Return the numbers of the voxels of masks (rows, columns) of a slice in a volume of `shape` (K, J, I)."""
    numbered = {}
    for segmentId, mask in masks.items():
        if mask.any():
            indices = list(np.nonzero(mask))
            indices.insert(place.axis, np.full(len(indices[0]), place.index))
            numbered[segmentId] = np.ravel_multi_index(indices, shape)
    return numbered


def _merged(changes: Sequence[_Change]) -> _Change:
    """Return changes of different voxels as one."""

    def merged(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        ids = dict.fromkeys(segmentId for part in parts for segmentId in part)
        return {i: np.concatenate([part[i] for part in parts if i in part]) for i in ids}

    places = [place for change in changes for place in change.places]
    return _Change(places, merged([change.lost for change in changes]), merged([change.got for change in changes]))


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
