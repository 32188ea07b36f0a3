"""Section 2: the list of exemplars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import qt
import slicer

from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.panels import Case


def test_a_slice_becomes_an_exemplar_in_one_click(case: Case) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    item = case.ui.exemplarList.item(0)
    assert item.text().splitlines()[:2] == ["CT k=1", "disc, square"]
    assert not item.icon().isNull()
    assert item.isSelected()
    assert not case.ui.exemplarHintLabel.visible


def test_all_annotated_slices_become_one_exemplar(case: Case) -> None:
    case.load()
    case.press(case.ui.addAnnotatedButton)
    assert [exemplar.slices for exemplar in case.logic.exemplars.list()] == [(1, 3)]


def test_an_exemplar_is_renamed_left_out_and_removed(case: Case) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    case.ui.exemplarNameEdit.setText("first")
    case.ui.exemplarNameEdit.editingFinished.emit()
    assert [exemplar.name for exemplar in case.logic.exemplars.list()] == ["first"]
    case.ui.exemplarList.item(0).setCheckState(qt.Qt.Unchecked)
    assert not case.logic.exemplars.list()[0].isEnabled
    case.press(case.ui.removeExemplarButton)
    assert case.logic.exemplars.list() == ()
    assert case.ui.exemplarList.count == 0


def test_what_will_make_learning_hard_is_listed(case: Case) -> None:
    _volumeNode, segmentationNode = case.load()
    mask = np.zeros((64, 64), bool)
    mask[0, 0] = True
    dot = Segmentations.addSegment(segmentationNode, "dot")
    case.logic.live.writer.accept(dot, 0, 1, mask)
    case.press(case.ui.addSliceButton)
    assert "dot is a single voxel" in case.ui.preflightLabel.text


def test_exemplars_can_be_ticked_by_structure(case: Case) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    case.panel.exemplars.learn.choose("square")
    assert [exemplar.isEnabled for exemplar in case.logic.exemplars.list()] == [True]
    texts = [case.ui.learnSelector.itemText(i) for i in range(case.ui.learnSelector.count)]
    assert texts == ["All structures", "disc", "square"]


def test_exemplars_go_out_and_come_in_as_a_bundle(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    bundle = str(tmp_path / "bundle.zip")
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: bundle)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: bundle)
    case.press(case.ui.exportExemplarsButton)
    case.press(case.ui.removeExemplarButton)
    case.press(case.ui.importExemplarsButton)
    assert [exemplar.name for exemplar in case.logic.exemplars.list()] == ["CT k=1"]


def test_slices_are_learned_as_they_are_accepted_where_the_user_wants_it(case: Case) -> None:
    case.load()
    case.logic.live.accepted(0, 1)
    slicer.app.processEvents()
    assert case.ui.exemplarList.count == 0  # off unless it is ticked
    case.ui.learnAsYouGoCheckBox.checked = True
    for _ in range(2):
        case.logic.live.accepted(0, 1)
    case.logic.live.accepted(0, 3)
    assert case.ui.exemplarList.count == 0  # the mask is still being written
    slicer.app.processEvents()
    assert [exemplar.slices for exemplar in case.logic.exemplars.list()] == [(1,), (3,)]


def test_what_was_accepted_in_nodes_that_are_left_is_not_learned(case: Case) -> None:
    case.load()
    case.ui.learnAsYouGoCheckBox.checked = True
    case.logic.live.accepted(0, 1)
    case.ui.segmentationSelector.setCurrentNode(None)
    slicer.app.processEvents()
    assert case.ui.exemplarList.count == 0


def test_adapting_again_is_advised_when_there_are_twice_the_slices(case: Case) -> None:
    case.load()
    case.show("exemplar")
    case.press(case.ui.addSliceButton)
    hint = case.ui.exemplarHintLabel
    case.panel.exemplars.noteAdapted()
    assert not hint.visible
    case.ui.learnAsYouGoCheckBox.checked = True
    case.logic.live.accepted(0, 3)
    slicer.app.processEvents()
    assert hint.visible
    assert hint.text == "Annotated slices since the last adaptation: 1. Adapting again is worthwhile."
    case.panel.exemplars.noteAdapted()
    assert not hint.visible
