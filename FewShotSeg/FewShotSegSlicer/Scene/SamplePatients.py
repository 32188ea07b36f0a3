"""Two synthetic patients for Slicer's module Sample Data, painted when asked for: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.volume import Labelmap
from FewShotSegLib.errors import InputError

from . import Segmentations, SliceViews

_ICONS = Path(__file__).resolve().parents[2] / "Resources" / "Icons"
_NAMES = ("FewShotSegPatient1", "FewShotSegPatient2")
_ANNOTATED_AT = (0.3, 0.55, 0.75)  # along the part of patient 1 that holds organs


def register() -> None:
    """Offer the patients in the module Sample Data, which calls `_load` when a button is pressed."""
    from SampleData import SampleDataLogic

    for name in _NAMES:
        SampleDataLogic.registerCustomSampleDataSource(
            category="FewShotSeg",
            sampleName=name,
            uris=f"generated:{name}",  # opened by nobody
            fileNames=f"{name}.nrrd",
            nodeNames=name,
            customDownloader=_load,
            thumbnailFileName=str(_ICONS / f"{name}.png"),
        )


def load(number: int) -> tuple[Any, Any]:
    """Put patient 1 or 2 into the scene and return (volume node, segmentation node or None).

    Patient 1 comes with five structures annotated on three slices, patient 2 without. A second or two.
    """
    from FewShotSegLib.demo.phantom import patient

    if number not in (1, 2):
        raise InputError(f"There are the sample patients 1 and 2, got {number}.")
    name = _NAMES[number - 1]
    volume, truth = patient(np.random.default_rng(number))
    volumeNode = slicer.util.addVolumeFromArray(volume.array, volume.affine, name)
    displayNode = volumeNode.GetDisplayNode()
    displayNode.AutoWindowLevelOff()
    displayNode.SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    if number != 1:
        return volumeNode, None
    slices = _slicesToAnnotate(truth)
    SliceViews.jumpToSlice(volumeNode, 0, slices[1])
    labels = np.zeros_like(truth.volume.array)
    labels[slices] = truth.volume.array[slices]
    annotated = Labelmap(truth.volume.like(labels), truth.structures)
    return volumeNode, Segmentations.segmentationFromLabelmap(annotated, volumeNode, name=f"{name}Segmentation")


def _load(source: Any) -> list[Any]:
    return [node for node in load(_NAMES.index(source.sampleName) + 1) if node is not None]


def _slicesToAnnotate(truth: Labelmap) -> list[int]:
    held = np.flatnonzero(truth.volume.array.any(axis=(1, 2)))
    return [int(held[round(share * (len(held) - 1))]) for share in _ANNOTATED_AT]
