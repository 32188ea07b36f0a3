"""Clicks, drags and keys in the views: real events on real views, prompts and masks behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Prompting.PromptTool import HOTKEYS, PromptTool
from FewShotSegSlicer.Scene import Geometry, SliceViews
from Testing.Extension.bench import AFFINE, SHAPE, Bench, ras
from Testing.Extension.nodes import addTransform, addWarp, rotation

VIEWS = ("Red", "Yellow", "Green")


class ToolBench(Bench):
    """The bench with its volume in the views, and the tool in them."""

    def __init__(self) -> None:
        super().__init__()
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        self.tool = PromptTool(self.live)
        self.tool.install()
        self.tool.mode = "positive"

    def where(self, view: str) -> tuple[int, int]:
        found = SliceViews.viewedSlice(self.volume, sliceNode(view))
        assert found is not None
        return found

    def prompt(self, view: str) -> SlicePrompt:
        return self.live.promptOn(*self.where(view))

    def shownIn(self, view: str) -> np.ndarray:
        axis, index = self.where(view)
        return self.shown(index, axis)

    def assertAnsweredIn(self, view: str) -> None:
        axis, index = self.where(view)
        self.assertAnswered(index, axis)

    def at(self, view: str, row: float, column: float) -> tuple[float, float, float]:
        """RAS of a place on the slice that a view shows."""
        axis, index = self.where(view)
        ijk = [0.0, 0.0, 0.0]
        rows, columns = (2 - a for a in range(3) if a != axis)
        ijk[rows], ijk[columns], ijk[2 - axis] = row, column, index
        return ras(*ijk)

    def offset(self, view: str, slices: int) -> None:
        """Scroll a view."""
        axis, index = self.where(view)
        SliceViews.jumpToSlice(self.volume, axis, index + slices, sliceNode(view))


def sliceNode(view: str) -> Any:
    return slicer.app.layoutManager().sliceWidget(view).mrmlSliceNode()


def pointsIn(view: str) -> list[tuple[float, ...]]:
    """Where the points that a view shows are, by the markups in the scene."""
    nodes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
        if node.GetDisplayNode().IsDisplayableInView(sliceNode(view).GetID())
    ]
    return [tuple(p) for node in nodes for p in slicer.util.arrayFromMarkupsControlPoints(node, world=True)]


def ownMarkups() -> list[Any]:
    return list(slicer.util.getNodesByClass("vtkMRMLMarkupsNode"))


@pytest.fixture
def bench(scene: Any) -> Iterator[ToolBench]:
    made = ToolBench()
    yield made
    made.tool.remove()
    made.tool.removeHotkeys()


# ------------------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("view", VIEWS)
def test_a_click_becomes_a_point_of_the_slice_that_the_view_shows(bench: ToolBench, clickIn: Any, view: str) -> None:
    clickIn(view, (180, 170))
    expected = sliceNode(view).GetXYToRAS().MultiplyPoint((180, 170, 0, 1))[:3]
    prompt = bench.prompt(view)
    np.testing.assert_allclose(prompt.points_ras, [expected], atol=1e-6)
    assert prompt.labels == (1,)
    assert bench.live.prompts.slices(bench.liver) == [bench.where(view)]
    bench.workers.answer()
    axis, index = bench.where(view)
    bench.assertAnswered(index, axis)


def test_the_mask_is_seen_in_the_view_that_was_clicked(bench: ToolBench, clickIn: Any, snapshot: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 12))
    before = snapshot("Red").astype(int)
    bench.workers.answer()
    after = snapshot("Red").astype(int)
    assert (np.abs(after - before).max(axis=-1) > 20).sum() > 500


@pytest.mark.parametrize(
    ("mode", "control", "label"),
    [("positive", False, 1), ("positive", True, 0), ("negative", False, 0), ("negative", True, 1)],
)
def test_control_turns_the_sign_of_a_click(
    bench: ToolBench, clickIn: Any, mode: Any, control: bool, label: int
) -> None:
    bench.tool.mode = mode
    clickIn("Red", bench.at("Red", 4, 12), control=control)
    assert bench.prompt("Red").labels == (label,)


def test_a_view_that_another_layout_brings_takes_clicks_at_once(
    bench: ToolBench, clickIn: Any, sixViews: Callable[[], None]
) -> None:
    sixViews()
    slicer.util.setSliceViewerLayers(background=bench.volume, fit=True)
    slicer.app.processEvents()
    clickIn("Slice4", (150, 140))
    assert len(bench.prompt("Slice4").points_ras) == 1
    bench.workers.answer()
    bench.assertAnsweredIn("Slice4")


def test_without_a_tool_and_while_markups_are_placed_clicks_are_slicers(
    bench: ToolBench, clickIn: Any, scene: Any
) -> None:
    bench.tool.mode = "none"
    clickIn("Red", bench.at("Red", 4, 12))
    bench.tool.mode = "positive"
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mine")
    slicer.modules.markups.logic().SetActiveList(node)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    clickIn("Red", bench.at("Red", 5, 14))
    assert node.GetNumberOfDefinedControlPoints() == 1
    assert bench.live.prompts.segmentIds() == []


def test_a_click_outside_the_volume_is_told(bench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", (3, 3))
    assert "outside the volume" in bench.failures[0]


def test_without_a_segment_a_click_is_told(bench: ToolBench, clickIn: Any) -> None:
    bench.live.setTarget(bench.volume, bench.segmentation, None)
    clickIn("Red", bench.at("Red", 4, 12))
    assert "choose a volume and a segment first" in bench.failures[0]


def test_a_double_click_is_one_click(bench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 12))
    interactor = slicer.app.layoutManager().sliceWidget("Red").sliceView().interactor()
    heard: list[str] = []
    tag = interactor.AddObserver("LeftButtonDoubleClickEvent", lambda *_: heard.append("the view enlarges"), 0.0)
    interactor.InvokeEvent("LeftButtonDoubleClickEvent")
    interactor.RemoveObserver(tag)
    assert len(bench.prompt("Red").points_ras) == 1
    assert heard == []


def test_a_dragged_point_takes_its_mask_along_and_is_one_step(bench: ToolBench, clickIn: Any, mouse: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 8))
    bench.workers.answer()
    bench.tool.mode = "negative"  # a press on a point takes hold of it whatever the tool
    mouse.move("Red", bench.at("Red", 4, 8))
    mouse.press("Red")
    for column in (9, 10, 11):
        mouse.move("Red", bench.at("Red", 4, column))
        bench.workers.answerAll()
    axis, index = bench.where("Red")
    bench.assertAnswered(index, axis)
    mouse.release("Red")
    bench.workers.answerAll()
    bench.assertAnswered(index, axis)
    pixel_mm = sliceNode("Red").GetFieldOfView()[0] / sliceNode("Red").GetDimensions()[0]
    np.testing.assert_allclose(bench.prompt("Red").points_ras, [bench.at("Red", 4, 11)], atol=pixel_mm)
    assert bench.prompt("Red").labels == (1,)
    bench.live.undo()
    np.testing.assert_allclose(bench.prompt("Red").points_ras, [bench.at("Red", 4, 8)], atol=pixel_mm)
    np.testing.assert_allclose(pointsIn("Red"), bench.prompt("Red").points_ras, atol=1e-6)


def test_a_point_dragged_out_of_the_volume_stays_where_it_last_could_be(
    bench: ToolBench, clickIn: Any, mouse: Any
) -> None:
    clickIn("Red", bench.at("Red", 4, 8))
    mouse.move("Red", bench.at("Red", 4, 8))
    mouse.press("Red")
    mouse.move("Red", bench.at("Red", 4, 2))
    bench.workers.answerAll()
    mouse.move("Red", bench.at("Red", 4, -7))
    mouse.release("Red")
    np.testing.assert_allclose(bench.prompt("Red").points_ras, [bench.at("Red", 4, 2)], atol=1.0)
    np.testing.assert_allclose(pointsIn("Red"), bench.prompt("Red").points_ras, atol=1e-6)
    bench.live.undo()
    bench.live.undo()
    assert not bench.live.canUndo


def test_a_point_removed_as_slicers_menu_does_is_removed_from_the_prompt(bench: ToolBench, clickIn: Any) -> None:
    for column in (6, 12, 18):
        clickIn("Red", bench.at("Red", 4, column))
    (node,) = [n for n in ownMarkups() if n.GetNumberOfControlPoints()]
    left = [bench.prompt("Red").points_ras[n] for n in (0, 2)]
    node.RemoveNthControlPoint(1)
    assert list(bench.prompt("Red").points_ras) == left
    np.testing.assert_allclose(pointsIn("Red"), left, atol=1e-6)


def test_points_on_a_volume_askew_to_the_views_lie_on_its_slices_and_are_drawn_where_clicked(
    bench: ToolBench, clickIn: Any
) -> None:
    bench.volume.SetAndObserveTransformNodeID(addTransform(rotation((1, 2, 3), 8)).GetID())
    bench.segmentation.SetAndObserveTransformNodeID(bench.volume.GetTransformNodeID())
    slicer.util.setSliceViewerLayers(background=bench.volume, fit=True)
    clickIn("Red", (420, 180))
    clicked = np.array(sliceNode("Red").GetXYToRAS().MultiplyPoint((420, 180, 0, 1))[:3])
    axis, index = bench.where("Red")
    (point,) = bench.prompt("Red").points_ras
    ijk = np.linalg.solve(Geometry.rasFromIjk(bench.volume), [*point, 1.0])
    assert ijk[2 - axis] == pytest.approx(index)
    (drawn,) = pointsIn("Red")
    normal = np.array(sliceNode("Red").GetSliceToRAS().MultiplyPoint((0, 0, 1, 0))[:3])
    assert (drawn - clicked) @ normal == pytest.approx(0, abs=1e-6)  # in the plane of the view, so it is seen


def test_a_volume_under_a_warp_is_told_and_works_again_without_it(bench: ToolBench, clickIn: Any) -> None:
    bench.volume.SetAndObserveTransformNodeID(addWarp().GetID())
    sliceNode("Red").Modified()
    clickIn("Red", (420, 180))
    assert bench.live.prompts.segmentIds() == []
    bench.volume.SetAndObserveTransformNodeID(None)
    sliceNode("Red").Modified()
    clickIn("Red", bench.at("Red", 4, 12))
    assert len(bench.prompt("Red").points_ras) == 1


# --------------------------------------------------------------------------------------------------------------- boxes


def test_a_box_is_drawn_and_its_mask_follows_while_it_is_dragged(bench: ToolBench, mouse: Any, snapshot: Any) -> None:
    bench.tool.mode = "box"
    empty = snapshot("Red").astype(int)
    mouse.move("Red", bench.at("Red", 2, 5))
    mouse.press("Red")
    mouse.move("Red", bench.at("Red", 5, 12))
    outline = snapshot("Red").astype(int)
    assert ((outline - empty)[..., 0] > 80).sum() > 100  # a yellow line
    bench.workers.answerAll()
    small = bench.shownIn("Red").sum()
    mouse.move("Red", bench.at("Red", 6, 18))
    bench.workers.answerAll()
    axis, index = bench.where("Red")
    bench.assertAnswered(index, axis)
    assert bench.shown(index, axis).sum() > small > 0
    mouse.release("Red")
    assert bench.workers.open == []
    bench.live.undo()
    assert bench.prompt("Red").isEmpty
    assert not bench.live.canUndo
    np.testing.assert_array_equal(snapshot("Red"), empty)


@pytest.mark.parametrize("view", VIEWS)
def test_a_dragged_box_has_the_corners_of_the_drag(bench: ToolBench, dragIn: Any, view: str) -> None:
    bench.tool.mode = "box"
    dragIn(view, bench.at(view, 2, 5), bench.at(view, 5, 12))
    pixel_mm = sliceNode(view).GetFieldOfView()[0] / sliceNode(view).GetDimensions()[0]
    expected = [bench.at(view, 2, 5), bench.at(view, 5, 12)]
    np.testing.assert_allclose(bench.prompt(view).box_ras, expected, atol=pixel_mm)


def test_dragging_a_corner_changes_the_box_and_leaves_the_opposite_corner(bench: ToolBench, dragIn: Any) -> None:
    bench.tool.mode = "box"
    dragIn("Red", bench.at("Red", 2, 5), bench.at("Red", 5, 12))
    dragIn("Red", bench.at("Red", 5, 5), bench.at("Red", 6, 3))
    low, high = bench.prompt("Red").box_ras or ((), ())
    np.testing.assert_allclose([low, high], [bench.at("Red", 2, 3), bench.at("Red", 6, 12)], atol=0.3)


def test_a_box_dragged_beyond_the_volume_ends_at_its_edge(bench: ToolBench, dragIn: Any) -> None:
    bench.tool.mode = "box"
    dragIn("Red", bench.at("Red", 4, 20), bench.at("Red", 20, 40))
    _, high = bench.prompt("Red").box_ras or ((), ())
    axis, _ = bench.where("Red")
    rows, columns = (n for a, n in enumerate(SHAPE) if a != axis)
    np.testing.assert_allclose(high, bench.at("Red", rows - 0.5, columns - 0.5), atol=1e-6)


def test_a_click_with_the_box_tool_is_no_box(bench: ToolBench, clickIn: Any) -> None:
    bench.tool.mode = "box"
    clickIn("Red", bench.at("Red", 4, 12))
    assert not bench.live.canUndo
    assert bench.failures == []


def test_a_box_moves_with_the_picture(bench: ToolBench, dragIn: Any, snapshot: Any) -> None:
    bench.tool.mode = "box"
    dragIn("Red", bench.at("Red", 2, 5), bench.at("Red", 5, 12))
    node = sliceNode("Red")
    empty = snapshot("Green")
    before = yellow(snapshot("Red"))
    pixel_mm = node.GetFieldOfView()[0] / node.GetDimensions()[0]
    node.SetXYZOrigin(40 * pixel_mm, 0, 0)
    after = yellow(snapshot("Red"))
    assert before.mean(axis=0)[1] - after.mean(axis=0)[1] == pytest.approx(40, abs=2)
    np.testing.assert_array_equal(snapshot("Green"), empty)  # only in its own view


def yellow(picture: np.ndarray) -> np.ndarray:
    """Rows and columns of the pixels of the outline."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return np.argwhere((red > 200) & (green > 150) & (blue < 100))


