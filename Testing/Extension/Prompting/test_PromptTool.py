"""The tool in all views: its modes, its keys, coming and going."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import slicer
import slicer.util

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.PromptTool import HOTKEYS
from Testing.Extension.toolbench import VIEWS, ToolBench, ownMarkups, pointsIn, yellow


@pytest.mark.parametrize(
    ("mode", "control", "label"),
    [("positive", False, 1), ("positive", True, 0), ("negative", False, 0), ("negative", True, 1)],
)
def test_control_turns_the_sign_of_a_click(
    toolBench: ToolBench, clickIn: Any, mode: Any, control: bool, label: int
) -> None:
    toolBench.tool.mode = mode
    clickIn("Red", toolBench.at("Red", 4, 12), control=control)
    assert toolBench.prompt("Red").labels == (label,)


def test_a_view_that_another_layout_brings_takes_clicks_at_once(
    toolBench: ToolBench, clickIn: Any, sixViews: Callable[[], None]
) -> None:
    sixViews()
    slicer.util.setSliceViewerLayers(background=toolBench.volume, fit=True)
    slicer.app.processEvents()
    clickIn("Slice4", (150, 140))
    assert len(toolBench.prompt("Slice4").points_ras) == 1
    toolBench.workers.answer()
    toolBench.assertAnsweredIn("Slice4")


def test_without_a_tool_and_while_markups_are_placed_clicks_are_slicers(
    toolBench: ToolBench, clickIn: Any, scene: Any
) -> None:
    toolBench.tool.mode = "none"
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.tool.mode = "positive"
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mine")
    slicer.modules.markups.logic().SetActiveList(node)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    clickIn("Red", toolBench.at("Red", 5, 14))
    assert node.GetNumberOfDefinedControlPoints() == 1
    assert toolBench.live.prompts.segmentIds() == []


def test_prompts_given_by_the_console_are_shown_and_those_of_a_reloaded_segmentation(toolBench: ToolBench) -> None:
    axis, index = toolBench.where("Red")
    toolBench.live.addPoint(axis, index, toolBench.at("Red", 4, 12), positive=False)
    assert len(pointsIn("Red")) == 1
    toolBench.live.setTarget(None, None, None)
    assert pointsIn("Red") == []
    toolBench.live.setTarget(toolBench.volume, toolBench.segmentation, toolBench.liver)
    assert len(pointsIn("Red")) == 1


def test_undo_brings_the_view_back_to_the_slice(toolBench: ToolBench, clickIn: Any) -> None:
    place = toolBench.where("Red")
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.workers.answer()
    toolBench.offset("Red", 5)
    toolBench.wait()
    toolBench.live.undo()
    assert toolBench.where("Red") == place
    assert pointsIn("Red") == []


def test_leaving_takes_everything_out_of_views_and_scene_and_keeps_the_mask(
    toolBench: ToolBench, clickIn: Any, dragIn: Any, snapshot: Any
) -> None:
    pictures = {view: snapshot(view) for view in VIEWS}
    toolBench.tool.mode = "box"
    dragIn("Green", toolBench.at("Green", 4, 5), toolBench.at("Green", 12, 12))
    toolBench.tool.mode = "positive"
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.workers.answerAll()
    toolBench.tool.remove()
    assert ownMarkups() == []
    assert not toolBench.live.hasPreview
    assert toolBench.shownIn("Red").any()
    clickIn("Red", toolBench.at("Red", 5, 14))
    dragIn("Green", toolBench.at("Green", 4, 5), toolBench.at("Green", 12, 12))
    assert len(toolBench.prompt("Red").points_ras) == 1
    toolBench.live.undo()
    toolBench.live.undo()
    for view in VIEWS:
        assert not yellow(snapshot(view)).size
        assert pictures[view].shape == snapshot(view).shape


def test_leaving_in_the_middle_of_a_click_drops_its_answer_and_coming_back_asks_again(
    toolBench: ToolBench, clickIn: Any
) -> None:
    axis, index = toolBench.where("Red")
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.tool.remove()
    toolBench.workers.answer()
    toolBench.assertNothing(index, axis)
    toolBench.tool.install()
    toolBench.wait()
    toolBench.workers.answer()
    toolBench.assertAnswered(index, axis)
    assert len(pointsIn("Red")) == 1


def test_installing_and_removing_twice_is_once(toolBench: ToolBench, clickIn: Any) -> None:
    toolBench.tool.install()
    clickIn("Red", toolBench.at("Red", 4, 12))
    assert len(toolBench.prompt("Red").points_ras) == 1
    toolBench.tool.remove()
    toolBench.tool.remove()
    assert ownMarkups() == []


def test_an_unknown_mode_is_refused(toolBench: ToolBench) -> None:
    with pytest.raises(InputError, match="one of none, positive, negative, box"):
        toolBench.tool.mode = "lasso"


@pytest.fixture
def withHotkeys(toolBench: ToolBench) -> ToolBench:
    toolBench.tool.mode = "none"
    toolBench.tool.installHotkeys(slicer.util.mainWindow())
    return toolBench


def test_keys_choose_the_tool_and_lay_it_down(withHotkeys: ToolBench, pressKey: Callable[[str], None]) -> None:
    modes: list[str] = []
    withHotkeys.tool.modeChanged.connect(modes.append)
    for key in ("P", "N", "D", "D", "P", "Esc"):
        pressKey(key)
    assert modes == ["positive", "negative", "box", "none", "positive", "none"]


@pytest.mark.parametrize(("undo", "redo"), [("Z", "Y"), ("Ctrl+Z", "Ctrl+Y")])
def test_keys_undo_redo_and_accept(withHotkeys: ToolBench, clickIn: Any, pressKey: Any, undo: str, redo: str) -> None:
    toolBench = withHotkeys
    pressKey("P")
    clickIn("Red", toolBench.at("Red", 4, 12))
    toolBench.workers.answer()
    pressKey("A")
    assert not toolBench.live.hasPreview
    pressKey(undo)
    assert toolBench.prompt("Red").isEmpty
    pressKey(redo)
    assert not toolBench.prompt("Red").isEmpty
    pressKey("X")
    assert toolBench.prompt("Red").isEmpty
    assert toolBench.failures == []


def test_delete_removes_the_point_under_the_mouse_or_the_last_one(
    withHotkeys: ToolBench, clickIn: Any, mouse: Any, pressKey: Any
) -> None:
    toolBench = withHotkeys
    pressKey("P")
    for column in (6, 12, 18):
        clickIn("Red", toolBench.at("Red", 4, column))
    first, second, third = toolBench.prompt("Red").points_ras
    mouse.move("Red", second)
    pressKey("Del")
    assert toolBench.prompt("Red").points_ras == (first, third)
    mouse.move("Red", toolBench.at("Red", 7, 21))
    pressKey("Del")
    assert toolBench.prompt("Red").points_ras == (first,)


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


@pytest.fixture
def neighbour(slicerHost: Any) -> Iterator[list[str]]:
    """Another module that keeps keys on the main window and never gives them back; what was pressed there."""
    import qt

    pressed, shortcuts = list[str](), list[Any]()
    for key in ("P", "Del", "Ctrl+Z"):
        shortcut = qt.QShortcut(qt.QKeySequence(key), slicer.util.mainWindow())
        shortcut.connect("activated()", lambda key=key: pressed.append(key))
        shortcuts.append(shortcut)
    yield pressed
    for shortcut in shortcuts:
        shortcut.setEnabled(False)
        shortcut.setParent(None)


def test_keys_of_another_module_stay_its_own_and_ours_are_pressed_with_shift(
    neighbour: list[str], withHotkeys: ToolBench, clickIn: Any, pressKey: Any
) -> None:
    toolBench = withHotkeys
    pressKey("P")
    assert (neighbour, toolBench.tool.mode) == (["P"], "none")
    pressKey("Shift+P")
    assert toolBench.tool.mode == "positive"
    clickIn("Red", toolBench.at("Red", 4, 12))
    pressKey("Shift+Del")
    assert toolBench.prompt("Red").isEmpty
    pressKey("Ctrl+Z")
    pressKey("Z")
    assert not toolBench.prompt("Red").isEmpty
    assert neighbour == ["P", "Ctrl+Z"]
    assert {key: used for key, used in toolBench.tool.keys.items() if key != used} == {
        "P": "Shift+P",
        "Del": "Shift+Del",
        "Ctrl+Z": "",
    }


def test_an_action_of_slicers_menus_keeps_its_key_while_it_can_be_chosen(toolBench: ToolBench) -> None:
    import qt

    window = slicer.util.mainWindow()
    action = qt.QAction(window)
    action.setShortcut(qt.QKeySequence("Ctrl+Z"))
    window.addAction(action)
    toolBench.tool.installHotkeys(window)
    assert toolBench.tool.keys["Ctrl+Z"] == ""
    action.setVisible(False)  # as Slicer has it without undo
    toolBench.tool.installHotkeys(window)
    assert toolBench.tool.keys["Ctrl+Z"] == "Ctrl+Z"
    toolBench.tool.removeHotkeys()
    window.removeAction(action)
    action.setParent(None)


def test_the_keys_with_which_slicer_goes_through_slices_are_left_to_it() -> None:
    assert not {"B", "F", "R", "G", "V", "T", "[", "]", "Space"} & set(HOTKEYS)


def test_installing_the_keys_twice_presses_once(withHotkeys: ToolBench, pressKey: Any) -> None:
    withHotkeys.tool.installHotkeys(slicer.util.mainWindow())
    pressKey("P")
    assert withHotkeys.tool.mode == "positive"
