"""What is chosen in the panel, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Scene import Segmentations, SliceViews
from Testing.Extension.cases import addCase
from Testing.Extension.nodes import addWarp
from Testing.Extension.panels import Case


def test_nothing_is_chosen_in_an_empty_scene(case: Case) -> None:
    selection = case.selection
    assert (selection.volumeNode, selection.segmentationNode, selection.segmentId) == (None, None, None)
    assert (selection.structure, selection.segmentIds, selection.slice, selection.prompt()) == ("", (), None, None)
    assert selection.shownWindow() is None
    assert not selection.hasPrompts


def test_nodes_and_structure_are_those_that_the_form_shows(case: Case) -> None:
    volumeNode, segmentationNode = case.load()
    ids = Segmentations.segmentsByName(segmentationNode)
    selection = case.selection
    assert (selection.volumeNode, selection.segmentationNode) == (volumeNode, segmentationNode)
    assert selection.segmentIds == tuple(ids.values())
    for name, segmentId in ids.items():
        case.panel.segment.choose(segmentId)
        assert (selection.segmentId, selection.structure) == (segmentId, name)


def test_while_the_scene_is_closing_there_is_nothing_to_work_on(case: Case) -> None:
    case.load()
    case.selection.isClosing = True
    assert (case.selection.volumeNode, case.selection.segmentationNode, case.selection.segmentId) == (None, None, None)


def test_the_slice_is_the_one_in_use_if_a_view_shows_it_and_otherwise_that_of_the_first_view(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    assert case.selection.slice == (0, 1)
    SliceViews.jumpToSlice(volumeNode, 2, 30)
    case.logic.live.setSlice(2, 30, "Yellow")
    case.logic.live.setSlice(2, 31, "Yellow")  # not where the view is
    assert case.selection.slice == (0, 1)
    case.logic.live.setSlice(2, 30, "Yellow")
    assert case.selection.slice == (2, 30)


def test_the_clicks_of_the_structure_on_the_slice_are_found(case: Case) -> None:
    volumeNode, segmentationNode = case.load()
    assert case.selection.prompt() is None
    case.click(volumeNode)
    prompt = case.selection.prompt()
    assert prompt is not None
    assert prompt.labels == (1,)
    case.panel.segment.choose(Segmentations.segmentsByName(segmentationNode)["square"])
    assert case.selection.prompt() is None
    assert case.selection.hasPrompts  # of another structure


def test_a_volume_under_a_warp_has_no_slice_and_breaks_nothing(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    volumeNode.SetAndObserveTransformNodeID(addWarp().GetID())
    assert case.selection.slice is None
    case.panel.update()
    assert not case.ui.emptySliceButton.enabled


def test_the_window_is_that_of_the_views(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    volumeNode.GetDisplayNode().AutoWindowLevelOff()
    volumeNode.GetDisplayNode().SetWindowLevelMinMax(-100.0, 300.0)
    assert case.selection.shownWindow() == (-100.0, 300.0)


# -------------------------------------------------------------------------------------------------------------- models


def test_models_that_answer_clicks_are_base_models_and_the_adapters_of_them(case: Case, adapter: str) -> None:
    made = load_adapter(adapter)
    others = {
        "foreign": replace(made, base_model="elsewhere"),
        "network": replace(made, base_model="", architecture={"kind": "unet"}),
    }
    for name, other in others.items():
        save_adapter(other, Path(adapter).with_name(f"{name}.safetensors"))
    case.selection.lookForModels()
    assert "tiny" in case.selection.bases
    assert {card["name"] for card in case.selection.cards} == {"organs", "network"}  # whatever can be used here
    choices = dict(case.selection.models("continue from {name}"))
    assert choices["tiny (base model)"] == (None, "tiny")
    ofAdapters = {text: choice for text, choice in choices.items() if choice[0] is not None}
    assert ofAdapters == {"continue from organs": (adapter, None)}  # a stand-alone network takes no clicks


def test_a_new_adapter_in_the_folder_is_told_until_the_panel_goes(case: Case, adapter: str) -> None:
    heard: list[int] = []
    case.selection.modelsChanged.connect(lambda: heard.append(len(case.selection.cards)))
    case.logic.discard(adapter)
    assert heard == [0]
    case.selection.close()
    case.logic.adapterFolder.changed()
    assert heard == [0]
    case.logic.adapterFolder.changed.connect(case.selection.lookForModels)


# --------------------------------------------------------------------------------------------------- what can be done


def test_nothing_can_be_computed_while_packages_are_missing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.selection.whyNotCompute() == ""
    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    assert case.selection.whyNotCompute() == ""  # nobody has looked yet
    case.selection.lookForPackages()
    assert case.selection.missing == ("torch>=2.4",)
    assert "Python packages are missing" in case.selection.whyNotCompute()


def test_the_panel_is_busy_while_a_job_runs(readyToAdapt: Case) -> None:
    case = readyToAdapt
    assert not case.selection.isBusy
    case.press(case.ui.measureButton)
    assert case.selection.isBusy
    case.runs["measure"].failed("cancelled", "Cancelled.")
    assert not case.selection.isBusy


def test_choices_are_kept_when_they_are_told(case: Case) -> None:
    volumeNode, *_ = addCase()
    case.ui.volumeSelector.setCurrentNode(volumeNode)
    case.ui.deviceSelector.setCurrentIndex(2)
    assert case.selection.device == "cpu"
    assert case.panel.choices.value("Device") == "cpu"
    assert case.panel.choices.node("Volume") is volumeNode