# --------------------------------------------------------------------------------------------------- prompts of a slice


def test_prompts_are_shown_on_their_slice_in_their_view_only(bench: ToolBench, clickIn: Any, mouse: Any) -> None:
    bench.offset("Red", 1)
    clickIn("Red", bench.at("Red", 4, 12))
    bench.offset("Yellow", 12 - bench.where("Yellow")[1])  # through the very point
    bench.offset("Green", 4 - bench.where("Green")[1])
    assert len(pointsIn("Red")) == 1
    assert pointsIn("Yellow") == pointsIn("Green") == []
    mouse.move("Red", (100, 100))
    mouse.wheel("Red", 1)
    assert pointsIn("Red") == []
    mouse.wheel("Red", -1)
    assert len(pointsIn("Red")) == 1


def test_each_segment_shows_its_own_prompts(bench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 12))
    bench.live.setTarget(bench.volume, bench.segmentation, bench.spleen)
    assert pointsIn("Red") == []
    clickIn("Red", bench.at("Red", 5, 5))
    clickIn("Red", bench.at("Red", 5, 7))
    assert len(pointsIn("Red")) == 2
    bench.live.setTarget(bench.volume, bench.segmentation, bench.liver)
    assert len(pointsIn("Red")) == 1


def test_prompts_given_by_the_console_are_shown_and_those_of_a_reloaded_segmentation(bench: ToolBench) -> None:
    axis, index = bench.where("Red")
    bench.live.addPoint(axis, index, bench.at("Red", 4, 12), positive=False)
    assert len(pointsIn("Red")) == 1
    bench.live.setTarget(None, None, None)
    assert pointsIn("Red") == []
    bench.live.setTarget(bench.volume, bench.segmentation, bench.liver)
    assert len(pointsIn("Red")) == 1


