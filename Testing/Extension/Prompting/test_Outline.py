"""The box as it is drawn in its view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegSlicer.Prompting.Outline import Outline
from Testing.Extension.toolbench import ToolBench, sliceNode, yellow


def test_a_box_is_drawn_and_its_mask_follows_while_it_is_dragged(
    toolBench: ToolBench, mouse: Any, snapshot: Any
) -> None:
    toolBench.tool.mode = "box"
    empty = snapshot("Red").astype(int)
    mouse.move("Red", toolBench.at("Red", 2, 5))
    mouse.press("Red")
    mouse.move("Red", toolBench.at("Red", 5, 12))
    outline = snapshot("Red").astype(int)
    assert ((outline - empty)[..., 0] > 80).sum() > 100  # a yellow line
    toolBench.workers.answerAll()
    small = toolBench.shownIn("Red").sum()
    mouse.move("Red", toolBench.at("Red", 6, 18))
    toolBench.workers.answerAll()
    axis, index = toolBench.where("Red")
    toolBench.assertAnswered(index, axis)
    assert toolBench.shown(index, axis).sum() > small > 0
    mouse.release("Red")
    assert toolBench.workers.open == []
    toolBench.live.undo()
    assert toolBench.prompt("Red").isEmpty
    assert not toolBench.live.canUndo
    np.testing.assert_array_equal(snapshot("Red"), empty)


def test_a_box_moves_with_the_picture(toolBench: ToolBench, dragIn: Any, snapshot: Any) -> None:
    toolBench.tool.mode = "box"
    dragIn("Red", toolBench.at("Red", 2, 5), toolBench.at("Red", 5, 12))
    node = sliceNode("Red")
    empty = snapshot("Green")
    before = yellow(snapshot("Red"))
    pixel_mm = node.GetFieldOfView()[0] / node.GetDimensions()[0]
    node.SetXYZOrigin(40 * pixel_mm, 0, 0)
    after = yellow(snapshot("Red"))
    assert before.mean(axis=0)[1] - after.mean(axis=0)[1] == pytest.approx(40, abs=2)
    np.testing.assert_array_equal(snapshot("Green"), empty)  # only in its own view


def test_an_outline_is_a_closed_line_through_its_corners_and_nothing_without_any(scene: Any) -> None:
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    props = view.renderWindow().GetRenderers().GetFirstRenderer().GetViewProps()
    before = props.GetNumberOfItems()
    outline, corners = Outline(view), [(10.0, 20.0), (60.0, 20.0), (60.0, 90.0), (10.0, 90.0)]
    data = props.GetLastProp().GetMapper().GetInput()
    outline.show(corners)
    points = [data.GetPoint(number)[:2] for number in range(data.GetNumberOfPoints())]
    line = [data.GetCell(0).GetPointId(number) for number in range(data.GetCell(0).GetNumberOfPoints())]
    outline.show([])
    left = data.GetNumberOfPoints(), data.GetNumberOfCells()
    outline.close()
    assert (points, line, left) == (corners, [0, 1, 2, 3, 0], (0, 0))
    assert props.GetNumberOfItems() == before
