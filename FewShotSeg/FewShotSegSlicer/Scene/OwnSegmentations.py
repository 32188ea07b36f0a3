"""Over a volume only the segmentations of its patient: masks of another one there would deceive.

What was hidden, and what the user wants to see all the same, is noted in the segmentation nodes, and so saved with the
scene. A segmentation that does not know its volume, as one just loaded from a file, is left alone.
"""

from __future__ import annotations

from typing import Any

import slicer
import slicer.util

from . import Segmentations

_ATTRIBUTE = "FewShotSeg.OverOtherVolumes"  # attribute of the nodes
_HIDDEN, _WANTED = "hidden", "wanted"


def showOnly(volumeNode: Any) -> bool:
    """Hide what belongs to other volumes, and show again what was hidden and belongs to this one; returns whether any
    was hidden. What the user has turned on again stays as the user has it.
    """
    hidesSome = False
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display, note = node.GetDisplayNode(), node.GetAttribute(_ATTRIBUTE)
        if display is None or note == _WANTED:
            continue
        isVisible = bool(display.GetVisibility())
        if note == _HIDDEN and isVisible:
            node.SetAttribute(_ATTRIBUTE, _WANTED)
        elif note == _HIDDEN and belongsTo(node, volumeNode):
            display.SetVisibility(True)
            node.RemoveAttribute(_ATTRIBUTE)
        elif isVisible and not belongsTo(node, volumeNode):
            display.SetVisibility(False)
            node.SetAttribute(_ATTRIBUTE, _HIDDEN)
            hidesSome = True
    return hidesSome


def want(segmentationNode: Any) -> None:
    """Show a segmentation that was hidden, from now on over every volume: the user has chosen it."""
    if segmentationNode.GetAttribute(_ATTRIBUTE) == _HIDDEN:
        segmentationNode.SetAttribute(_ATTRIBUTE, _WANTED)
        segmentationNode.GetDisplayNode().SetVisibility(True)


def belongsTo(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether a segmentation may be shown and drawn on over a volume: made on it or on another one of the patient, or
    wanted there, or of unknown origin.
    """
    owner = Segmentations.volumeOf(segmentationNode)
    isKnown = owner is not None and segmentationNode.GetAttribute(_ATTRIBUTE) != _WANTED
    return not isKnown or owner is volumeNode or _patientOf(owner) == _patientOf(volumeNode) != 0


def ofVolume(volumeNode: Any) -> Any:
    """Return the segmentation that was made on a volume, the newest of several; None if there is none."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return next((node for node in reversed(nodes) if Segmentations.volumeOf(node) is volumeNode), None)


def _patientOf(node: Any) -> int:
    """The patient of a node in the subject hierarchy, 0 where there is none, as for files that are not DICOM."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node)
    return int(hierarchy.GetItemAncestorAtLevel(item, "Patient")) if item else 0
