"""The folders that a method needs beside exemplars."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.Extension.panels import Case, offerMethod


def test_a_method_that_learns_beside_other_data_asks_for_their_folder(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    offerMethod(case, monkeypatch, "exemplars", "auxiliary")
    assert case.ui.auxiliaryFrame.visible
    assert not case.ui.sourceFrame.visible
    assert not case.ui.targetsFrame.visible
    assert "choose the folder of auxiliary data sets first" in case.ui.adaptButton.toolTip
    case.ui.auxiliaryEdit.setCurrentPath(str(tmp_path))
    request, callbacks = case.requests[-1]
    assert request == {"op": "folder", "path": str(tmp_path), "holds": "data sets"}
    chaos = {"name": "CHAOS", "cases": 20, "structures": [], "modality": "MR", "licence": "CC BY 4.0"}
    callbacks["onResult"]({"data_sets": [chaos, {**chaos, "name": "mine", "cases": 3, "modality": "", "licence": ""}]})
    assert case.ui.auxiliaryAboutLabel.text == "CHAOS: 20 cases, MR, CC BY 4.0; mine: 3 cases"
    case.press(case.ui.adaptButton)
    arguments = case.runs["adapt"].arguments
    assert arguments["auxiliaryFolder"] == str(tmp_path)
    assert not {"sourceFolder", "targetFolder", "exemplars"} & set(arguments)


def test_a_method_between_kinds_of_images_needs_two_folders_and_no_exemplar(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offerMethod(case, monkeypatch, "source", "targets")
    (tmp_path / "CT").mkdir()
    (tmp_path / "MR").mkdir()
    assert "choose the folder of annotated images first" in case.ui.adaptButton.toolTip
    case.ui.sourceEdit.setCurrentPath(str(tmp_path / "CT"))
    assert "choose the folder of unlabelled images first" in case.ui.adaptButton.toolTip
    case.ui.targetsEdit.setCurrentPath(str(tmp_path / "MR"))
    case.requests[-1][1]["onResult"]({"volumes": 12})
    assert case.ui.targetsAboutLabel.text == "12 volumes"
    assert "this method has no sample preview" in case.ui.previewButton.toolTip
    case.press(case.ui.adaptButton)
    arguments = case.runs["adapt"].arguments
    assert (arguments["sourceFolder"], arguments["targetFolder"]) == (str(tmp_path / "CT"), str(tmp_path / "MR"))
    assert arguments["exemplars"] == ()


def test_what_is_said_of_a_folder_is_said_of_the_chosen_one(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offerMethod(case, monkeypatch, "targets")
    case.ui.targetsEdit.setCurrentPath(str(tmp_path))
    late = case.requests[-1][1]["onResult"]
    case.ui.targetsEdit.setCurrentPath(str(tmp_path / "not there"))
    late({"volumes": 12})
    assert case.ui.targetsAboutLabel.text == ""
    case.ui.targetsEdit.setCurrentPath(str(tmp_path))
    case.requests[-1][1]["onError"]("input", "It holds no volume.")
    assert "It holds no volume." in case.ui.targetsAboutLabel.text


def test_of_many_data_sets_the_first_are_named_and_the_rest_counted(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offerMethod(case, monkeypatch, "auxiliary")
    case.ui.auxiliaryEdit.setCurrentPath(str(tmp_path))
    one = {"cases": 2, "structures": [], "modality": "", "licence": ""}
    case.requests[-1][1]["onResult"]({"data_sets": [{**one, "name": f"set {n}"} for n in range(8)]})
    assert case.ui.auxiliaryAboutLabel.text.startswith("set 0: 2 cases; set 1: 2 cases;")
    assert case.ui.auxiliaryAboutLabel.text.endswith("set 5: 2 cases and 2 more")


def test_a_folder_is_looked_into_once_and_only_while_a_method_needs_it(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = case.panel.adapt._rows["targets"]
    case.ui.targetsEdit.setCurrentPath(str(tmp_path))
    assert case.requests == []
    offerMethod(case, monkeypatch, "targets")
    row.setNeeded(True)
    assert [request["op"] for request, _callbacks in case.requests] == ["folder"]
    case.requests[-1][1]["onError"]("dead", "The process ended.")  # the next job will say so
    assert case.ui.targetsAboutLabel.text == ""
