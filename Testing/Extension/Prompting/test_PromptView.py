"""Clicks and drags in the views, and prompts drawn there: real events on real views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from FewShotSegSlicer.Prompting.PromptView import CORNER_PX
from FewShotSegSlicer.Scene import Geometry
from Testing.Extension.bench import AFFINE, SHAPE
from Testing.Extension.nodes import addTransform, addWarp, rotation
from Testing.Extension.toolbench import VIEWS, ToolBench, pointsIn, sliceNode, yellow


@pytest.mark.parametrize("view", VIEWS)
def test_a_click_becomes_a_point_of_the_slice_that_the_view_shows(
    toolBench: ToolBench, clickIn: Any, view: str
) -> None:
    clickIn(view, (180, 170))
    expected = sliceNode(view).GetXYToRAS().MultiplyPoint((180, 170, 0, 1))[:3]
    prompt = toolBench.prompt(view)
    np.testing.assert_allclose(prompt.points_ras, [expected], atol=1e-6)
    assert prompt.labels == (1,)
    assert toolBench.live.prompts.slices(toolBench.liver) == [toolBench.where(view)]
    toolBench.workers.answer()
    axis, index = toolBench.where(view)
    toolBench.assertAnswered(index, axis)


def test_the_mask_is_seen_in_the_view_that_was_clicked(toolBench: ToolBench, clickIn: Any, snapshot: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 12))
    before = snapshot("Red").astype(int)
    toolBench.workers.answer()
    after = snapshot("Red").astype(int)
    assert (np.abs(after - before).max(axis=-1) > 20).sum() > 500


def test_a_click_outside_the_volume_is_told(toolBench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", (3, 3))
    assert "outside the volume" in toolBench.failures[0]


def test_without_a_segment_a_click_is_told(toolBench: ToolBench, clickIn: Any) -> None:
    toolBench.live.setTarget(toolBench.volume, toolBench.segmentation, None)
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert "choose a volume and a segment first" in toolBench.failures[0]


def test_a_double_click_is_one_click(toolBench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", toolBench.at("Red", 4, 12))
    interactor = slicer.app.layoutManager().sliceWidget("Red").sliceView().interactor()
    heard: list[str] = []
    tag = interactor.AddObserver("LeftButtonDoubleClickEvent", lambda *_: heard.append("the view enlarges"), 0.0)
    interactor.InvokeEvent("LeftButtonDoubleClickEvent")
    interactor.RemoveObserver(tag)
    assert len(toolBench.prompt("Red").points_ras) == 1
    assert heard == []


def test_points_on_a_volume_askew_to_the_views_lie_on_its_slices_and_are_drawn_where_clicked(
    toolBench: ToolBench, clickIn: Any
) -> None:
    toolBench.volume.SetAndObserveTransformNodeID(addTransform(rotation((1, 2, 3), 8)).GetID())
    toolBench.segmentation.SetAndObserveTransformNodeID(toolBench.volume.GetTransformNodeID())
    slicer.util.setSliceViewerLayers(background=toolBench.volume, fit=True)
    clickIn("Red", (420, 180))
    clicked = np.array(sliceNode("Red").GetXYToRAS().MultiplyPoint((420, 180, 0, 1))[:3])
    axis, index = toolBench.where("Red")
    (point,) = toolBench.prompt("Red").points_ras
    ijk = np.linalg.solve(Geometry.rasFromIjk(toolBench.volume), [*point, 1.0])
    assert ijk[2 - axis] == pytest.approx(index)
    (drawn,) = pointsIn("Red")
    normal = np.array(sliceNode("Red").GetSliceToRAS().MultiplyPoint((0, 0, 1, 0))[:3])
    assert (drawn - clicked) @ normal == pytest.approx(0, abs=1e-6)  # in the plane of the view, so it is seen


def test_a_volume_under_a_warp_is_told_and_works_again_without_it(toolBench: ToolBench, clickIn: Any) -> None:
    toolBench.volume.SetAndObserveTransformNodeID(addWarp().GetID())
    sliceNode("Red").Modified()
    clickIn("Red", (420, 180))
    assert toolBench.live.prompts.segmentIds() == []
    toolBench.volume.SetAndObserveTransformNodeID(None)
    sliceNode("Red").Modified()
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert len(toolBench.prompt("Red").points_ras) == 1


@pytest.mark.parametrize("view", VIEWS)
def test_a_dragged_box_has_the_corners_of_the_drag(toolBench: ToolBench, dragIn: Any, view: str) -> None:
    toolBench.tool.mode = "box"
    dragIn(view, toolBench.at(view, 2, 5), toolBench.at(view, 5, 12))
    pixel_mm = sliceNode(view).GetFieldOfView()[0] / sliceNode(view).GetDimensions()[0]
    expected = [toolBench.at(view, 2, 5), toolBench.at(view, 5, 12)]
    np.testing.assert_allclose(toolBench.prompt(view).box_ras, expected, atol=pixel_mm)


def test_dragging_a_corner_changes_the_box_and_leaves_the_opposite_corner(toolBench: ToolBench, dragIn: Any) -> None:
    toolBench.tool.mode = "box"
    dragIn("Red", toolBench.at("Red", 2, 5), toolBench.at("Red", 5, 12))
    dragIn("Red", toolBench.at("Red", 5, 5), toolBench.at("Red", 6, 3))
    low, high = toolBench.prompt("Red").box_ras or ((), ())
    np.testing.assert_allclose([low, high], [toolBench.at("Red", 2, 3), toolBench.at("Red", 6, 12)], atol=0.3)


@pytest.fixture
def hiDpi(slicerHost: Any) -> Iterator[None]:
    """Two pixels of the red view for one of Qt; in Slicer the screen decides."""
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    if not hasattr(type(view), "_setPixelRatio"):
        pytest.skip("needs the test host")
    view._setPixelRatio(2)
    yield
    view._setPixelRatio(1)


def test_a_corner_is_as_easy_to_take_hold_of_on_a_screen_of_many_pixels(
    hiDpi: None, toolBench: ToolBench, dragIn: Any, mouse: Any
) -> None:
    toolBench.tool.mode = "box"
    dragIn("Red", (100, 100), (300, 260))
    before = toolBench.prompt("Red").box_ras or ((), ())
    dragIn("Red", (300 + CORNER_PX, 260 + CORNER_PX), (400, 330))  # 11 of the view's pixels beside it, 6 of Qt's
    after = toolBench.prompt("Red").box_ras or ((), ())
    kept = [corner for corner in np.array(after) if np.abs(np.array(before) - corner).max(axis=1).min() < 0.3]
    assert len(kept) == 1, "another box was begun"


@pytest.mark.parametrize(("mode", "label"), [("positive", 1), ("negative", 0)])
def test_a_line_drawn_with_a_point_tool_becomes_points_along_it(
    toolBench: ToolBench, mouse: Any, snapshot: Any, mode: Any, label: int
) -> None:
    toolBench.tool.mode = mode
    mouse.move("Red", (100, 100))
    mouse.press("Red")
    for step in range(1, 11):
        mouse.move("Red", (100 + 10 * step, 100 + 5 * step))
    assert len(yellow(snapshot("Red"))) > 60, "the line is seen while it is drawn"
    mouse.release("Red")
    assert len(yellow(snapshot("Red"))) == 0
    prompt = toolBench.prompt("Red")
    expected = [
        sliceNode("Red").GetXYToRAS().MultiplyPoint((100 + d, 100 + d / 2, 0, 1))[:3] for d in range(0, 101, 20)
    ]
    np.testing.assert_allclose(prompt.points_ras, expected, atol=1e-6)
    assert prompt.labels == (label,) * 6
    toolBench.workers.answer()
    toolBench.live.undo()
    assert len(toolBench.prompt("Red").points_ras) == 1


def test_a_line_that_leaves_the_volume_is_told_and_leaves_the_point_where_it_began(
    toolBench: ToolBench, dragIn: Any
) -> None:
    dragIn("Red", toolBench.at("Red", 4, 20), toolBench.at("Red", 4, 40))
    assert len(toolBench.prompt("Red").points_ras) == 1
    assert len(toolBench.failures) == 1


def test_a_box_dragged_beyond_the_volume_ends_at_its_edge(toolBench: ToolBench, dragIn: Any) -> None:
    toolBench.tool.mode = "box"
    dragIn("Red", toolBench.at("Red", 4, 20), toolBench.at("Red", 20, 40))
    _, high = toolBench.prompt("Red").box_ras or ((), ())
    axis, _ = toolBench.where("Red")
    rows, columns = (n for a, n in enumerate(SHAPE) if a != axis)
    np.testing.assert_allclose(high, toolBench.at("Red", rows - 0.5, columns - 0.5), atol=1e-6)


def test_a_click_with_the_box_tool_is_no_box(toolBench: ToolBench, clickIn: Any) -> None:
    toolBench.tool.mode = "box"
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert not toolBench.live.canUndo
    assert toolBench.failures == []


def test_prompts_are_shown_on_their_slice_in_their_view_only(toolBench: ToolBench, clickIn: Any, mouse: Any) -> None:
    toolBench.offset("Red", 1)
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.offset("Yellow", 12 - toolBench.where("Yellow")[1])  # through the very point
    toolBench.offset("Green", 4 - toolBench.where("Green")[1])
    assert len(pointsIn("Red")) == 1
    assert pointsIn("Yellow") == pointsIn("Green") == []
    mouse.move("Red", (100, 100))
    mouse.wheel("Red", 1)
    assert pointsIn("Red") == []
    mouse.wheel("Red", -1)
    assert len(pointsIn("Red")) == 1


def test_an_answer_for_a_slice_that_was_scrolled_away_is_not_shown(
    toolBench: ToolBench, clickIn: Any, mouse: Any
) -> None:
    axis, index = toolBench.where("Red")
    clickIn("Red", toolBench.at("Red", 4, 12))
    mouse.wheel("Red", 2)
    toolBench.workers.answer()
    toolBench.assertNothing(index, axis)
    mouse.wheel("Red", -2)
    toolBench.wait()
    toolBench.workers.answer()
    toolBench.assertAnswered(index, axis)


def test_leaving_in_the_middle_of_a_drag_leaves_nothing_half_done(
    toolBench: ToolBench, mouse: Any, clickIn: Any
) -> None:
    toolBench.tool.mode = "box"
    mouse.move("Red", toolBench.at("Red", 2, 5))
    mouse.press("Red")
    mouse.move("Red", toolBench.at("Red", 5, 12))
    toolBench.tool.remove()
    toolBench.workers.answerAll()
    mouse.release("Red")
    toolBench.tool.install()
    toolBench.tool.mode = "positive"
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert len(toolBench.prompt("Red").points_ras) == 1
    assert toolBench.prompt("Red").box_ras is not None
    toolBench.live.undo()
    toolBench.live.undo()
    assert toolBench.prompt("Red").isEmpty


def test_the_volume_of_these_tests_has_its_slices_across_the_axes_of_the_body(toolBench: ToolBench) -> None:
    """So a mix-up of axes anywhere would be noticed."""
    assert [toolBench.where(view)[0] for view in VIEWS] == [1, 2, 0]
    assert np.linalg.det(AFFINE) != 0
