"""Points that are drawn, dragged and removed as markups."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from Testing.Extension.bench import Bench
from Testing.Extension.toolbench import ToolBench, ownMarkups, pointsIn, sliceNode


def test_a_dragged_point_takes_its_mask_along_and_is_one_step(toolBench: ToolBench, clickIn: Any, mouse: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 8))
    toolBench.workers.answer()
    toolBench.tool.mode = "negative"  # a press on a point takes hold of it whatever the tool
    mouse.move("Red", toolBench.at("Red", 4, 8))
    mouse.press("Red")
    for column in (9, 10, 11):
        mouse.move("Red", toolBench.at("Red", 4, column))
        toolBench.workers.answerAll()
    axis, index = toolBench.where("Red")
    toolBench.assertAnswered(index, axis)
    mouse.release("Red")
    toolBench.workers.answerAll()
    toolBench.assertAnswered(index, axis)
    pixel_mm = sliceNode("Red").GetFieldOfView()[0] / sliceNode("Red").GetDimensions()[0]
    np.testing.assert_allclose(toolBench.prompt("Red").points_ras, [toolBench.at("Red", 4, 11)], atol=pixel_mm)
    assert toolBench.prompt("Red").labels == (1,)
    toolBench.live.undo()
    np.testing.assert_allclose(toolBench.prompt("Red").points_ras, [toolBench.at("Red", 4, 8)], atol=pixel_mm)
    np.testing.assert_allclose(pointsIn("Red"), toolBench.prompt("Red").points_ras, atol=1e-6)


def test_a_point_dragged_out_of_the_volume_stays_where_it_last_could_be(
    toolBench: ToolBench, clickIn: Any, mouse: Any
) -> None:
    clickIn("Red", toolBench.at("Red", 4, 8))
    mouse.move("Red", toolBench.at("Red", 4, 8))
    mouse.press("Red")
    mouse.move("Red", toolBench.at("Red", 4, 2))
    toolBench.workers.answerAll()
    mouse.move("Red", toolBench.at("Red", 4, -7))
    mouse.release("Red")
    np.testing.assert_allclose(toolBench.prompt("Red").points_ras, [toolBench.at("Red", 4, 2)], atol=1.0)
    np.testing.assert_allclose(pointsIn("Red"), toolBench.prompt("Red").points_ras, atol=1e-6)
    toolBench.live.undo()
    toolBench.live.undo()
    assert not toolBench.live.canUndo


def test_a_point_removed_as_slicers_menu_does_is_removed_from_the_prompt(toolBench: ToolBench, clickIn: Any) -> None:
    for column in (6, 12, 18):
        clickIn("Red", toolBench.at("Red", 4, column))
    (node,) = [n for n in ownMarkups() if n.GetNumberOfControlPoints()]
    left = [toolBench.prompt("Red").points_ras[n] for n in (0, 2)]
    node.RemoveNthControlPoint(1)
    assert list(toolBench.prompt("Red").points_ras) == left
    np.testing.assert_allclose(pointsIn("Red"), left, atol=1e-6)


def test_each_segment_shows_its_own_prompts(toolBench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.live.setTarget(toolBench.volume, toolBench.segmentation, toolBench.spleen)
    assert pointsIn("Red") == []
    clickIn("Red", toolBench.at("Red", 5, 5))
    clickIn("Red", toolBench.at("Red", 5, 7))
    assert len(pointsIn("Red")) == 2
    toolBench.live.setTarget(toolBench.volume, toolBench.segmentation, toolBench.liver)
    assert len(pointsIn("Red")) == 1


def test_the_points_are_not_saved_and_the_prompts_are(toolBench: ToolBench, clickIn: Any, tmp_path: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.workers.answer()
    assert all(not node.GetSaveWithScene() and node.GetHideFromEditors() for node in ownMarkups())
    prompt, where = toolBench.prompt("Red"), toolBench.where("Red")
    (tmp_path / "case").mkdir()
    assert slicer.mrmlScene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "case"))
    (scene,) = (tmp_path / "case").glob("*.mrml")
    assert "MarkupsFiducial" not in scene.read_text(encoding="utf-8")  # not even as the list that is placed next
    (path,) = (tmp_path / "case").glob("**/*.seg.nrrd")
    loaded = slicer.util.loadSegmentation(str(path))
    toolBench.live.setTarget(toolBench.volume, loaded, toolBench.liver)
    assert toolBench.live.promptOn(*where) == prompt
    assert len(pointsIn("Red")) == 1


def test_after_the_scene_was_closed_the_tool_goes_on_with_a_new_one(toolBench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 12))
    slicer.mrmlScene.Clear(0)
    toolBench.workers.answerAll()
    toolBench.wait()
    clickIn("Red", (300, 170))
    assert toolBench.failures == []
    new = Bench()
    slicer.util.setSliceViewerLayers(background=new.volume, fit=True)
    toolBench.volume, toolBench.segmentation, toolBench.liver = new.volume, new.segmentation, new.liver
    toolBench.live.setTarget(new.volume, new.segmentation, new.liver)
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert len(pointsIn("Red")) == 1
    toolBench.workers.answer()
    axis, index = toolBench.where("Red")
    assert toolBench.shown(index, axis).any()
