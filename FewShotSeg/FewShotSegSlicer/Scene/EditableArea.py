"""Which voxels may change when a mask is written, as the user has set it in the manner of the Segment Editor."""

from __future__ import annotations

from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError

from .Geometry import Array, voxelsOf
from .Segmentations import sliceMask
from .SegmentSlice import SegmentSlice

OVERWRITE_MODES = ("none", "visible", "all")


class EditableArea:
    """Settings, and what they mean for a mask on a slice. Without any, everything may change and nothing is taken."""

    def __init__(self, segmentationNode: Any, volumeNode: Any) -> None:
        self.inside: str | None = None
        """ID of the one segment inside which voxels may change, None for everywhere. If it may be overwritten, what was
        carved out of it may change too, and returns to it when it is lost."""
        self.intensity: tuple[float, float] | None = None
        """Lowest and highest intensity of voxels that may change, None for all."""
        self._overwriteMode = "none"
        self._segmentationNode, self._volumeNode = segmentationNode, volumeNode

    @property
    def overwriteMode(self) -> str:
        """Which other segments lose voxels to an accepted mask: "none", "visible" ones, or "all"."""
        return self._overwriteMode

    @overwriteMode.setter
    def overwriteMode(self, mode: str) -> None:
        if mode not in OVERWRITE_MODES:
            raise InputError(f"The overwrite mode is one of {', '.join(OVERWRITE_MODES)}, got {mode!r}.")
        self._overwriteMode = mode

    def overwritable(self, segmentId: str) -> list[str]:
        """Return the segments that may lose voxels to a segment."""
        others = [other for other in self._segmentIds() if other != segmentId]
        if self._overwriteMode == "visible":
            displayNode = self._segmentationNode.GetDisplayNode()
            return [other for other in others if displayNode is None or displayNode.GetSegmentVisibility(other)]
        return others if self._overwriteMode == "all" else []

    def maskOf(self, segmentId: str, place: SegmentSlice) -> Array:
        """Return what a segment has now on the slice of a place."""
        return sliceMask(self._segmentationNode, segmentId, self._volumeNode, place.axis, place.index)

    def lostAndPainted(self, place: SegmentSlice, mask: Array, current: Array) -> tuple[Array, Array]:
        """Return which voxels the segment loses, and which it covers with a mask, where it has `current` now."""
        lost, painted = current & ~mask, mask.copy()
        if self.inside is not None:
            area = self.maskOf(self.inside, place)
            painted &= area
            if self.inside not in self.overwritable(place.segmentId):  # otherwise it was carved out of that segment
                lost &= area
        if self.intensity is not None:
            low, high = self.intensity
            image = voxelsOf(self._volumeNode).take(place.index, place.axis)
            area = (image >= low) & (image <= high)
            lost, painted = lost & area, painted & area
        return lost, painted

    def change(self, place: SegmentSlice, mask: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return which voxels of the slice segments, by their ID, lose and get where a mask is accepted."""
        current = self.maskOf(place.segmentId, place)
        lost, painted = self.lostAndPainted(place, mask, current)
        losses, gains = {place.segmentId: lost}, {place.segmentId: painted & ~current}
        overwritable = self.overwritable(place.segmentId)
        for other in overwritable:
            losses[other] = self.maskOf(other, place) & painted
        if self.inside is not None and self.inside in overwritable:
            gains[self.inside] = lost & ~self._othersThan(place)
        return losses, gains

    def _othersThan(self, place: SegmentSlice) -> Array:
        masks = [self.maskOf(other, place) for other in self._segmentIds() if other != place.segmentId]
        return np.logical_or.reduce(masks)

    def _segmentIds(self) -> tuple[str, ...]:
        return tuple(self._segmentationNode.GetSegmentation().GetSegmentIDs())
