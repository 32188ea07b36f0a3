"""The annotated slices that a model learns from, kept in the scene: saved, closed and imported with it.

Labels are copied when a slice is added, and what is drawn later does not change them. The voxels of the volume, which
a model needs whole, are not copied: the volume must stay in the scene, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import preflight
from FewShotSegLib.data.job import ExemplarFiles
from FewShotSegLib.data.structures import distinct_names
from FewShotSegLib.data.volume import AXIS_LETTERS, Volume
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Segmentations, Volumes
from FewShotSegSlicer.Scene.Geometry import Array, checkedSlice, rasFromIjk, voxelsOf
from FewShotSegSlicer.Scene.Thumbnails import thumbnail
from FewShotSegSlicer.Signal import Signal
from FewShotSegSlicer.Workers.JobFiles import JobFiles, labelledSlices, numbered

from . import ExemplarBundle
from .ExemplarGroup import ExemplarGroup, grouped, windowProblem
from .ExemplarNode import DrawnSlices, ExemplarNode, SceneExemplar

_NONE_YET = "There is no exemplar yet: annotate a slice and add it."


class ExemplarStore:
    """The exemplars of the scene. Methods raise `InputError` for what the user can mend."""

    def __init__(self) -> None:
        self.changed = Signal()
        """(): exemplars were added, removed, renamed, or came and went with the scene."""
        self._nodes: dict[str, ExemplarNode] = {}
        self._shas: dict[str, tuple[int, str]] = {}
        self._pictures: dict[tuple[str, int], tuple[Any, Array]] = {}
        scene = slicer.mrmlScene
        events = (scene.EndCloseEvent, scene.EndImportEvent, scene.EndRestoreEvent)
        self._observers = [scene.AddObserver(event, lambda caller, event: self.changed()) for event in events]

    def close(self) -> None:
        """Listen to the scene no longer."""
        for observer in self._observers:
            slicer.mrmlScene.RemoveObserver(observer)
        self._observers.clear()

    # --------------------------------------------------------------------------------------------------------- adding

    def addSlice(
        self, volumeNode: Any, segmentationNode: Any, axis: int, index: int, segmentIds: Sequence[str] | None = None
    ) -> SceneExemplar:
        """Keep a slice as it is drawn now. The segments (default: all that hold a voxel anywhere) are taken to be
        complete on it. What was kept of this slice before is replaced.
        """
        ids = _drawn(volumeNode, segmentationNode, axis, segmentIds)
        names = _namesOf(segmentationNode, ids)
        labels = np.zeros((1, *checkedSlice(volumeNode, axis, index)), np.uint16)
        overlapping = 0
        for value, segmentId in enumerate(ids, start=1):
            mask = Segmentations.sliceMask(segmentationNode, segmentId, volumeNode, axis, index)
            overlapping += int(np.count_nonzero(labels[0][mask]))
            labels[0][mask] = value
        if not labels.any():
            raise InputError(
                f"Slice {AXIS_LETTERS[axis]}={index} shows no {' or '.join(names.values())}; draw them, or mark the "
                "slice as empty."
            )
        return self._add(volumeNode, DrawnSlices(axis, (index,), (), names, labels), overlapping=overlapping)

    def addAnnotatedSlices(
        self, volumeNode: Any, segmentationNode: Any, axis: int | None = None, segmentIds: Sequence[str] | None = None
    ) -> SceneExemplar:
        """Keep every slice along `axis` (default: as acquired) on which a segment holds a voxel, as one exemplar."""
        axis = Volumes.volumeFromNode(volumeNode).acquisition_axis if axis is None else axis
        ids = _drawn(volumeNode, segmentationNode, axis, segmentIds)
        labelmap = Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode, ids)
        array, overlapping = labelmap.volume.array, sum(int(mask.sum()) for mask in labelmap.hidden.values())
        slices = labelledSlices(array, axis)
        labels, names = np.moveaxis(array, axis, 0)[slices], _namesOf(segmentationNode, ids)
        drawn = DrawnSlices(axis, tuple(slices), (), names, labels)
        return self._add(volumeNode, drawn, overlapping=overlapping)

    def markEmpty(self, volumeNode: Any, axis: int, index: int) -> SceneExemplar:
        """Keep a slice that negative example. What was kept of it before is replaced."""
        labels = np.zeros((0, *checkedSlice(volumeNode, axis, index)), np.uint16)
        return self._add(volumeNode, DrawnSlices(axis, (), (index,), {}, labels))

    def _add(self, volumeNode: Any, drawn: DrawnSlices, **card: Any) -> SceneExemplar:
        """Keep what was drawn; `card` has another name and date, and a note, where it comes from elsewhere."""
        volume = Volumes.volumeFromNode(volumeNode)
        slices = (*drawn.slices, *drawn.emptySlices)
        replacedName = self._forgetSlices(volumeNode, drawn.axis, set(slices))
        indices = ", ".join(map(str, slices[:3])) + (", ..." if len(drawn.slices) > 3 else "")
        made = {
            "name": replacedName or f"{volumeNode.GetName()} {AXIS_LETTERS[drawn.axis]}={indices}",
            "date": datetime.now().isoformat(" ", "seconds"),
        }
        exemplar = SceneExemplar(
            id="",
            volumeName=volumeNode.GetName(),
            axis=drawn.axis,
            slices=drawn.slices,
            emptySlices=drawn.emptySlices,
            structures=dict(drawn.structures),
            volumeSha256=self._sha(volumeNode, volume),
            shape=volume.shape,
            **{**made, **card},
        )
        added = ExemplarNode.made(exemplar, drawn.labels, volumeNode)
        self.changed()
        return added.exemplar

    def _forgetSlices(self, volumeNode: Any, axis: int, slices: set[int]) -> str:
        """Take slices out of the exemplars that hold them. Returns the name of one that held no others."""
        name = ""
        for one in self._all():
            held = set(one.exemplar.allSlices)
            if one.volumeNode is volumeNode and one.exemplar.axis == axis and held & slices:
                name = one.exemplar.name if held == slices else name
                one.forgetSlices(slices)
        return name

    # ----------------------------------------------------------------------------------------------------------- list

    def list(self, structure: str | None = None) -> tuple[SceneExemplar, ...]:
        """Return the exemplars in the order they were made; with `structure`, those that speak of it."""
        found = [one.exemplar for one in self._all()]
        return tuple(e for e in found if structure is None or structure in e.structures.values())

    def remove(self, id: str) -> None:
        """Take an exemplar out of the scene."""
        self._one(id).remove()
        self.changed()

    def rename(self, id: str, name: str) -> None:
        """Give an exemplar another name."""
        if not name.strip():
            raise InputError("An exemplar needs a name.")
        self._change(id, name=name.strip())

    def setEnabled(self, id: str, isEnabled: bool) -> None:
        """Say whether an exemplar is learned from."""
        self._change(id, isEnabled=isEnabled)

    def enableForStructures(self, names: Iterable[str]) -> tuple[SceneExemplar, ...]:
        """Learn from exactly the exemplars that speak of one of the structures, and from empty slices of their volumes;
        returns them.
        """
        wanted = {name.strip().lower() for name in names}
        speaking = [one for one in self._all() if wanted & {n.lower() for n in one.exemplar.structures.values()}]
        volumeNodes = [one.volumeNode for one in speaking]
        for one in self._all():
            isEmpty = not one.exemplar.slices and one.volumeNode in volumeNodes
            one.write(replace(one.exemplar, isEnabled=isEmpty or one in speaking))
        self.changed()
        return tuple(one.exemplar for one in self._enabled())

    def structures(self) -> tuple[str, ...]:
        """Return the names that can be learned: those with a voxel on a slice of an enabled exemplar."""
        return tuple(numbered(name for one in self._enabled() for name in one.exemplar.shownStructures).values())

    def slicesOf(self, volumeNode: Any, axis: int) -> tuple[int, ...]:
        """Return the slices of a volume that are kept, annotated or empty."""
        here = [one.exemplar for one in self._all() if one.volumeNode is volumeNode and one.exemplar.axis == axis]
        return tuple(sorted({index for exemplar in here for index in exemplar.allSlices}))

    def thumbnail(self, id: str, size: int = 128) -> Array:
        """Return a picture (H, W, 3), uint8, of the middle slice with its structures; without its volume, on black."""
        one = self._one(id)
        image = one.volumeNode.GetImageData() if one.volumeNode is not None else None
        state = one.node.GetMTime(), image and (image.GetMTime(), Volumes.shownWindow(one.volumeNode))
        known = self._pictures.get((id, size))
        if known is None or known[0] != state:
            known = self._pictures[id, size] = state, self._drawnThumbnail(one, size)
        return known[1]

    def _drawnThumbnail(self, one: ExemplarNode, size: int) -> Array:
        exemplar = one.exemplar
        number = len(exemplar.slices) // 2
        labels = one.labels[number] if exemplar.slices else np.zeros(exemplar.sliceShape, np.uint16)
        image, affine, window = np.zeros(labels.shape), np.diag([-1.0, -1.0, 1.0, 1.0]), (0.0, 1.0)
        if one.volumeNode is not None:
            image = voxelsOf(one.volumeNode).take(exemplar.allSlices[number], exemplar.axis)
            affine = rasFromIjk(one.volumeNode)
            window = Volumes.shownWindow(one.volumeNode) or (float(image.min()), float(image.max()))
        return thumbnail(image, labels, exemplar.structures, window, exemplar.axis, affine, size)

    def _change(self, id: str, **changes: Any) -> None:
        one = self._one(id)
        one.write(replace(one.exemplar, **changes))
        self.changed()

    def _one(self, id: str) -> ExemplarNode:
        found = next((one for one in self._all() if one.exemplar.id == id), None)
        if found is None:
            raise InputError(f"There is no exemplar {id} in the scene any more.")
        return found

    def _all(self) -> Sequence[ExemplarNode]:
        nodes = [n for n in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode") if ExemplarNode.isOne(n)]
        self._nodes = {
            node.GetID(): known
            if (known := self._nodes.get(node.GetID())) and known.node is node
            else ExemplarNode(node)
            for node in nodes
        }
        return sorted(self._nodes.values(), key=lambda one: one.exemplar.date)

    def _enabled(self) -> Sequence[ExemplarNode]:
        return [one for one in self._all() if one.exemplar.isEnabled]

    # -------------------------------------------------------------------------------------------------- for the worker

    def preflight(self, window: tuple[float, float] | None = None) -> Sequence[str]:
        """Return a sentence for everything that makes learning from the enabled exemplars impossible or hard.

        `window` are the lowest and highest value the model shall see; None: chosen by the kind of image.
        """
        try:
            groups = self._groups()
            names = numbered(self.structures())
            sentences = preflight([group.asExemplar(names) for group in groups])
        except InputError as error:
            return [str(error)]
        if len({group.axis for group in groups}) > 1:
            sentences.append("The exemplars lie on slices of different orientations; those of one work best.")
        problems = {group.volumeNode.GetID(): windowProblem(group.volumeNode, window) for group in groups}
        return sentences + [sentence for sentence in problems.values() if sentence]

    def files(self, folder: Path | JobFiles, structures: Mapping[int, str] | None = None) -> tuple[ExemplarFiles, ...]:
        """Write the enabled exemplars into a folder and return them as a job names them.

        `structures` {value: name} numbers them; default: 1, 2, ... in the order they were drawn. Those shown nowhere
        cannot be learned and are left out.
        """
        files = folder if isinstance(folder, JobFiles) else JobFiles(folder)
        names = dict(structures) if structures is not None else numbered(self.structures())
        return tuple(group.written(names, files) for group in self._groups())

    def _groups(self) -> Sequence[ExemplarGroup]:
        """The enabled exemplars, all of them usable."""
        enabled = self._enabled()
        if not enabled:
            raise InputError(_NONE_YET)
        for one in enabled:
            self._check(one)
        return grouped(enabled, self.structures())

    def _check(self, one: ExemplarNode) -> None:
        exemplar = one.exemplar
        if one.volumeNode is None:
            raise InputError(
                f'{exemplar.name}: its volume "{exemplar.volumeName}" is not in the scene any more; load it and '
                "add the slice again, or remove the exemplar."
            )
        volume = Volumes.volumeFromNode(one.volumeNode)
        if volume.shape != exemplar.shape or self._sha(one.volumeNode, volume) != exemplar.volumeSha256:
            raise InputError(
                f'{exemplar.name}: the voxels of "{exemplar.volumeName}" have changed since it was added; add the '
                "slice again, or remove the exemplar."
            )

    def _sha(self, volumeNode: Any, volume: Volume) -> str:
        stamp, known = volumeNode.GetImageData().GetMTime(), self._shas.get(volumeNode.GetID())
        if known is None or known[0] != stamp:
            known = self._shas[volumeNode.GetID()] = stamp, sha256_of_array(volume.array)
        return known[1]

    def exportBundle(self, path: str | Path) -> None:
        """Write the enabled exemplars with their volumes, lossless, as a zip; also a job for the command line."""
        ExemplarBundle.write(self._groups(), numbered(self.structures()), Path(path))

    def importBundle(self, path: str | Path) -> tuple[SceneExemplar, ...]:
        """Add the exemplars of a bundle; volumes that are not in the scene are added too."""
        return tuple(self._add(one.volumeNode, one.drawn, **one.card) for one in ExemplarBundle.read(Path(path)))


def _drawn(volumeNode: Any, segmentationNode: Any, axis: int, segmentIds: Sequence[str] | None) -> Sequence[str]:
    """The IDs of segments that hold a voxel: one that nobody has drawn says nothing about a slice."""
    ids = segmentationNode.GetSegmentation().GetSegmentIDs() if segmentIds is None else segmentIds
    drawn = [i for i in ids if Segmentations.annotatedSlices(segmentationNode, volumeNode, axis, [i])]
    if not drawn:
        raise InputError(f'Nothing is drawn in "{segmentationNode.GetName()}"; annotate at least one slice.')
    return drawn


def _namesOf(segmentationNode: Any, segmentIds: Sequence[str]) -> dict[int, str]:
    segmentation = segmentationNode.GetSegmentation()
    return distinct_names({v: segmentation.GetSegment(i).GetName() for v, i in enumerate(segmentIds, start=1)})
