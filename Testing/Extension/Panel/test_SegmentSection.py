"""Section 1: structures, clicks in the views, and where masks may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qt
import slicer

from FewShotSegSlicer.Prompting import PromptTool
from FewShotSegSlicer.Scene import Geometry, Segmentations
from Testing.Extension.cases import addCase
from Testing.Extension.panels import Case


def test_the_hotkeys_in_the_tooltips_are_those_of_the_tool(case: Case) -> None:
    buttons = (
        case.ui.positiveButton,
        case.ui.negativeButton,
        case.ui.boxButton,
        case.ui.undoButton,
        case.ui.redoButton,
    )
    for button in (*buttons, case.ui.clearButton, case.ui.acceptButton):
        told = button.toolTip.partition("Key: ")[2].split("\n")[0]
        assert told in PromptTool.HOTKEYS, f"{button.name} promises the key {told!r}"


def test_a_chosen_volume_brings_its_own_segmentation_and_hides_those_of_others(case: Case) -> None:
    (first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="A"), addCase(1, name="B")

    def shown() -> tuple[bool, bool]:
        return tuple(bool(node.GetDisplayNode().GetVisibility()) for node in (ofFirst, ofSecond))

    case.ui.volumeSelector.setCurrentNode(first)
    assert case.selection.segmentationNode is ofFirst
    assert shown() == (True, False)
    case.ui.volumeSelector.setCurrentNode(second)
    assert case.selection.segmentationNode is ofSecond
    assert shown() == (False, True)
    ofFirst.GetDisplayNode().SetVisibility(True)  # the user wants to see it after all
    case.panel.update()
    assert shown() == (True, True)
    case.ui.volumeSelector.setCurrentNode(first)
    case.ui.volumeSelector.setCurrentNode(second)
    assert shown() == (True, True)


def test_a_segmentation_chosen_for_another_volume_is_shown_and_stays_chosen(case: Case) -> None:
    """As for two sequences of one patient on the same grid."""
    (first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="T1"), addCase(1, name="T2")
    slicer.mrmlScene.RemoveNode(ofSecond)
    case.ui.volumeSelector.setCurrentNode(second)
    assert (case.selection.segmentationNode, bool(ofFirst.GetDisplayNode().GetVisibility())) == (None, False)
    case.ui.segmentationSelector.setCurrentNode(ofFirst)
    case.ui.segmentationSelector.nodeActivated(ofFirst)  # by hand
    assert ofFirst.GetDisplayNode().GetVisibility()
    for volumeNode in (first, second):
        case.ui.volumeSelector.setCurrentNode(volumeNode)
        assert case.selection.segmentationNode is ofFirst
        assert ofFirst.GetDisplayNode().GetVisibility()


def test_volumes_of_one_patient_share_their_segmentations(case: Case) -> None:
    (first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="T1"), addCase(1, name="T2")
    slicer.mrmlScene.RemoveNode(ofSecond)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe")
    for volumeNode in (first, second):
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volumeNode), patient)
    for volumeNode in (first, second):
        case.ui.volumeSelector.setCurrentNode(volumeNode)
        assert case.selection.segmentationNode is ofFirst
        assert ofFirst.GetDisplayNode().GetVisibility()


def test_deleting_a_segmentation_shows_none_of_another_patient(case: Case) -> None:
    (_first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="A"), addCase(1, name="B")
    case.ui.volumeSelector.setCurrentNode(second)
    assert not ofFirst.GetDisplayNode().GetVisibility()
    slicer.mrmlScene.RemoveNode(ofSecond)
    assert case.selection.segmentationNode is None
    assert not ofFirst.GetDisplayNode().GetVisibility()


def test_a_segmentation_that_the_user_has_hidden_stays_hidden(case: Case) -> None:
    (first, ofFirst, *_), (second, *_) = addCase(0, name="A"), addCase(1, name="B")
    ofFirst.GetDisplayNode().SetVisibility(False)
    for volumeNode in (second, first):
        case.ui.volumeSelector.setCurrentNode(volumeNode)
    assert not ofFirst.GetDisplayNode().GetVisibility()


def test_a_volume_without_a_segmentation_is_not_drawn_on_with_that_of_another(case: Case) -> None:
    (first, *_), (second, ofSecond, *_) = addCase(0, name="A"), addCase(1, name="B")
    slicer.mrmlScene.RemoveNode(ofSecond)
    case.ui.volumeSelector.setCurrentNode(first)
    case.ui.volumeSelector.setCurrentNode(second)
    assert case.selection.segmentationNode is None


def test_the_first_structure_makes_a_segmentation_on_the_grid_of_the_volume(case: Case) -> None:
    volumeNode, *_ = addCase()
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("drawn"))
    case.ui.volumeSelector.setCurrentNode(volumeNode)
    case.ui.structureNameEdit.setText("liver")
    case.press(case.ui.addStructureButton)
    node = case.selection.segmentationNode
    assert node.GetName() == "CT segmentation"
    assert list(Segmentations.segmentsByName(node)) == ["liver"]
    assert case.selection.structure == "liver"
    assert case.ui.structureNameEdit.text == ""
    assert np.allclose(node.GetSegmentation().GetNthSegment(0).GetColor(), (221 / 255, 130 / 255, 101 / 255))


def test_a_known_name_chooses_the_structure_that_is_there(case: Case) -> None:
    _volumeNode, segmentationNode = case.load()
    case.ui.structureNameEdit.setText("square")
    case.ui.structureNameEdit.returnPressed.emit()
    assert len(Segmentations.segmentsByName(segmentationNode)) == 2
    assert case.selection.structure == "square"
    assert case.logic.live.segmentId == Segmentations.segmentsByName(segmentationNode)["square"]


def test_removing_a_structure_asks_first(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _volumeNode, segmentationNode = case.load()
    asked: list[str] = []

    def refuse(question: str, *_arguments: Any) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", refuse)
    case.press(case.ui.removeStructureButton)
    assert list(Segmentations.segmentsByName(segmentationNode)) == ["disc", "square"]
    case.press(case.ui.removeStructureButton)
    assert list(Segmentations.segmentsByName(segmentationNode)) == ["square"]
    assert "disc" in asked[0]


def test_a_click_in_the_red_view_is_asked_shown_accepted_and_undone(
    case: Case, clickIn: Callable[..., None], runUntil: Callable[..., None]
) -> None:
    volumeNode, segmentationNode = case.load()
    case.press(case.ui.positiveButton)
    assert case.panel.segment.tool.mode == "positive"
    assert "Click on disc" in case.ui.clickStatusLabel.text
    clickIn("Red", Geometry.rasFromIjk(volumeNode)[:3] @ [40, 10, 1, 1])
    runUntil(lambda: any(request["op"] == "predict" for request, _ in case.requests))
    mask = np.zeros((64, 64), bool)
    mask[5:20, 30:50] = True
    case.answerClick(mask)
    segmentId = case.selection.segmentId
    assert np.array_equal(Segmentations.sliceMask(segmentationNode, segmentId, volumeNode, 0, 1), mask)
    assert "Accept it" in case.ui.clickStatusLabel.text
    case.press(case.ui.acceptButton)
    assert not case.ui.acceptButton.enabled
    case.press(case.ui.undoButton)
    assert not np.array_equal(Segmentations.sliceMask(segmentationNode, segmentId, volumeNode, 0, 1), mask)
    assert case.ui.redoButton.enabled


def test_a_tool_is_chosen_by_button_or_key_and_put_down_by_the_same(
    case: Case, pressKey: Callable[[str], None]
) -> None:
    case.load()
    case.press(case.ui.boxButton)
    assert case.panel.segment.tool.mode == "box"
    pressKey("N")
    assert (case.ui.boxButton.checked, case.ui.negativeButton.checked) == (False, True)
    case.press(case.ui.negativeButton)
    assert case.panel.segment.tool.mode == "none"


def test_the_panel_says_which_keys_to_use_beside_another_module(case: Case) -> None:
    shortcut = qt.QShortcut(qt.QKeySequence("P"), slicer.util.mainWindow())
    case.panel.exit()
    case.panel.enter()
    case.panel.update()
    assert "Another module uses the keys P; use Shift+P here." in case.ui.clickStatusLabel.text
    shortcut.setEnabled(False)
    shortcut.setParent(None)
    case.panel.exit()
    case.panel.enter()
    case.panel.update()
    assert "Another module" not in case.ui.clickStatusLabel.text


def test_leaving_the_module_puts_the_tool_down_and_takes_the_keys_away(
    case: Case, pressKey: Callable[[str], None]
) -> None:
    case.load()
    case.press(case.ui.positiveButton)
    slicer.util.selectModule("")
    pressKey("N")
    assert case.panel.segment.tool.mode == "none"
    slicer.util.selectModule("FewShotSeg")
    pressKey("N")
    assert case.panel.segment.tool.mode == "negative"


def test_a_failed_click_is_explained_until_the_next_one_is_answered(
    case: Case, clickIn: Callable[..., None], runUntil: Callable[..., None]
) -> None:
    volumeNode, _segmentationNode = case.load()
    case.press(case.ui.positiveButton)
    clickIn("Red", Geometry.rasFromIjk(volumeNode)[:3] @ [40, 10, 1, 1])
    runUntil(lambda: any(request["op"] == "predict" for request, _ in case.requests))
    case.requests[-1][1]["onError"]("defect", "ValueError: no\n\nTraceback of it")
    assert "ValueError: no" in case.ui.clickStatusLabel.text
    case.panel.update()
    assert "ValueError: no" in case.ui.clickStatusLabel.text
    case.ui.clickStatusLabel.linkActivated.emit("report")
    assert qt.QApplication.clipboard().text() == "Traceback of it"


def test_the_choices_of_where_masks_may_go_reach_the_writer(case: Case) -> None:
    _volumeNode, segmentationNode = case.load()
    case.panel.segment.overwrite.choose("all")
    case.panel.segment.inside.choose(Segmentations.segmentsByName(segmentationNode)["square"])
    case.ui.intensityCheckBox.setChecked(True)
    case.ui.lowestSpinBox.setValue(-20)
    writer = case.logic.live.writer
    assert writer.area.overwriteMode == "all"
    assert writer.area.inside == Segmentations.segmentsByName(segmentationNode)["square"]
    assert writer.area.intensity == (-20, case.ui.highestSpinBox.value)


def test_propagation_asks_for_direction_and_count(case: Case) -> None:
    case.load()
    case.logic.live.addPoint(0, 1, tuple(Geometry.rasFromIjk(case.selection.volumeNode)[:3] @ [40, 10, 1, 1]), True)
    case.ui.propagateSpinBox.setValue(7)
    case.press(case.ui.propagateForwardButton)
    request = case.requests[-1][0]
    assert (request["op"], request["direction"], request["count"]) == ("propagate", 1, 7)
    assert case.ui.stopPropagationButton.visible or not case.ui.propagateBackButton.visible
    case.logic.live.cancelPropagation()
    assert not case.ui.propagateBackButton.isHidden()
