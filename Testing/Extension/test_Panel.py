"""The panel: what it offers when, what it asks of the logic, and how it shows the answers. No worker is started."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import slicer

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.methods import METHODS, method
from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Jobs.Checkpoints import Interrupted
from FewShotSegSlicer.Jobs.Comparison import Comparison
from FewShotSegSlicer.Prompting import PromptTool
from FewShotSegSlicer.Scene import Geometry, Segmentations, SliceViews
from FewShotSegSlicer.Workers.Run import RunProgress
from Testing.Extension.cases import addCase

WIDTH = 300  # pixels; Slicer's module panel is seldom made narrower
SECTIONS = ("segment", "exemplar", "adapt", "result", "batch", "setup")


class FakeRun:
    """A job that does nothing until it is told how it ends."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.isRunning = self.canKeepBest = True
        self.told: list[str] = []

    def cancel(self) -> None:
        self.told.append("cancel")

    def stopAndKeepBest(self) -> None:
        self.told.append("stopAndKeepBest")

    def drop(self, *_arguments: Any, **_options: Any) -> None:
        self.isRunning = False

    def progress(self, **message: Any) -> None:
        message = {"step": 0, "total": 0, "message": "", "metrics": {}, **message}
        share = message["step"] / message["total"] if message["total"] else None
        self.arguments["progress"](RunProgress(message, fraction=share, remaining_s=95.0))

    def done(self, result: Any) -> None:
        self.isRunning = False
        self.arguments["onDone"](result)

    def failed(self, kind: str, message: str) -> None:
        self.isRunning = False
        self.arguments["onError"](kind, message)


