"""A scene of an earlier version opens with its clicks, masks and exemplars."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import slicer

ARCHIVE = Path(__file__).resolve().parents[1] / "Golden" / "version-0.1.0.zip"


def test_a_scene_of_an_earlier_version_opens(panel: Any, tmp_path: Path) -> None:
    from FewShotSegSlicer.Scene import Segmentations

    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extract("scene.mrb", tmp_path)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    slicer.app.processEvents()
    ui = panel.panel.ui
    assert ui.exemplarList.count == 1
    volumeNode = slicer.util.getNode("discs")
    ui.volumeSelector.setCurrentNode(volumeNode)
    segmentationNode = next(iter(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")))
    ui.segmentationSelector.setCurrentNode(segmentationNode)
    segmentId = segmentationNode.GetSegmentation().GetSegmentIdBySegmentName("disc")
    panel.panel.segment.choose(segmentId)
    slicer.app.processEvents()
    assert np.count_nonzero(Segmentations.sliceMask(segmentationNode, segmentId, volumeNode, 0, 1)) == 211
    np.testing.assert_allclose(panel.logic.live.promptOn(0, 1).points_ras, [[-24.0275, -23.0604, 4.0]], atol=1e-3)
    exemplar = panel.logic.exemplars.list()[0]
    assert (exemplar.slices, exemplar.structures) == ((1,), {1: "disc"})