def test_undo_brings_the_view_back_to_the_slice(bench: ToolBench, clickIn: Any) -> None:
    place = bench.where("Red")
    clickIn("Red", bench.at("Red", 4, 12))
    bench.workers.answer()
    bench.offset("Red", 5)
    bench.wait()
    bench.live.undo()
    assert bench.where("Red") == place
    assert pointsIn("Red") == []


def test_an_answer_for_a_slice_that_was_scrolled_away_is_not_shown(bench: ToolBench, clickIn: Any, mouse: Any) -> None:
    axis, index = bench.where("Red")
    clickIn("Red", bench.at("Red", 4, 12))
    mouse.wheel("Red", 2)
    bench.workers.answer()
    bench.assertNothing(index, axis)
    mouse.wheel("Red", -2)
    bench.wait()
    bench.workers.answer()
    bench.assertAnswered(index, axis)


# ------------------------------------------------------------------------------------------------- coming and going


def test_leaving_takes_everything_out_of_views_and_scene_and_keeps_the_mask(
    bench: ToolBench, clickIn: Any, dragIn: Any, snapshot: Any
) -> None:
    pictures = {view: snapshot(view) for view in VIEWS}
    bench.tool.mode = "box"
    dragIn("Green", bench.at("Green", 4, 5), bench.at("Green", 12, 12))
    bench.tool.mode = "positive"
    clickIn("Red", bench.at("Red", 4, 12))
    bench.workers.answerAll()
    bench.tool.remove()
    assert ownMarkups() == []
    assert not bench.live.hasPreview
    assert bench.shownIn("Red").any()
    clickIn("Red", bench.at("Red", 5, 14))
    dragIn("Green", bench.at("Green", 4, 5), bench.at("Green", 12, 12))
    assert len(bench.prompt("Red").points_ras) == 1
    bench.live.undo()
    bench.live.undo()
    for view in VIEWS:
        assert not yellow(snapshot(view)).size
        assert pictures[view].shape == snapshot(view).shape


