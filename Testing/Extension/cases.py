"""Small cases as nodes of the scene: noisy volumes with a bright "disc" and a dark "square" on every slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegSlicer.Scene import Segmentations
from Testing.conftest import DISC, SQUARE, discs

NAMES = {DISC: "disc", SQUARE: "square"}


def addCase(
    seed: int = 0, slices: Sequence[int] | None = (1, 3), name: str = "CT", axis: int = 0
) -> tuple[Any, Any, Volume, np.ndarray]:
    """Return a volume node, a segmentation node that is drawn on the given slices (None: all), and both as the library
    has them: (K, J, I) = (6, 64, 64).
    """
    volume, labels = discs(np.random.default_rng(seed))
    if slices is not None:
        others = [index for index in range(labels.shape[axis]) if index not in slices]
        np.moveaxis(labels, axis, 0)[others] = 0
    volumeNode = slicer.util.addVolumeFromArray(volume.array, volume.affine, name)
    segmentationNode = Segmentations.segmentationFromLabelmap(
        Labelmap(volume.like(labels), NAMES), volumeNode, name="drawn"
    )
    return volumeNode, segmentationNode, volume, labels


def labelsOf(segmentationNode: Any, volumeNode: Any) -> np.ndarray:
    """The segments as labels (K, J, I): 1 disc, 2 square."""
    found = Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode)
    labels = np.zeros_like(found.volume.array)
    for value, name in found.structures.items():
        labels[found.volume.array == value] = {n: v for v, n in NAMES.items()}[name]
    return labels
