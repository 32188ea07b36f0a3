"""An exemplar in the scene: a hidden node with a card, a copy of the labels, and a reference to the volume."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.volume import label_values
from FewShotSegSlicer.Scene.Geometry import Array

_MARK = "FewShotSeg.Exemplar"  # attribute of the nodes
_VOLUME = "FewShotSeg.Volume"  # reference to the volume node


@dataclass(frozen=True)
class SceneExemplar:
    """Slices of one volume along array `axis` on which `structures` {value: name} are complete; none of them is on
    `emptySlices`. `shownStructures` are those with a voxel on a slice. `date` is local time, ISO. One that is not
    `isEnabled` is not learned from. `note` is what a scene or a bundle of an earlier version brings along.

    `shape` (K, J, I) and `volumeSha256` are those of the volume when the exemplar was added. `overlapping` is how many
    voxels were drawn in several segments then, and are kept for the last of them only.
    """

    id: str
    name: str
    volumeName: str
    date: str
    axis: int
    slices: tuple[int, ...]
    emptySlices: tuple[int, ...]
    structures: Mapping[int, str]
    shownStructures: tuple[str, ...] = ()
    note: str = ""
    isEnabled: bool = True
    volumeSha256: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    overlapping: int = 0

    @property
    def allSlices(self) -> tuple[int, ...]:
        """The annotated slices, then the empty ones."""
        return (*self.slices, *self.emptySlices)

    @property
    def sliceShape(self) -> tuple[int, int]:
        """Voxels (rows, columns) of a slice."""
        rows, columns = (n for a, n in enumerate(self.shape) if a != self.axis)
        return rows, columns


@dataclass(frozen=True, eq=False)
class DrawnSlices:
    """What was drawn on slices along array `axis`: `labels` (slices, rows, columns) are values of `structures`."""

    axis: int
    slices: tuple[int, ...]
    emptySlices: tuple[int, ...]
    structures: Mapping[int, str]
    labels: Array


class ExemplarNode:
    """Reads and writes one node. It is read again only when it has changed."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self._read: tuple[int, SceneExemplar] | None = None
        self._unpacked: tuple[str, Array] | None = None

    @classmethod
    def made(cls, exemplar: SceneExemplar, labels: Array, volumeNode: Any) -> ExemplarNode:
        """Return a new one in the scene; its ID becomes that of the exemplar. `labels` as in the property."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "FewShotSeg exemplar")
        node.SetHideFromEditors(1)
        node.SetNodeReferenceID(_VOLUME, volumeNode.GetID())
        made = cls(node)
        made.write(exemplar, labels)
        node.SetAttribute(_MARK, "1")
        return made

    @staticmethod
    def isOne(node: Any) -> bool:
        """Whether a node of the scene is an exemplar."""
        return node.GetAttribute(_MARK) is not None

    @property
    def exemplar(self) -> SceneExemplar:
        """The card, as the node has it now."""
        if self._read is None or self._read[0] != self.node.GetMTime():
            self._read = self.node.GetMTime(), _exemplarFrom(self.node)
        return self._read[1]

    @property
    def volumeNode(self) -> Any:
        """The volume, None when it is not in the scene any more."""
        return self.node.GetNodeReference(_VOLUME)

    @property
    def labels(self) -> Array:
        """Values of `exemplar.structures`, uint16 (slices, rows, columns), in the order of `exemplar.slices`."""
        text = self.node.GetParameter("labels")
        if self._unpacked is None or self._unpacked[0] != text:
            content = zlib.decompress(base64.b64decode(text))
            self._unpacked = text, np.frombuffer(content, np.uint16)
        return self._unpacked[1].reshape(-1, *self.exemplar.sliceShape)

    def write(self, exemplar: SceneExemplar, labels: Array | None = None) -> None:
        """Write the card and, where they are new, the labels; `shownStructures` follows from these."""
        if labels is not None:
            content = zlib.compress(np.ascontiguousarray(labels, np.uint16).tobytes())
            self.node.SetParameter("labels", base64.b64encode(content).decode("ascii"))
            shown = tuple(exemplar.structures[value] for value in label_values(labels))
            exemplar = replace(exemplar, shownStructures=shown)
        values = {name: value for name, value in asdict(exemplar).items() if name != "id"}
        self.node.SetParameter("card", json.dumps(values))

    def forgetSlices(self, slices: set[int]) -> None:
        """Take slices out; a node that holds no other is removed."""
        exemplar, labels = self.exemplar, self.labels
        kept = [number for number, index in enumerate(exemplar.slices) if index not in slices]
        annotated = tuple(exemplar.slices[number] for number in kept)
        empty = tuple(index for index in exemplar.emptySlices if index not in slices)
        if not annotated and not empty:
            self.remove()
            return
        self.write(replace(exemplar, slices=annotated, emptySlices=empty), labels[kept])

    def remove(self) -> None:
        """Take the node out of the scene."""
        slicer.mrmlScene.RemoveNode(self.node)


def _exemplarFrom(node: Any) -> SceneExemplar:
    values = json.loads(node.GetParameter("card"))
    for name in ("slices", "emptySlices", "shownStructures", "shape"):
        values[name] = tuple(values[name])
    structures = {int(value): name for value, name in values.pop("structures").items()}
    return SceneExemplar(id=node.GetID(), structures=structures, **values)
