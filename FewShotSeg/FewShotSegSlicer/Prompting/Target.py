"""The segment that prompts are for: its nodes, its slices, and its volume as the prompt worker knows it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from FewShotSegLib.data.volume import ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Volumes
from FewShotSegSlicer.Scene.Geometry import rasFromIjk, shapeOf
from FewShotSegSlicer.Workers.Workers import Workers

from .Prompts import Point, SlicePrompt

_ROUNDING = 1e-3  # voxels; RAS coordinates went through single precision somewhere
_volumeNumbers = itertools.count(1)


class Target:
    """A volume node, a segmentation node, and the segment that is worked on (None: none yet)."""

    def __init__(self, workers: Workers, volumeNode: Any, segmentationNode: Any, segmentId: str | None) -> None:
        self.volumeNode, self.segmentationNode, self.segmentId = volumeNode, segmentationNode, segmentId
        self._workers = workers
        self._sent: tuple[str, tuple[Any, ...]] | None = None

    def isOf(self, volumeNode: Any, segmentationNode: Any) -> bool:
        """Whether these are its nodes."""
        return (self.volumeNode, self.segmentationNode) == (volumeNode, segmentationNode)

    @property
    def areNodesThere(self) -> bool:
        """Whether volume and segmentation are still in the scene."""
        nodes = (self.volumeNode, self.segmentationNode)
        return all(node.GetScene() is not None for node in nodes) and self.volumeNode.GetImageData() is not None

    @property
    def isSegmentThere(self) -> bool:
        """Whether there is a segment to work on."""
        return self.segmentId is not None and self.segment(self.segmentId) is not None

    @property
    def isThere(self) -> bool:
        """Whether there is all that it takes to put a prompt on it."""
        return self.areNodesThere and self.isSegmentThere

    @property
    def structure(self) -> str:
        """The segment's name, by which an adapter knows what it has learned of it."""
        return self.segment(self.segmentId or "").GetName()

    def segment(self, segmentId: str) -> Any:
        """Return the vtkSegment, None when it is not there any more."""
        return self.segmentationNode.GetSegmentation().GetSegment(segmentId)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (K, J, I)."""
        return shapeOf(self.volumeNode)

    # ------------------------------------------------------------------------------------------- the worker's volume

    def volumeName(self) -> str:
        """Return the name of the volume with the worker, after sending it if it is new or was changed."""
        if not self.isVolumeSent:
            self.forgetVolume()
            stamp, volume = self._stamp(), Volumes.volumeFromNode(self.volumeNode)
            name = f"{self.volumeNode.GetID()} {next(_volumeNumbers)}"
            self._workers.sendVolume(name, volume.array, volume.affine)
            self._sent = name, stamp
        assert self._sent is not None
        return self._sent[0]

    @property
    def isVolumeSent(self) -> bool:
        """Whether the worker has the volume as it is now."""
        return self._sent is not None and self._sent[1] == self._stamp()

    def forgetVolume(self) -> None:
        """Have the worker forget the volume."""
        if self._sent is not None:
            self._workers.forgetVolume(self._sent[0])
            self._sent = None

    def _stamp(self) -> tuple[Any, ...]:
        image = self.volumeNode.GetImageData()
        return self._workers.generation, image.GetMTime(), rasFromIjk(self.volumeNode).tobytes()

    # -------------------------------------------------------------------------------------------------------- slices

    def pointOnSlice(self, axis: int, index: int, point_ras: Sequence[float]) -> Point:
        """Return the point moved along `axis` into the slice; `InputError` outside the volume."""
        ijk = self._ijk([point_ras])[0]
        ijk[2 - axis] = index
        outside = (ijk < -0.5 - _ROUNDING) | (ijk > np.array(self.shape[::-1]) - 0.5 + _ROUNDING)
        if outside.any():
            raise InputError(f"The point lies outside the volume {self.volumeNode.GetName()}; click inside it.")
        return self._ras(ijk)

    def boxOnSlice(self, axis: int, index: int, box_ras: Sequence[Sequence[float]]) -> tuple[Point, Point]:
        """Return two opposite corners moved into the slice and the volume; `InputError` if nothing is in between."""
        low, high = np.sort(self._ijk(box_ras), axis=0)
        low, high = (np.clip(corner, -0.5, np.array(self.shape[::-1]) - 0.5) for corner in (low, high))
        low[2 - axis] = high[2 - axis] = index
        if (np.delete(high - low, 2 - axis) < 1.0).any():
            raise InputError("The box holds no voxel of the volume; drag from one corner of it to the opposite one.")
        return self._ras(low), self._ras(high)

    def boxCorners(self, axis: int, box_ras: Sequence[Sequence[float]]) -> list[Point]:
        """Return the four corners of a box in order around it."""
        low, high = self._ijk(box_ras)
        row, column = (2 - a for a in range(3) if a != axis)
        corners = []
        for rows, columns in ((low, low), (low, high), (high, high), (high, low)):
            corner = low.copy()
            corner[row], corner[column] = rows[row], columns[column]
            corners.append(self._ras(corner))
        return corners

    def sliceOf(self, axis: int, prompt: SlicePrompt) -> int | None:
        """Return the index of the slice that all of the prompt lies on; None if there is none."""
        where = self._ijk([*prompt.points_ras, *(prompt.box_ras or ())])[:, 2 - axis]
        index = round(float(np.median(where)))
        isOn = np.abs(where - index).max() <= 0.5 + _ROUNDING and 0 <= index < self.shape[axis]
        return index if isOn else None

    def _ijk(self, points_ras: Sequence[Sequence[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return ijk_from_ras(rasFromIjk(self.volumeNode), np.asarray(points_ras, np.float64))

    def _ras(self, ijk: np.ndarray[Any, np.dtype[np.float64]]) -> Point:
        r, a, s = ras_from_ijk(rasFromIjk(self.volumeNode), ijk[None])[0].tolist()
        return r, a, s