def test_leaving_in_the_middle_of_a_click_drops_its_answer_and_coming_back_asks_again(
    bench: ToolBench, clickIn: Any
) -> None:
    axis, index = bench.where("Red")
    clickIn("Red", bench.at("Red", 4, 12))
    bench.tool.remove()
    bench.workers.answer()
    bench.assertNothing(index, axis)
    bench.tool.install()
    bench.wait()
    bench.workers.answer()
    bench.assertAnswered(index, axis)
    assert len(pointsIn("Red")) == 1


def test_leaving_in_the_middle_of_a_drag_leaves_nothing_half_done(bench: ToolBench, mouse: Any, clickIn: Any) -> None:
    bench.tool.mode = "box"
    mouse.move("Red", bench.at("Red", 2, 5))
    mouse.press("Red")
    mouse.move("Red", bench.at("Red", 5, 12))
    bench.tool.remove()
    bench.workers.answerAll()
    mouse.release("Red")
    bench.tool.install()
    bench.tool.mode = "positive"
    clickIn("Red", bench.at("Red", 4, 12))
    assert len(bench.prompt("Red").points_ras) == 1
    assert bench.prompt("Red").box_ras is not None
    bench.live.undo()
    bench.live.undo()
    assert bench.prompt("Red").isEmpty


