"""Section 4: the list of adapters, and what each does to a volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import qt
import slicer

from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegSlicer.Jobs.Comparison import Comparison
from FewShotSegSlicer.Scene import Geometry, SliceViews
from Testing.Extension.panels import Case, dialogCalled


def test_the_report_of_a_training_is_shown_where_there_is_one(case: Case, adapter: str) -> None:
    case.show("result")
    assert not case.ui.reportButton.visible
    pixmap = qt.QPixmap(60, 40)
    pixmap.fill(qt.QColor(0, 0, 200))
    assert pixmap.save(str(Path(adapter).with_name("organs.report.png")))
    case.selection.lookForModels()
    case.press(case.ui.reportButton)
    window = dialogCalled("Training of organs")
    assert not window.findChild(qt.QLabel).pixmap.isNull()
    window.close()


def test_a_new_adapter_is_kept_renamed_or_discarded(case: Case, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.ui.adapterList.item(0).text().startswith("organs (new)")
    case.press(case.ui.keepButton)
    assert case.ui.adapterList.item(0).text().splitlines() == ["organs", "disc, square · tiny · Dice 0.84"]
    case.ui.adapterNameEdit.setText("better")
    case.ui.adapterNameEdit.editingFinished.emit()
    assert [card["name"] for card in case.logic.adapters()] == ["better"]
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_arguments: True)
    case.press(case.ui.discardButton)
    assert case.logic.adapters() == []
    assert case.ui.resultHintLabel.text


def test_an_adapter_of_many_tasks_is_for_clicks_and_exemplars(case: Case, adapter: str) -> None:
    known = load_adapter(adapter)
    path = Path(adapter).with_name("many tasks.safetensors")
    task = {"name": "acdc", "structures": ["left ventricle"], "slices": ["a k=1"]}
    save_adapter(replace(known, method="gmiseg", structures={}, provenance={"tasks": [task]}), path)
    case.logic.adapterFolder.noteNew(path)
    case.load()
    case.panel.result.choose(str(path))
    assert case.panel.result.card["path"] == str(path)
    assert "no named structures" in case.ui.cardLabel.text
    assert "acdc (left ventricle)" in case.ui.cardLabel.text
    for button in (case.ui.applyButton, case.ui.suggestButton):
        assert "has no named structures" in button.toolTip
    case.press(case.ui.addSliceButton)
    case.panel.adapt.startModel.choose((str(path), None))
    case.press(case.ui.supportButton)
    assert case.runs["segment"].arguments["arguments"][1] == str(path)


def test_learning_on_starts_from_the_chosen_adapter(case: Case, adapter: str) -> None:
    case.press(case.ui.continueButton)
    assert not case.ui.adaptSection.collapsed
    assert case.panel.adapt.startModel.value == (adapter, None)


def test_base_and_adapter_are_compared_side_by_side_or_in_turn(case: Case, adapter: str) -> None:
    case.load()
    case.show("result")
    case.press(case.ui.compareButton)
    arguments = case.runs["compare"].arguments
    volumeNode, axis, index, card, prompt = arguments["arguments"][:5]
    assert (volumeNode.GetName(), axis, index, card["path"], prompt) == ("CT", 0, 1, adapter, None)
    assert arguments["structure"] == "disc"
    base, adapted = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    base[10:20, 10:20] = adapted[12:22, 10:20] = True
    image = np.full((64, 64), 90, np.uint8)
    onDone = arguments["arguments"][5]
    onDone(Comparison(0, 1, image, base, adapted, 0.7, 0.9, np.diag([-1.0, -1.0, 4.0, 1.0])))
    assert "20 voxels added (green), 20 removed (red)" in case.ui.compareTextLabel.text
    wide = case.ui.compareLabel.pixmap.width()
    case.ui.flickerCheckBox.setChecked(True)
    assert case.ui.compareLabel.pixmap.width() < wide
    case.ui.flickerCheckBox.setChecked(False)
    assert case.ui.compareLabel.pixmap.width() == wide


def test_a_volume_is_segmented_with_or_without_clicks(case: Case, adapter: str) -> None:
    volumeNode, segmentationNode = case.load()
    case.ui.applyVolumeSelector.setCurrentNode(volumeNode)
    case.press(case.ui.applyButton)
    arguments = case.runs["segment"].arguments
    assert arguments["arguments"][0] is volumeNode
    assert (arguments["arguments"][2], arguments["prompts"]) == (None, None)
    case.runs["segment"].done(segmentationNode)
    assert "Segmented into drawn" in case.ui.resultStatusLabel.text
    case.logic.live.addPoint(0, 1, tuple(Geometry.rasFromIjk(volumeNode)[:3] @ [40, 10, 1, 1]), True)
    case.panel.result.into.choose(True)
    case.ui.usePromptsCheckBox.setChecked(True)
    case.press(case.ui.applyButton)
    arguments = case.runs["segment"].arguments
    assert (arguments["arguments"][2], arguments["prompts"]) == (segmentationNode, True)


def test_the_suggested_slice_is_shown(case: Case, adapter: str) -> None:
    case.load()
    case.press(case.ui.suggestButton)
    case.runs["suggestNextSlice"].done((0, 4))
    view = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    assert SliceViews.viewedSlice(case.selection.volumeNode, view) == (0, 4)
    assert "least certain on slice 4" in case.ui.resultStatusLabel.text
