"""What is chosen in the panel, and what follows from it."""

from __future__ import annotations

import slicer

from Testing.Extension.panels import Case


def test_a_volume_under_a_warp_is_explained_and_breaks_nothing(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    volumeNode.SetAndObserveTransformNodeID(warp.GetID())
    case.panel.update()
    assert not case.ui.emptySliceButton.enabled
