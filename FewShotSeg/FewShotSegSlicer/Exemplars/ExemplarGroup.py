"""Exemplars of the scene as the library knows them, and what the scene alone can say against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import ExemplarFiles
from FewShotSegLib.data.volume import Labelmap
from FewShotSegSlicer.Scene import Volumes
from FewShotSegSlicer.Workers.JobFiles import JobFiles

from .ExemplarNode import ExemplarNode

_SEEN = 0.5  # of the window a user looks at, which the model must see too
_NARROW = 0.2  # of the model's window: a narrower one shows contrasts that the model hardly gets


@dataclass(eq=False)
class ExemplarGroup:
    """Exemplars that make one for the library: same volume, same axis, same structures."""

    volumeNode: Any
    axis: int
    names: tuple[str, ...]
    members: list[ExemplarNode] = field(default_factory=list)

    @property
    def slices(self) -> tuple[int, ...]:
        """The annotated slices of all members, in order."""
        return tuple(sorted(index for one in self.members for index in one.exemplar.slices))

    @property
    def emptySlices(self) -> tuple[int, ...]:
        """The slices that show none of the structures, in order."""
        return tuple(sorted(index for one in self.members for index in one.exemplar.emptySlices))

    def asExemplar(self, names: Mapping[int, str]) -> Exemplar:
        """Return the library's exemplar with the labels `names` {value: name}; what they do not name is background."""
        volume = Volumes.volumeFromNode(self.volumeNode)
        labels = np.zeros(volume.shape, np.uint8 if max(names, default=0) <= 255 else np.uint16)
        slices = np.moveaxis(labels, self.axis, 0)
        values = {name: value for value, name in names.items()}
        for one in self.members:
            structures = one.exemplar.structures
            numbers = np.zeros(max(structures, default=0) + 1, labels.dtype)
            for value, name in structures.items():
                numbers[value] = values.get(name, 0)
            for index, drawn in zip(one.exemplar.slices, one.labels, strict=True):
                slices[index] = numbers[drawn]
        known = {value: name for value, name in names.items() if name in self.names}
        overlapping = sum(one.exemplar.overlapping for one in self.members)
        name = self.volumeNode.GetName()
        return Exemplar(volume, labels, known, self.axis, self.slices, self.emptySlices, name, overlapping)

    def written(self, names: Mapping[int, str], files: JobFiles) -> ExemplarFiles:
        """Write it for a job; `names` as in `asExemplar`."""
        exemplar = self.asExemplar(names)
        image = files.volume(self.volumeNode.GetID(), exemplar.volume, exemplar.name)
        labelmap = Labelmap(exemplar.volume.like(exemplar.labelmap), exemplar.structures)
        slices = (*self.slices, *self.emptySlices)
        return files.exemplar(image, labelmap, self.axis, slices, exemplar.structures)


def grouped(members: Sequence[ExemplarNode], names: Sequence[str]) -> list[ExemplarGroup]:
    """Group exemplars. Empty slices speak of all structures: they join every group of their volume and axis.

    `names` are the structures of empty slices whose volume has no others.
    """
    groups: dict[tuple[str, int, frozenset[str]], ExemplarGroup] = {}
    for one in (one for one in members if one.exemplar.slices):
        own = tuple(one.exemplar.structures.values())
        key = (one.volumeNode.GetID(), one.exemplar.axis, frozenset(own))
        groups.setdefault(key, ExemplarGroup(one.volumeNode, one.exemplar.axis, own)).members.append(one)
    for one in (one for one in members if not one.exemplar.slices):
        place = (one.volumeNode.GetID(), one.exemplar.axis)
        alike = [group for key, group in groups.items() if key[:2] == place]
        if not alike:
            alone = ExemplarGroup(one.volumeNode, one.exemplar.axis, tuple(names))
            alike = [groups.setdefault((*place, frozenset(names)), alone)]
        for group in alike:
            group.members.append(one)
    return list(groups.values())


def windowProblem(volumeNode: Any, window: tuple[float, float] | None = None) -> str:
    """Return a sentence when the user has chosen to look at other values than the model will see, "" when not.

    `window` are the values that the model will see; None: chosen by the kind of image.
    """
    display, shown = volumeNode.GetScalarVolumeDisplayNode(), Volumes.shownWindow(volumeNode)
    if shown is None or display.GetAutoWindowLevel():
        return ""
    low, high = window or _automaticWindow(volumeNode)
    common, width = min(high, shown[1]) - max(low, shown[0]), shown[1] - shown[0]
    if common >= _SEEN * width and width >= _NARROW * (high - low):
        return ""
    return (
        f'"{volumeNode.GetName()}" is shown from {shown[0]:g} to {shown[1]:g}, and the model sees {low:g} to {high:g}; '
        "what does not stand out there cannot be learned. Choose the window that the model sees, or look at that one."
    )


def _automaticWindow(volumeNode: Any) -> tuple[float, float]:
    volume = Volumes.volumeFromNode(volumeNode)
    return IntensitySpec.auto(volume).range_of(volume.array) or (float(volume.array.min()), float(volume.array.max()))