def test_installing_and_removing_twice_is_once(bench: ToolBench, clickIn: Any) -> None:
    bench.tool.install()
    clickIn("Red", bench.at("Red", 4, 12))
    assert len(bench.prompt("Red").points_ras) == 1
    bench.tool.remove()
    bench.tool.remove()
    assert ownMarkups() == []


def test_the_points_are_not_saved_and_the_prompts_are(bench: ToolBench, clickIn: Any, tmp_path: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 12))
    bench.workers.answer()
    assert all(not node.GetSaveWithScene() and node.GetHideFromEditors() for node in ownMarkups())
    prompt, where = bench.prompt("Red"), bench.where("Red")
    (tmp_path / "case").mkdir()
    assert slicer.mrmlScene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "case"))
    (scene,) = (tmp_path / "case").glob("*.mrml")
    assert "MarkupsFiducial" not in scene.read_text(encoding="utf-8")  # not even as the list that is placed next
    (path,) = (tmp_path / "case").glob("**/*.seg.nrrd")
    loaded = slicer.util.loadSegmentation(str(path))
    bench.live.setTarget(bench.volume, loaded, bench.liver)
    assert bench.live.promptOn(*where) == prompt
    assert len(pointsIn("Red")) == 1


def test_after_the_scene_was_closed_the_tool_goes_on_with_a_new_one(bench: ToolBench, clickIn: Any) -> None:
    clickIn("Red", bench.at("Red", 4, 12))
    slicer.mrmlScene.Clear(0)
    bench.workers.answerAll()
    bench.wait()
    clickIn("Red", (300, 170))
    assert bench.failures == []
    new = Bench()
    slicer.util.setSliceViewerLayers(background=new.volume, fit=True)
    bench.volume, bench.segmentation, bench.liver = new.volume, new.segmentation, new.liver
    bench.live.setTarget(new.volume, new.segmentation, new.liver)
    clickIn("Red", bench.at("Red", 4, 12))
    assert len(pointsIn("Red")) == 1
    bench.workers.answer()
    axis, index = bench.where("Red")
    assert bench.shown(index, axis).any()


