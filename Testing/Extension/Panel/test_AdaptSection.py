"""Section 3: what is asked of an adaptation, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import qt

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods import METHODS, method
from FewShotSegSlicer.Jobs.Checkpoints import Interrupted
from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.panels import Case, dialogCalled, offerMethod


def test_every_method_is_offered_when_the_section_is_opened(case: Case) -> None:
    case.show("adapt")
    texts = [case.ui.methodSelector.itemText(i) for i in range(case.ui.methodSelector.count)]
    assert texts == [method(name).LABEL for name in METHODS]
    assert "add an exemplar first" in case.ui.adaptButton.toolTip


def test_adapt_hands_over_what_was_chosen(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.panel.adapt.startModel.choose((None, "tiny"))
    case.panel.adapt._forms["lora"].setRecipe({"steps": 7})
    case.ui.minutesSpinBox.setValue(2)
    case.ui.newAdapterNameEdit.setText("mine")
    case.panel.adapt.window.choose(True)
    case.press(case.ui.adaptButton)
    arguments = case.runs["adapt"].arguments
    asked = {key: arguments[key] for key in ("method", "recipe", "base", "warmStart", "maxSeconds", "name", "device")}
    assert asked == {
        "method": "lora",
        "recipe": {"steps": 7},
        "base": "tiny",
        "warmStart": None,
        "maxSeconds": 120.0,
        "name": "mine",
        "device": "auto",
    }
    assert arguments["window"] == case.selection.shownWindow()
    assert "another task is running" in case.ui.adaptButton.toolTip


def test_without_training_the_exemplars_segment_at_once(case: Case, adapter: str) -> None:
    case.show("adapt")
    assert "choose a volume first" in case.ui.supportButton.toolTip
    volumeNode, _drawn = case.load()
    assert "add an exemplar first" in case.ui.supportButton.toolTip
    case.press(case.ui.addSliceButton)
    case.panel.adapt.startModel.choose((None, "tiny"))
    case.press(case.ui.supportButton)
    run = case.runs["segment"]
    asked = {key: run.arguments[key] for key in ("arguments", "base", "support", "device")}
    assert asked == {"arguments": (volumeNode, None), "base": "tiny", "support": True, "device": "auto"}
    run.progress(step=3, total=12, message="exemplar picture 4 of 12")
    assert case.ui.trainingFrame.visible
    assert case.ui.trainingProgressBar.value == 25
    assert not case.ui.stopButton.visible
    assert "another task is running" in case.ui.supportButton.toolTip
    node = Segmentations.newSegmentation(volumeNode)
    Segmentations.claim(node, volumeNode)
    run.done(node)
    assert case.selection.segmentationNode is node
    assert "Click where it is wrong" in case.ui.adaptStatusLabel.text
    assert not case.ui.trainingFrame.visible


def test_segmenting_from_exemplars_is_given_up_and_explained(readyToAdapt: Case, adapter: str) -> None:
    case = readyToAdapt
    before = case.selection.segmentationNode
    case.panel.adapt.startModel.choose((adapter, None))  # it has structures of its own: only its base model is meant
    case.press(case.ui.supportButton)
    run = case.runs["segment"]
    assert (run.arguments["arguments"][1], run.arguments["base"]) == (None, "tiny")
    case.press(case.ui.cancelButton)
    assert run.told == ["cancel"]
    run.failed("cancelled", "Cancelled.")
    assert "nothing was kept" in case.ui.adaptStatusLabel.text
    case.press(case.ui.supportButton)
    case.runs["segment"].failed("input", "No exemplar shows square on an annotated slice.")
    assert "No exemplar shows square" in case.ui.adaptStatusLabel.text
    assert case.selection.segmentationNode is before


def test_a_remembered_recipe_that_does_not_fit_any_more_is_told_and_breaks_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.panel.choices.keep({}, {"Recipes": {"other": {"gone": 1}}})
    offerMethod(case, monkeypatch, "exemplars")
    case.panel.recall()
    assert "The recipe has no option" in case.ui.adaptStatusLabel.text
    case.panel.adapt._forms["other"].setRecipe({"steps": 7})
    case.panel.remember()
    assert case.panel.choices.value("Recipes") == {"other": {"steps": 7}}


def test_what_broke_off_is_told_when_the_section_is_opened(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Interrupted(Path("liver.safetensors"), "", ("liver", "spleen"), "2026-11-21 18:03")
    monkeypatch.setattr(case.logic, "interrupted", lambda: [broken])
    case.show("adapt")
    assert case.ui.adaptStatusLabel.text.startswith(
        "The adaptation of liver, spleen of 2026-11-21 18:03 was interrupted."
    )


def test_a_worker_that_died_is_explained(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    case.runs["adapt"].failed("dead", "The process ended unexpectedly (code -9). Memory ran out.")
    assert "Memory ran out" in case.ui.adaptStatusLabel.text
    assert case.ui.adaptButton.enabled


def test_what_adapt_refuses_is_shown_beside_the_button(readyToAdapt: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case = readyToAdapt

    def refuse(**_options: Any) -> None:
        raise InputError("The exemplars show no square.")

    monkeypatch.setattr(case.logic, "adapt", refuse)
    case.press(case.ui.adaptButton)
    assert "The exemplars show no square." in case.ui.adaptStatusLabel.text


def test_time_and_memory_are_measured_on_request(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.measureButton)
    case.runs["measure"].done({"seconds": 200.0, "memory_bytes": 2_500_000_000, "free_bytes": None, "device": "cpu"})
    assert case.ui.estimateLabel.text == "About 3 min 20 s on the processor, 2.5 GB of memory."


def test_samples_are_shown_before_training(readyToAdapt: Case, tmp_path: Path) -> None:
    case = readyToAdapt
    pixmap = qt.QPixmap(60, 40)
    pixmap.fill(qt.QColor(200, 0, 0))
    assert pixmap.save(str(tmp_path / "sheet.png"))
    case.press(case.ui.previewButton)
    case.runs["preview"].done(str(tmp_path / "sheet.png"))
    window = dialogCalled("Training samples (preview)")
    assert not window.findChild(qt.QLabel).pixmap.isNull()
    window.close()
