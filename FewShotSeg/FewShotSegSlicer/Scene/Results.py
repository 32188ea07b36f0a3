"""What the worker has written, taken over: a labelmap into the scene, the table of a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.jobs.volumes_table import write_volumes

from . import Segmentations
from .Geometry import Array, rasFromIjk, shapeOf

log = logging.getLogger(__name__)


def intoScene(
    path: Path, volumeNode: Any, segmentationNode: Any, name: str, drawn: Sequence[tuple[int, Sequence[int]]] = ()
) -> Any:
    """Write a labelmap file into the segments of its names and return the segmentation node.

    The file is of the voxels of the volume; where the volume lies by now does not matter. On the slices `drawn`
    (array axis, indices) of a given segmentation, what it holds is kept. A segmentation that has left the scene is
    replaced by a new one.
    """
    if not isInScene(volumeNode):
        raise InputError(
            f'The segmentation of "{volumeNode.GetName()}" is ready, but the volume is not in the scene any more; load '
            "it again and repeat."
        )
    found = load_labelmap(path)
    if found.volume.shape != shapeOf(volumeNode):
        raise InputError(f'"{volumeNode.GetName()}" has changed its size meanwhile; segment it again.')
    target = segmentationNode if segmentationNode is not None and isInScene(segmentationNode) else None
    labels = found.volume.array
    if target is not None and drawn:
        labels = _keepingDrawn(labels, found.structures, volumeNode, target, drawn)
    volume = Volume(labels, rasFromIjk(volumeNode))
    return Segmentations.segmentationFromLabelmap(Labelmap(volume, found.structures), volumeNode, target, name)


def isInScene(node: Any) -> bool:
    """Whether a node (or None) is in the scene."""
    return node is not None and slicer.mrmlScene.IsNodePresent(node)


def _keepingDrawn(
    labels: Array,
    structures: Mapping[int, str],
    volumeNode: Any,
    segmentationNode: Any,
    drawn: Sequence[tuple[int, Sequence[int]]],
) -> Array:
    values = {name: value for value, name in structures.items()}
    ids = [segmentId for name, segmentId in Segmentations.segmentsByName(segmentationNode).items() if name in values]
    if not ids:
        return labels
    own = Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode, ids)
    numbers = np.zeros(len(ids) + 1, labels.dtype)
    for value, name in own.structures.items():
        numbers[value] = values[name]
    labels = labels.copy()
    for axis, indices in drawn:
        at = tuple(list(indices) if a == axis else slice(None) for a in range(3))
        labels[at] = numbers[own.volume.array[at]]
    return labels


def tableOf(record: Mapping[str, Any], folder: Path, names: Mapping[str, str]) -> str:
    """Return the path of the table of a batch, in which images are called by `names` {file: name} where given.

    Raises `InputError` when no image could be segmented; some that could not are logged.
    """
    images = record["images"]
    failed = [f"{_nameOf(one, names)}: {one['error']['message']}" for one in images if "error" in one]
    if len(failed) == len(images):
        raise InputError(f"None of {len(images)} volumes could be segmented. {'; '.join(failed)}")
    for sentence in failed:
        log.warning("Not segmented: %s", sentence)
    table = Path(record.get("table") or folder / "volumes.csv")
    if names:
        table = write_volumes([{**one, "image": _nameOf(one, names)} for one in images], table)
    return str(table)


def _nameOf(record: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return names.get(record["image"], record["image"])
