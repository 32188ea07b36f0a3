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

from .EditableArea import EditableArea
from .Geometry import Array, checkedSlice, shapeOf
from .Layers import SURFACE, checkGrid, existing, layerOf, orientedImage, rebuildSurfaces, segmentOf
from .LiveMasks import LiveMasks
from .SegmentSlice import SegmentSlice

_UNDO_LEVELS = 200


@dataclass(frozen=True, eq=False)
class _Change:
    """Which voxels, by their numbers in the flattened volume (K, J, I), segments (by ID) lost and got on slices."""

    places: Collection[SegmentSlice]
    lost: Mapping[str, Array]
    got: Mapping[str, Array]

    def reversed(self) -> _Change:
        """Return the change that takes this one back."""
        return replace(self, lost=self.got, got=self.lost)


class SegmentWriter:
    """Writes slices of a volume into the segments of a segmentation.

    A live mask is painted into its segment's own layer, and the voxels below it are kept: that takes a millisecond or
    two, and the 3-D surface waits for `idle`. Several slices may be live at once. The settings of `area` mean what they
    mean in the Segment Editor; a segment that must not be overwritten never is, not even while a mask is live.

    Undo is about accepted slices, voxel by voxel: what the user has painted, renamed or added since stays.
    (vtkSegmentationHistory would take it away.)
    """

    def __init__(self, segmentationNode: Any, volumeNode: Any) -> None:
        """Raise `InputError` where slices of the volume cannot be written to the segmentation, and say why."""
        checkGrid(segmentationNode, volumeNode)
        self.area = EditableArea(segmentationNode, volumeNode)
        """Where masks may go, for the user to choose."""
        self._live = LiveMasks(segmentationNode, volumeNode, self.area)
        self._segmentationNode, self._volumeNode = segmentationNode, volumeNode
        self._segmentation = segmentationNode.GetSegmentation()
        self._undo: deque[_Change] = deque(maxlen=_UNDO_LEVELS)
        self._staleSurfaces: set[str] = set()
        self._editor = slicer.vtkSlicerSegmentEditorLogic()
        self._editorNode = slicer.vtkMRMLSegmentEditorNode()
        self._editor.SetSegmentEditorNode(self._editorNode)

    def showLive(self, segmentId: str, axis: int, index: int, mask: Array) -> None:
        """Show the segment on a slice as `accept` would leave it; `mask` (rows, columns) replaces the one before.

        It is no step of undo. Segments that may be overwritten and share the layer make way meanwhile.
        """
        self._live.show(*self._checked(segmentId, axis, index, mask))
        self._notify([segmentId])

    def restore(self, segmentId: str, axis: int, index: int) -> None:
        """Take a live mask off its slice; voxels that somebody else has painted meanwhile stay as they are."""
        self._live.remove(SegmentSlice(segmentId, axis, index))
        self._notify([segmentId])

    def accept(self, segmentId: str, axis: int, index: int, mask: Array) -> None:
        """Give the segment the voxels of `mask` (rows, columns) on a slice, as one step of undo; ends its live mask."""
        self.acceptSlices(segmentId, axis, {index: mask})

    def acceptSlices(self, segmentId: str, axis: int, masks: Mapping[int, Array]) -> None:
        """Do for many slices {index: mask} what `accept` does for one: in one step, and in hardly more time."""
        checkGrid(self._segmentationNode, self._volumeNode)
        masksByPlace = dict(self._checked(segmentId, axis, index, mask) for index, mask in masks.items())
        taken = self._live.takenOff(masksByPlace)
        self._live.shrinkUnused()
        change = _merged([self._changeBy(place, mask) for place, mask in masksByPlace.items()])
        self._write(change)
        self._undo.append(change)
        self._live.putBack(live for live in taken if live.place not in masksByPlace)
        self._notify(live.place.segmentId for live in taken)

    def undo(self) -> bool:
        """Take back what was accepted last; returns whether there was anything."""
        if not self._undo:
            return False
        checkGrid(self._segmentationNode, self._volumeNode)
        change = self._undo.pop().reversed()
        taken = self._live.takenOff(change.places)
        self._live.shrinkUnused()
        self._write(change)
        self._live.putBack(taken)
        self._notify(live.place.segmentId for live in taken)
        return True

    def idle(self) -> None:
        """Bring the 3-D surfaces, where there are any, in step with the voxels; call it when the user pauses."""
        stale = existing(self._segmentationNode, self._staleSurfaces)
        self._staleSurfaces.clear()
        if stale and self._segmentation.ContainsRepresentation(SURFACE):
            rebuildSurfaces(self._segmentationNode, stale)

    def close(self) -> None:
        """Take off all live masks and bring the 3-D surfaces in step; undo ends here."""
        self._notify(live.place.segmentId for live in self._live.takenOff())
        self._live.shrinkUnused()
        self.idle()
        self._undo.clear()
        self._editor.SetSegmentEditorNode(None)

    def _checked(self, segmentId: str, axis: int, index: int, mask: Array) -> tuple[SegmentSlice, Array]:
        segmentOf(self._segmentationNode, segmentId)
        shape = checkedSlice(self._volumeNode, axis, index)
        mask = np.array(mask, dtype=bool)
        if mask.shape != shape:
            raise InputError(f"A mask of this slice has {shape} voxels (rows, columns), got {mask.shape}.")
        return SegmentSlice(segmentId, axis, index), mask

    def _changeBy(self, place: SegmentSlice, mask: Array) -> _Change:
        (losses, gains), shape = self.area.change(place, mask), shapeOf(self._volumeNode)
        return _Change([place], _voxelNumbers(losses, place, shape), _voxelNumbers(gains, place, shape))

    def _notify(self, segmentIds: Iterable[str]) -> None:
        """Have the views redrawn; to report the source as modified would remove the surfaces of all segments."""
        for segmentId in set(segmentIds):
            self._segmentation.InvokeEvent(self._segmentation.RepresentationModified, segmentId)
            self._staleSurfaces.add(segmentId)

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
        if not existing(self._segmentationNode, [segmentId]):  # removed by the user since
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
        segments = [self._segmentation.GetSegment(i) for i in existing(self._segmentationNode, segmentIds)]
        surfaces = [(segment, segment.GetRepresentation(SURFACE)) for segment in segments]
        for segment, _ in surfaces:
            segment.RemoveRepresentation(SURFACE)
        try:
            yield
        finally:
            for segment, surface in surfaces:
                if surface is not None:
                    segment.AddRepresentation(SURFACE, surface)


def _voxelNumbers(masks: Mapping[str, Array], place: SegmentSlice, shape: tuple[int, int, int]) -> dict[str, Array]:
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