def test_an_unknown_mode_is_refused(bench: ToolBench) -> None:
    with pytest.raises(InputError, match="one of none, positive, negative, box"):
        bench.tool.mode = "lasso"


# ------------------------------------------------------------------------------------------------------------- hotkeys


@pytest.fixture
def withHotkeys(bench: ToolBench) -> ToolBench:
    bench.tool.mode = "none"
    bench.tool.installHotkeys(slicer.util.mainWindow())
    return bench


def test_keys_choose_the_tool_and_lay_it_down(withHotkeys: ToolBench, pressKey: Callable[[str], None]) -> None:
    modes: list[str] = []
    withHotkeys.tool.modeChanged.connect(modes.append)
    for key in ("P", "N", "B", "B", "P", "Esc"):
        pressKey(key)
    assert modes == ["positive", "negative", "box", "none", "positive", "none"]


@pytest.mark.parametrize(("undo", "redo"), [("Z", "Y"), ("Ctrl+Z", "Ctrl+Y")])
def test_keys_undo_redo_and_accept(withHotkeys: ToolBench, clickIn: Any, pressKey: Any, undo: str, redo: str) -> None:
    bench = withHotkeys
    pressKey("P")
    clickIn("Red", bench.at("Red", 4, 12))
    bench.workers.answer()
    pressKey("A")
    assert not bench.live.hasPreview
    pressKey(undo)
    assert bench.prompt("Red").isEmpty
    pressKey(redo)
    assert not bench.prompt("Red").isEmpty
    pressKey("X")
    assert bench.prompt("Red").isEmpty
    assert bench.failures == []


def test_delete_removes_the_point_under_the_mouse_or_the_last_one(
    withHotkeys: ToolBench, clickIn: Any, mouse: Any, pressKey: Any
) -> None:
    bench = withHotkeys
    pressKey("P")
    for column in (6, 12, 18):
        clickIn("Red", bench.at("Red", 4, column))
    first, second, third = bench.prompt("Red").points_ras
    mouse.move("Red", second)
    pressKey("Del")
    assert bench.prompt("Red").points_ras == (first, third)
    mouse.move("Red", bench.at("Red", 7, 21))
    pressKey("Del")
    assert bench.prompt("Red").points_ras == (first,)


def test_keys_do_nothing_after_leaving(withHotkeys: ToolBench, pressKey: Any) -> None:
    import qt

    withHotkeys.tool.removeHotkeys()
    for key in HOTKEYS:
        pressKey(key)
    assert withHotkeys.tool.mode == "none"
    slicer.app.processEvents()
    left = [shortcut for shortcut in slicer.util.mainWindow().findChildren(qt.QShortcut) if shortcut.enabled]
    keys = {qt.QKeySequence(keys).toString() for keys in HOTKEYS}
    assert not keys & {shortcut.key.toString() for shortcut in left}


def test_installing_the_keys_twice_presses_once(withHotkeys: ToolBench, pressKey: Any) -> None:
    withHotkeys.tool.installHotkeys(slicer.util.mainWindow())
    pressKey("P")
    assert withHotkeys.tool.mode == "positive"


def test_the_volume_of_these_tests_has_its_slices_across_the_axes_of_the_body(bench: ToolBench) -> None:
    """So a mix-up of axes anywhere would be noticed."""
    assert [bench.where(view)[0] for view in VIEWS] == [1, 2, 0]
    assert np.linalg.det(AFFINE) != 0
