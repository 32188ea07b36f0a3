"""The panel as a whole: what it looks like, what it keeps with the scene, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import qt
import slicer

from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.cases import addCase
from Testing.Extension.panels import SECTIONS, WIDTH, Case, offerMethod, widgetsOf


def test_everything_has_a_tooltip_and_what_is_disabled_says_why(case: Case) -> None:
    for name, widget in widgetsOf(case):
        assert widget.toolTip, f"{name} has no tooltip"
        dependsOnBox = name in ("lowestSpinBox", "highestSpinBox")
        if not widget.enabled and not dependsOnBox:
            assert "Not now: " in widget.toolTip, f"{name} does not say why it is disabled"


def test_every_section_fits_a_narrow_panel_without_cutting_words(case: Case, adapter: str) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    top = case.widget.layout.itemAt(0).widget()
    top.setFixedWidth(WIDTH)
    for section in SECTIONS:
        case.show(section)
        assert top.property("minimumSizeHint").width() <= WIDTH, section
        for name, widget in vars(case.ui).items():
            isText = isinstance(widget, qt.QPushButton | qt.QToolButton | qt.QCheckBox | qt.QLabel)
            if isText and widget.visible and widget.text and not getattr(widget, "wordWrap", False):
                assert widget.width >= widget.property("minimumSizeHint").width(), f"{name} is cut off"


def test_a_new_adapter_is_chosen_everywhere_at_once(readyToAdapt: Case, adapter: str) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    case.runs["adapt"].done(adapter)
    assert case.panel.segment.model.value == (adapter, None)
    assert case.panel.batch.adapter.value == adapter
    assert case.panel.result.card["path"] == adapter
    assert not case.ui.resultSection.collapsed
    assert "disc, square" in case.ui.cardLabel.text


def test_the_choices_are_saved_with_the_scene_and_hold_again(case: Case, adapter: str) -> None:
    volumeNode, segmentationNode = case.load()
    case.show("adapt")
    case.panel.segment.model.choose((adapter, None))
    boxes = case.panel.adapt._forms["lora"].widget.findChildren(qt.QSpinBox)
    next(box for box in boxes if box.enabled).setValue(5)
    node = case.logic.getParameterNode()
    assert node.GetNodeReference("Volume") is volumeNode
    assert node.GetNodeReference("Segmentation") is segmentationNode
    assert json.loads(node.GetParameter("Recipes")) == {"lora": {"estimate_folds": 5}}
    slicer.util.selectModule("")
    slicer.util.getModule("FewShotSeg").discardWidget()
    slicer.util.selectModule("FewShotSeg")
    panel = slicer.util.getModuleWidget("FewShotSeg").panel
    assert panel.selection.volumeNode is volumeNode
    assert panel.selection.segmentationNode is segmentationNode
    assert panel.segment.model.value == (adapter, None)


def test_the_folders_are_kept_with_the_scene(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offerMethod(case, monkeypatch, "exemplars", "auxiliary")
    case.ui.auxiliaryEdit.setCurrentPath(str(tmp_path))
    assert case.panel.choices.value("Folders")["auxiliary"] == str(tmp_path)
    case.ui.auxiliaryEdit.setCurrentPath("")
    case.panel.choices.keep({}, {"Folders": {"auxiliary": str(tmp_path)}})
    case.panel.recall()
    assert case.ui.auxiliaryEdit.currentPath == str(tmp_path)


def test_what_was_hidden_is_shown_with_its_volume_also_after_loading_the_scene(case: Case, tmp_path: Path) -> None:
    addCase(0, name="A"), addCase(1, name="B")
    for name in ("A", "B"):
        case.ui.volumeSelector.setCurrentNode(slicer.util.getNode(name))
    assert slicer.util.saveScene(str(tmp_path / "two.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "two.mrb"))
    slicer.app.processEvents()
    assert case.selection.volumeNode is slicer.util.getNode("B")
    case.ui.volumeSelector.setCurrentNode(slicer.util.getNode("A"))
    assert Segmentations.volumeOf(case.selection.segmentationNode) is slicer.util.getNode("A")
    assert case.selection.segmentationNode.GetDisplayNode().GetVisibility()


def test_answers_are_looked_for_often_where_somebody_waits_and_seldom_elsewhere(readyToAdapt: Case) -> None:
    case = readyToAdapt

    def interval() -> int:
        case.panel._poll()
        return case.panel._timer.interval

    assert interval() == 10
    slicer.util.selectModule("")
    assert interval() == 300
    slicer.util.selectModule("FewShotSeg")
    case.press(case.ui.adaptButton)
    slicer.util.selectModule("")
    assert interval() == 50, "the pipe of a job would run full"
    slicer.util.selectModule("FewShotSeg")


def test_closing_the_scene_leaves_a_panel_that_works(case: Case) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    case.press(case.ui.positiveButton)
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    assert case.selection.volumeNode is None
    assert case.ui.exemplarList.count == 0
    assert case.ui.clickStatusLabel.text.startswith("Load a volume")
    case.load()
    assert case.ui.addSliceButton.enabled


def test_removing_the_volume_leaves_a_panel_that_works(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    slicer.mrmlScene.RemoveNode(volumeNode)
    slicer.app.processEvents()
    assert case.selection.volumeNode is None
    assert not case.ui.positiveButton.enabled


def test_nothing_is_left_of_a_panel_that_was_cleaned_up(case: Case, adapter: str) -> None:
    case.load()
    live, folder = case.logic.live, case.logic.adapterFolder
    slicer.util.selectModule("")
    slicer.util.getModule("FewShotSeg").discardWidget()
    live.changed()
    folder.changed()
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    assert slicer.util.mainWindow().findChildren(qt.QShortcut) == [] or all(
        not shortcut.enabled for shortcut in slicer.util.mainWindow().findChildren(qt.QShortcut)
    )
    slicer.util.selectModule("FewShotSeg")


def test_without_a_main_window_there_are_no_hotkeys_and_no_complaint(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicer.util, "mainWindow", lambda: None)
        case.panel.exit()
        case.panel.enter()
    case.load()
    assert case.ui.positiveButton.enabled