class Case:
    """The panel with everything it may ask of the logic replaced; `runs` are the jobs it has asked for, by name."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget, self.panel, self.ui, self.logic = widget, widget.panel, widget.panel.ui, widget.logic
        self.runs: dict[str, FakeRun] = {}
        self.requests: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for name in ("adapt", "segment", "processBatch", "preview", "measure", "suggestNextSlice", "compare"):
            monkeypatch.setattr(self.logic, name, self._asked(name))
        monkeypatch.setattr(self.logic, "methods", self._methods)
        monkeypatch.setattr(self.logic.workers, "request", self._request)
        monkeypatch.setattr(self.logic.workers, "sendVolume", lambda *arguments, **options: None)
        monkeypatch.setattr(
            type(self.logic), "runs", property(lambda _self: [run for run in self.runs.values() if run.isRunning])
        )

    def _asked(self, name: str) -> Callable[..., FakeRun]:
        def ask(*arguments: Any, **options: Any) -> FakeRun:
            self.runs[name] = FakeRun({"arguments": arguments, **options})
            return self.runs[name]

        return ask

    def _methods(self, onDone: Callable[..., Any], onError: Callable[..., Any]) -> None:
        modules = {name: method(name) for name in METHODS}
        onDone(
            [
                {
                    "name": name,
                    "label": m.LABEL,
                    "about": m.__doc__,
                    "needs": sorted(m.NEEDS),
                    "options": describe(m.Recipe),
                }
                for name, m in modules.items()
            ]
        )

    def _request(self, _worker: str, request: dict[str, Any], **callbacks: Any) -> int:
        self.requests.append((request, callbacks))
        return len(self.requests)

    def show(self, section: str) -> None:
        for name in SECTIONS:
            getattr(self.ui, name + "Section").collapsed = name != section
        slicer.app.processEvents()

    def load(self, **options: Any) -> tuple[Any, Any]:
        """A volume with two structures drawn on two slices, chosen, with the Red view on a drawn slice."""
        volumeNode, segmentationNode, _volume, _labels = addCase(**options)
        self.ui.volumeSelector.setCurrentNode(volumeNode)
        self.ui.segmentationSelector.setCurrentNode(segmentationNode)
        SliceViews.jumpToSlice(volumeNode, 0, 1)
        slicer.app.processEvents()
        self.logic.live.setSlice(0, 1, "Red")
        return volumeNode, segmentationNode

    def press(self, button: Any) -> None:
        assert button.enabled, button.toolTip
        button.click()
        slicer.app.processEvents()

    def answerClick(self, mask: np.ndarray) -> None:
        """Answer the newest question about a click."""
        request, callbacks = next(one for one in reversed(self.requests) if one[0]["op"] == "predict")
        axis, index = "kji".index(request["prompt"]["axis"]), request["prompt"]["index"]
        callbacks["onResult"]({**Prompt(axis, index, mask=mask).to_dict(), "iou": 0.9, "seconds": 0.01})
        slicer.app.processEvents()


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    monkeypatch.setattr(Dependencies, "missing", lambda: ())
    (tmp_path / "tiny.safetensors").write_bytes(b"never opened")
    registry.add(tmp_path / "tiny.safetensors", "compact", "tiny")
    return Case(request.getfixturevalue("panel"), monkeypatch)


METRICS = {
    "steps": 400,
    "best_step": 360,
    "estimated_dice": {"disc": 0.91, "square": 0.77},
    "estimate": "left-out exemplars (2 folds)",
    "guard": {"warnings": ["With clicks the adapter is worse than the base model."]},
}


@pytest.fixture
def adapter(case: Case) -> str:
    """An adapter for "disc" and "square" in the folder of adapters; only its card is ever read."""
    path = case.logic.adapterFolder.folder / "organs.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    intensity = IntensitySpec.from_dict({"kind": "window", "low": -160.0, "high": 240.0})
    source = {"name": "CT.nrrd", "annotated_slices": [1, 3]}
    made = Adapter(
        {"weight": np.zeros(1)},
        method="lora",
        recipe={},
        base_model="tiny",
        base_sha256="0" * 64,
        structures={1: "disc", 2: "square"},
        intensity=intensity,
        image_size=64,
        seed=0,
        axis=0,
        provenance={"exemplars": [source]},
        metrics=METRICS,
    )
    save_adapter(made, path)
    case.logic.adapterFolder.added(path)
    return str(path)


def windowCalled(title: str) -> Any:
    """The visible window of this title."""
    (found,) = [w for w in slicer.util.mainWindow().findChildren(qt.QDialog) if w.windowTitle == title and w.visible]
    return found


def widgetsOf(case: Case) -> Iterator[tuple[str, Any]]:
    kinds = (qt.QAbstractButton, qt.QComboBox, qt.QLineEdit, qt.QAbstractSpinBox, qt.QListWidget, qt.QProgressBar)
    for name, widget in vars(case.ui).items():
        if isinstance(widget, kinds) and not name.startswith("qt_"):
            yield name, widget


# ---------------------------------------------------------------------------------------------------------- appearance


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


def test_an_empty_scene_asks_for_a_volume(case: Case) -> None:
    assert case.ui.clickStatusLabel.text.startswith("Load a volume")
    assert not case.ui.addSliceButton.enabled


# ---------------------------------------------------------------------------------------------------------- structures


def test_a_chosen_volume_brings_its_own_segmentation_and_hides_those_of_others(case: Case) -> None:
    (first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="A"), addCase(1, name="B")

    def shown() -> tuple[bool, bool]:
        return tuple(bool(node.GetDisplayNode().GetVisibility()) for node in (ofFirst, ofSecond))

    case.ui.volumeSelector.setCurrentNode(first)
    assert case.panel.segmentationNode is ofFirst
    assert shown() == (True, False)
    case.ui.volumeSelector.setCurrentNode(second)
    assert case.panel.segmentationNode is ofSecond
    assert shown() == (False, True)
    ofFirst.GetDisplayNode().SetVisibility(True)  # the user wants to see it after all
    case.panel.update()
    assert shown() == (True, True)
    case.ui.volumeSelector.setCurrentNode(first)
    case.ui.volumeSelector.setCurrentNode(second)
    assert shown() == (True, True)


def test_what_was_hidden_is_shown_with_its_volume_also_after_loading_the_scene(case: Case, tmp_path: Path) -> None:
    addCase(0, name="A"), addCase(1, name="B")
    for name in ("A", "B"):
        case.ui.volumeSelector.setCurrentNode(slicer.util.getNode(name))
    assert slicer.util.saveScene(str(tmp_path / "two.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "two.mrb"))
    slicer.app.processEvents()
    assert case.panel.volumeNode is slicer.util.getNode("B")
    case.ui.volumeSelector.setCurrentNode(slicer.util.getNode("A"))
    assert Segmentations.volumeOf(case.panel.segmentationNode) is slicer.util.getNode("A")
    assert case.panel.segmentationNode.GetDisplayNode().GetVisibility()


def test_a_segmentation_chosen_for_another_volume_is_shown_and_stays_chosen(case: Case) -> None:
    """As for two sequences of one patient on the same grid."""
    (first, ofFirst, *_), (second, ofSecond, *_) = addCase(0, name="T1"), addCase(1, name="T2")
    slicer.mrmlScene.RemoveNode(ofSecond)
    case.ui.volumeSelector.setCurrentNode(second)
    assert (case.panel.segmentationNode, bool(ofFirst.GetDisplayNode().GetVisibility())) == (None, False)
    case.ui.segmentationSelector.setCurrentNode(ofFirst)
    assert ofFirst.GetDisplayNode().GetVisibility()
    for volumeNode in (first, second):
        case.ui.volumeSelector.setCurrentNode(volumeNode)
        assert case.panel.segmentationNode is ofFirst
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
        assert case.panel.segmentationNode is ofFirst
        assert ofFirst.GetDisplayNode().GetVisibility()


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
    assert case.panel.segmentationNode is None


def test_the_first_structure_makes_a_segmentation_on_the_grid_of_the_volume(case: Case) -> None:
    volumeNode, *_ = addCase()
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("drawn"))
    case.ui.volumeSelector.setCurrentNode(volumeNode)
    case.ui.structureNameEdit.setText("liver")
    case.press(case.ui.addStructureButton)
    node = case.panel.segmentationNode
    assert node.GetName() == "CT segmentation"
    assert list(Segmentations.segmentsByName(node)) == ["liver"]
    assert case.panel.structure == "liver"
    assert case.ui.structureNameEdit.text == ""
    assert np.allclose(node.GetSegmentation().GetNthSegment(0).GetColor(), (221 / 255, 130 / 255, 101 / 255))


def test_a_known_name_chooses_the_structure_that_is_there(case: Case) -> None:
    _volumeNode, segmentationNode = case.load()
    case.ui.structureNameEdit.setText("square")
    case.ui.structureNameEdit.returnPressed.emit()
    assert len(Segmentations.segmentsByName(segmentationNode)) == 2
    assert case.panel.structure == "square"
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


# -------------------------------------------------------------------------------------------------------------- clicks


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
    segmentId = case.panel.segment.segmentId
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
    assert writer.overwriteMode == "all"
    assert writer.editableInside == Segmentations.segmentsByName(segmentationNode)["square"]
    assert writer.editableIntensity == (-20, case.ui.highestSpinBox.value)


def test_a_volume_under_a_warp_is_explained_and_breaks_nothing(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    volumeNode.SetAndObserveTransformNodeID(warp.GetID())
    case.panel.update()
    assert not case.ui.emptySliceButton.enabled


def test_propagation_asks_for_direction_and_count(case: Case) -> None:
    case.load()
    case.logic.live.addPoint(0, 1, tuple(Geometry.rasFromIjk(case.panel.volumeNode)[:3] @ [40, 10, 1, 1]), True)
    case.ui.propagateSpinBox.setValue(7)
    case.press(case.ui.propagateForwardButton)
    request = case.requests[-1][0]
    assert (request["op"], request["direction"], request["count"]) == ("propagate", 1, 7)
    assert case.ui.stopPropagationButton.visible or not case.ui.propagateBackButton.visible
    case.logic.live.cancelPropagation()
    assert not case.ui.propagateBackButton.isHidden()


# ----------------------------------------------------------------------------------------------------------- exemplars


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


# --------------------------------------------------------------------------------------------------------------- adapt


@pytest.fixture
def readyToAdapt(case: Case) -> Case:
    case.load()
    case.press(case.ui.addSliceButton)
    case.show("adapt")
    return case


def test_every_method_is_offered_when_the_section_is_opened(case: Case) -> None:
    case.show("adapt")
    texts = [case.ui.methodSelector.itemText(i) for i in range(case.ui.methodSelector.count)]
    assert texts == [method(name).LABEL for name in METHODS]
    assert "add an exemplar first" in case.ui.adaptButton.toolTip


def test_adapt_hands_over_what_was_chosen(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.panel.adapt.start.choose((None, "tiny"))
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
    assert arguments["window"] == case.panel.shownWindow()
    assert "something else is running" in case.ui.adaptButton.toolTip


def test_without_training_the_exemplars_segment_at_once(case: Case, adapter: str) -> None:
    case.show("adapt")
    assert "choose a volume first" in case.ui.supportButton.toolTip
    volumeNode, _drawn = case.load()
    assert "add an exemplar first" in case.ui.supportButton.toolTip
    case.press(case.ui.addSliceButton)
    case.panel.adapt.start.choose((None, "tiny"))
    case.press(case.ui.supportButton)
    run = case.runs["segment"]
    asked = {key: run.arguments[key] for key in ("arguments", "base", "support", "device")}
    assert asked == {"arguments": (volumeNode, None), "base": "tiny", "support": True, "device": "auto"}
    run.progress(step=3, total=12, message="exemplar picture 4 of 12")
    assert case.ui.trainingFrame.visible
    assert case.ui.trainingProgressBar.value == 25
    assert not case.ui.stopButton.visible
    assert "something else is running" in case.ui.supportButton.toolTip
    node = Segmentations.newSegmentation(volumeNode)
    Segmentations.claim(node, volumeNode)
    run.done(node)
    assert case.panel.segmentationNode is node
    assert "Click where it is wrong" in case.ui.adaptStatusLabel.text
    assert not case.ui.trainingFrame.visible


def test_segmenting_from_exemplars_is_given_up_and_explained(readyToAdapt: Case, adapter: str) -> None:
    case = readyToAdapt
    before = case.panel.segmentationNode
    case.panel.adapt.start.choose((adapter, None))  # it has structures of its own: only its base model is meant
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
    assert case.panel.segmentationNode is before


def offerMethod(case: Case, monkeypatch: pytest.MonkeyPatch, *needs: str) -> None:
    """Have the worker know a single method, with these needs."""
    options = describe(method("lora").Recipe)
    entry = {"name": "other", "label": "Other", "about": "", "needs": list(needs), "options": options}
    monkeypatch.setattr(case.logic, "methods", lambda onDone, onError: onDone([entry]))
    case.show("adapt")


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
    assert "this method makes no samples" in case.ui.previewButton.toolTip
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


def test_the_folders_are_kept_with_the_scene(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offerMethod(case, monkeypatch, "exemplars", "auxiliary")
    case.ui.auxiliaryEdit.setCurrentPath(str(tmp_path))
    assert case.panel.choices.value("Folders")["auxiliary"] == str(tmp_path)
    case.ui.auxiliaryEdit.setCurrentPath("")
    case.panel.choices.keep({}, {"Folders": {"auxiliary": str(tmp_path)}})
    case.panel.recall()
    assert case.ui.auxiliaryEdit.currentPath == str(tmp_path)


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


def test_a_training_shows_its_progress_curves_and_picture(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    run = case.runs["adapt"]
    picture = np.full((16, 64, 3), 77, np.uint8)
    sent = {"shape": list(picture.shape), "data": base64.b64encode(picture.tobytes()).decode()}
    for step in (1, 2, 3):
        run.progress(step=step, total=4, message="adapting", metrics={"loss": 1.0 / step, "score": 0.2 * step})
    run.progress(step=4, total=4, message="adapting", metrics={"loss": 0.2}, picture=sent)
    assert case.ui.trainingFrame.visible
    assert case.ui.trainingProgressBar.value == 100
    assert case.ui.trainingLabel.text == "Adapting: step 4 of 4, about 1 min 35 s left"
    assert len(case.panel.adapt.training.plot.loss) == 4
    assert case.panel.adapt.training.plot.dice == [(1, 0.2), (2, 0.4), (3, pytest.approx(0.6))]
    assert not case.ui.plotLabel.pixmap.isNull()
    assert not case.ui.heldOutLabel.pixmap.isNull()


def test_a_training_is_stopped_well_or_given_up(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    run = case.runs["adapt"]
    run.canKeepBest = False
    run.progress(step=1, total=4, message="estimating 1/2", metrics={"loss": 1.0})
    assert not case.ui.stopButton.enabled
    run.canKeepBest = True
    run.progress(step=1, total=4, message="adapting", metrics={"loss": 1.0})
    case.press(case.ui.stopButton)
    assert run.told == ["stopAndKeepBest"]
    assert not case.ui.stopButton.enabled
    case.press(case.ui.cancelButton)
    run.failed("cancelled", "Cancelled.")
    assert "nothing was kept" in case.ui.adaptStatusLabel.text
    assert not case.ui.trainingFrame.visible
    assert case.ui.adaptButton.enabled


def test_a_new_adapter_is_chosen_everywhere_at_once(readyToAdapt: Case, adapter: str) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    case.runs["adapt"].done(adapter)
    assert case.panel.segment.model.value == (adapter, None)
    assert case.panel.batch.adapter.value == adapter
    assert case.panel.result.card["path"] == adapter
    assert not case.ui.resultSection.collapsed
    assert "disc, square" in case.ui.cardLabel.text


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


def test_the_report_of_a_training_is_shown_where_there_is_one(case: Case, adapter: str) -> None:
    case.show("result")
    assert not case.ui.reportButton.visible
    pixmap = qt.QPixmap(60, 40)
    pixmap.fill(qt.QColor(0, 0, 200))
    assert pixmap.save(str(Path(adapter).with_name("organs.report.png")))
    case.panel.refreshModels()
    case.press(case.ui.reportButton)
    window = windowCalled("Training of organs")
    assert not window.findChild(qt.QLabel).pixmap.isNull()
    window.close()


def test_samples_are_shown_before_training(readyToAdapt: Case, tmp_path: Path) -> None:
    case = readyToAdapt
    pixmap = qt.QPixmap(60, 40)
    pixmap.fill(qt.QColor(200, 0, 0))
    assert pixmap.save(str(tmp_path / "sheet.png"))
    case.press(case.ui.previewButton)
    case.runs["preview"].done(str(tmp_path / "sheet.png"))
    window = windowCalled("Samples the model would be trained on")
    assert not window.findChild(qt.QLabel).pixmap.isNull()
    window.close()


# -------------------------------------------------------------------------------------------------------------- result


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


def test_the_card_says_what_an_adapter_is_worth(case: Case, adapter: str) -> None:
    card = qt.QTextDocument()
    card.setHtml(case.ui.cardLabel.text)
    text = card.toPlainText()
    for words in (
        "disc, square",
        "tiny",
        "2 annotated slices of CT.nrrd",
        "lora, 400 steps, best after 360",
        "disc 0.91, square 0.77 (left-out exemplars (2 folds))",
        "⚠ With clicks the adapter is worse than the base model.",
    ):
        assert words in text


def test_an_adapter_of_many_tasks_is_for_clicks_and_exemplars(case: Case, adapter: str) -> None:
    known = load_adapter(adapter)
    path = Path(adapter).with_name("many tasks.safetensors")
    task = {"name": "acdc", "structures": ["left ventricle"], "slices": ["a k=1"]}
    save_adapter(replace(known, method="gmiseg", structures={}, provenance={"tasks": [task]}), path)
    case.logic.adapterFolder.added(path)
    case.load()
    case.panel.result.choose(str(path))
    assert case.panel.result.card["path"] == str(path)
    assert "no structure by name" in case.ui.cardLabel.text
    assert "acdc (left ventricle)" in case.ui.cardLabel.text
    for button in (case.ui.applyButton, case.ui.suggestButton):
        assert "knows no structure by name" in button.toolTip
    case.press(case.ui.addSliceButton)
    case.panel.adapt.start.choose((str(path), None))
    case.press(case.ui.supportButton)
    assert case.runs["segment"].arguments["arguments"][1] == str(path)


def test_learning_on_starts_from_the_chosen_adapter(case: Case, adapter: str) -> None:
    case.press(case.ui.continueButton)
    assert not case.ui.adaptSection.collapsed
    assert case.panel.adapt.start.value == (adapter, None)


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
    assert SliceViews.viewedSlice(case.panel.volumeNode, view) == (0, 4)
    assert "least sure on slice 4" in case.ui.resultStatusLabel.text


# --------------------------------------------------------------------------------------------------------------- batch


def test_a_folder_is_segmented_and_its_table_can_be_opened(case: Case, adapter: str, tmp_path: Path) -> None:
    case.show("batch")
    assert "choose the volumes first" in case.ui.runBatchButton.toolTip
    case.ui.batchFolderEdit.setCurrentPath(str(tmp_path))
    case.ui.batchOutputEdit.setCurrentPath(str(tmp_path / "out"))
    case.press(case.ui.runBatchButton)
    run = case.runs["processBatch"]
    assert run.arguments["arguments"] == (str(tmp_path), adapter, str(tmp_path / "out"))
    run.progress(step=1, total=2, message="ct1: slice 3")
    assert case.ui.batchProgressBar.value == 50
    assert not case.ui.openTableButton.enabled
    run.done(str(tmp_path / "out" / "volumes.csv"))
    assert "volumes.csv" in case.ui.batchStatusLabel.text
    assert case.ui.openTableButton.enabled


def test_files_and_sequences_are_batches_too(case: Case, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("/data/a.nrrd", "/data/b.nii.gz")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileNames", lambda *_: chosen)
    case.ui.batchOutputEdit.setCurrentPath("/data/out")
    case.panel.batch.source.choose(1)
    case.press(case.ui.chooseFilesButton)
    assert case.ui.chooseFilesButton.text == "2 files chosen..."
    case.press(case.ui.runBatchButton)
    assert case.runs["processBatch"].arguments["arguments"][0] == chosen
    case.runs["processBatch"].done("/data/out/volumes.csv")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    case.panel.batch.source.choose(2)
    case.ui.sequenceSelector.setCurrentNode(sequence)
    case.press(case.ui.runBatchButton)
    assert case.runs["processBatch"].arguments["arguments"][0] is sequence


# ----------------------------------------------------------------------------------------------- setup, scene, leaving


def test_missing_packages_are_said_on_top_and_installed_with_a_button(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    case.load()
    case.panel.enter()
    assert not case.ui.setupNotice.isHidden()
    assert "Python packages are missing" in case.ui.positiveButton.toolTip
    case.press(case.ui.setupNoticeButton)
    assert not case.ui.setupSection.collapsed

    def install() -> bool:
        monkeypatch.setattr(Dependencies, "missing", lambda: ())
        return True

    monkeypatch.setattr(Dependencies, "install", install)
    case.press(case.ui.installButton)
    assert case.ui.setupNotice.isHidden()
    assert case.ui.positiveButton.enabled


def test_without_a_network_installing_ends_in_a_sentence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise InputError("The Python package index cannot be reached.")

    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    monkeypatch.setattr(Dependencies, "install", fail)
    case.panel.enter()
    case.press(case.ui.installButton)
    assert "cannot be reached" in case.ui.setupLabel.text


def test_another_folder_of_adapters_is_looked_into_at_once(case: Case, adapter: str, tmp_path: Path) -> None:
    assert case.ui.adapterList.count == 1
    (tmp_path / "other").mkdir()
    case.ui.adapterFolderEdit.setCurrentPath(str(tmp_path / "other"))
    assert case.ui.adapterList.count == 0


def test_the_choices_are_saved_with_the_scene_and_hold_again(case: Case, adapter: str) -> None:
    volumeNode, segmentationNode = case.load()
    case.show("adapt")
    case.panel.segment.model.choose((adapter, None))
    case.panel.adapt._forms["lora"].widget.findChild(qt.QSpinBox).setValue(9)
    node = case.logic.getParameterNode()
    assert node.GetNodeReference("Volume") is volumeNode
    assert node.GetNodeReference("Segmentation") is segmentationNode
    assert json.loads(node.GetParameter("Recipes")) == {"lora": {"steps": 9}}
    slicer.util.selectModule("")
    slicer.util.getModule("FewShotSeg").discardWidget()
    slicer.util.selectModule("FewShotSeg")
    panel = slicer.util.getModuleWidget("FewShotSeg").panel
    assert panel.volumeNode is volumeNode
    assert panel.segmentationNode is segmentationNode
    assert panel.segment.model.value == (adapter, None)


def test_closing_the_scene_leaves_a_panel_that_works(case: Case) -> None:
    case.load()
    case.press(case.ui.addSliceButton)
    case.press(case.ui.positiveButton)
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    assert case.panel.volumeNode is None
    assert case.ui.exemplarList.count == 0
    assert case.ui.clickStatusLabel.text.startswith("Load a volume")
    case.load()
    assert case.ui.addSliceButton.enabled


def test_removing_the_volume_leaves_a_panel_that_works(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    slicer.mrmlScene.RemoveNode(volumeNode)
    slicer.app.processEvents()
    assert case.panel.volumeNode is None
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
