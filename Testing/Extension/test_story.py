"""The whole story as a radiologist lives it: real events in views and panel, real workers, bundled models.

FEWSHOTSEG_SCREENSHOTS=Resources/Screenshots keeps the pictures of its steps, and tells the story in full: with finer
volumes, five corrected exemplar slices and an adapter by the default recipe. That takes minutes.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.demo.phantom import patient
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegSlicer.Scene import Segmentations, SliceViews

LIVER, KIDNEY = "liver", "left kidney"
POINT_PIXELS = 8  # of the volume; a click closer than this to another may take hold of its point


@dataclass(frozen=True)
class Scale:
    """How much work the story is; by default as little as shows that everything works."""

    patient: dict[str, Any] = field(default_factory=lambda: {"shape": (13, 128, 128), "spacing_mm": (2.5, 2.5, 15.4)})
    slices: tuple[int, ...] = (4, 3)  # to annotate
    other_slice: int = 7  # to segment from these
    corrections: int = 0  # clicks at most on an annotated slice after the first
    model: tuple[str | None, str | None] = (None, "bundled-small")
    recipe: dict[str, Any] = field(
        default_factory=lambda: {"steps": 18, "validate_every": 6, "estimate_folds": 0}  # shows curves
    )


# As a user would do it. The slices are spread over the liver, and the highest one shows that there is no kidney.
IN_FULL = Scale(patient={}, slices=(10, 29, 14, 18, 21), other_slice=16, corrections=8, model=(None, None), recipe={})
SCALE = IN_FULL if "FEWSHOTSEG_SCREENSHOTS" in os.environ else Scale()


class Story:
    """The panel and what a hand does with it."""

    def __init__(self, widget: Any, clickIn: Any, runUntil: Any, snapshot: Any, screenshot: Any, folder: Path) -> None:
        self.widget, self.clickIn, self.runUntil, self.snapshot = widget, clickIn, runUntil, snapshot
        self.screenshot, self.folder = screenshot, folder

    @property
    def ui(self) -> Any:
        return self.widget.panel.ui

    @property
    def live(self) -> Any:
        return self.widget.logic.live

    def picture(self, name: str, theme: str = "dark") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.screenshot(self.folder / f"{name}.png", theme)

    def show(self, section: str) -> None:
        """Open one section of the panel, close the others."""
        for name in ("segment", "exemplar", "adapt", "result", "batch", "setup"):
            getattr(self.ui, f"{name}Section").collapsed = name != section
        slicer.app.processEvents()

    def finishJobs(self) -> None:
        self.runUntil(lambda: not self.widget.logic.runs, 900)

    def press(self, button: Any, timeout_s: float = 60.0) -> None:
        self.runUntil(lambda: button.enabled, timeout_s)
        button.click()
        slicer.app.processEvents()

    def open(self, path: Path) -> Any:
        volumeNode = slicer.util.loadVolume(str(path))
        volumeNode.GetDisplayNode().AutoWindowLevelOff()
        volumeNode.GetDisplayNode().SetWindowLevel(400, 40)
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
        self.ui.volumeSelector.setCurrentNode(volumeNode)
        slicer.app.processEvents()
        return volumeNode

    def addStructure(self, name: str) -> None:
        self.ui.structureNameEdit.setText(name)
        self.press(self.ui.addStructureButton)

    def chooseStructure(self, name: str) -> None:
        segmentation = self.ui.segmentationSelector.currentNode().GetSegmentation()
        self.widget.panel.segment.choose(segmentation.GetSegmentIdBySegmentName(name))
        slicer.app.processEvents()

    def click(self, ras: Any, tool: str = "positive") -> None:
        """A click with a tool, until its mask is there."""
        button = getattr(self.ui, f"{tool}Button")
        if not button.checked:
            self.press(button)
        self.clickIn("Red", ras)
        self.runUntil(lambda: self.live.hasPreview and not self.live.isWaiting, 60)

    def mask(self, name: str, index: int) -> np.ndarray:
        """Slice k = index of a structure, bool (J, I)."""
        node = self.ui.segmentationSelector.currentNode()
        segmentId = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        return Segmentations.sliceMask(node, segmentId, self.ui.volumeSelector.currentNode(), 0, index)


@pytest.fixture
def story(
    panel: Any,
    clickIn: Any,
    runUntil: Any,
    snapshot: Any,
    screenshot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Story:
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(tmp_path / "home"))
    pictures = Path(os.environ.get("FEWSHOTSEG_SCREENSHOTS", tmp_path / "pictures")).absolute()
    monkeypatch.chdir(tmp_path)
    return Story(panel, clickIn, runUntil, snapshot, screenshot, pictures)


@pytest.fixture
def cases(tmp_path: Path) -> list[tuple[Path, Volume, Labelmap]]:
    """Files of three patients, and what is in them."""
    (tmp_path / "patients").mkdir()
    found = []
    for number in range(3):
        volume, truth = patient(np.random.default_rng(number), **SCALE.patient)
        path = tmp_path / "patients" / f"patient {number}.nrrd"
        save_volume(volume, path)
        found.append((path, volume, truth))
    return found


def middleOf(truth: Labelmap, name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask (J, I) of a structure on a slice, and the RAS of the pixel deepest inside."""
    value = next(value for value, known in truth.structures.items() if known == name)
    mask = truth.volume.array[index] == value
    column, row = centre_click(mask)
    return mask, ras_from_ijk(truth.volume.affine, np.array([[column, row, index]], float))[0]


def slicesWith(truth: Labelmap, *names: str) -> list[int]:
    """Slices that show the structures, the ones that show most of the smallest first."""
    values = [value for value, known in truth.structures.items() if known in names]
    areas = np.min([np.count_nonzero(truth.volume.array == value, axis=(1, 2)) for value in values], axis=0)
    return [int(k) for k in np.argsort(-areas, kind="stable") if areas[k] > 0]


def lookAt(volumeNode: Any, truth: Labelmap, name: str, index: int) -> None:
    """Show a slice, and the other views through the structure there."""
    column, row = centre_click(middleOf(truth, name, index)[0])
    for axis, shown in enumerate((index, row, column)):
        SliceViews.jumpToSlice(volumeNode, axis, shown)
    slicer.app.processEvents()


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


# ------------------------------------------------------------------------------------------------- parts of the story


def loadModel(story: Story, truth: Labelmap, index: int) -> None:
    """A first click, taken back: it takes longer than those after it."""
    SliceViews.jumpToSlice(story.ui.volumeSelector.currentNode(), 0, index)
    slicer.app.processEvents()
    story.click(middleOf(truth, LIVER, index)[1])
    story.press(story.ui.undoButton)


def clickAndCorrect(story: Story, truth: Labelmap, index: int) -> np.ndarray:
    """Click the liver, correct it with a click outside, take that back, and again; returns the accepted mask."""
    liver, inLiver = middleOf(truth, LIVER, index)
    before = story.snapshot("Red")
    story.click(inLiver)
    clicked = story.mask(LIVER, index)
    assert dice(clicked, liver) > 0.5
    assert np.count_nonzero((story.snapshot("Red") != before).any(axis=-1)) > 500
    story.picture("1-click")
    tooMuch = clicked & ~liver
    column, row = centre_click(tooMuch if tooMuch.any() else clicked)
    story.click(ras_from_ijk(truth.volume.affine, np.array([[column, row, index]], float))[0], "negative")
    corrected = story.mask(LIVER, index)
    assert not np.array_equal(corrected, clicked)
    assert not corrected[row, column]
    story.picture("2-correct")
    story.press(story.ui.undoButton)
    np.testing.assert_array_equal(story.mask(LIVER, index), clicked)
    story.press(story.ui.redoButton)
    np.testing.assert_array_equal(story.mask(LIVER, index), corrected)
    correct(story, truth, LIVER, index)
    story.press(story.ui.acceptButton)
    return story.mask(LIVER, index)


def correct(story: Story, truth: Labelmap, name: str, index: int) -> None:
    """Click where the mask is wrong until it is nearly right."""
    wanted, _ = middleOf(truth, name, index)
    for _ in range(SCALE.corrections):
        mask = story.mask(name, index)
        if dice(mask, wanted) > 0.95:
            break
        wrong, tool = max((wanted & ~mask, "positive"), (mask & ~wanted, "negative"), key=lambda one: one[0].sum())
        taken = ijk_from_ras(truth.volume.affine, story.live.promptOn(0, index).points_ras)  # would be taken hold of
        away = np.linalg.norm(np.argwhere(wrong)[:, None, ::-1] - taken[:, :2], axis=-1).min(axis=1) > POINT_PIXELS
        wrong[wrong] = away
        if not away.any():
            break
        column, row = centre_click(wrong)
        story.click(ras_from_ijk(truth.volume.affine, np.array([[column, row, index]], float))[0], tool)


def keepExemplars(story: Story, truth: Labelmap, places: list[tuple[int, str]]) -> None:
    """Annotate structures on slices, and keep all slices that are annotated then."""
    for index, name in places:
        SliceViews.jumpToSlice(story.ui.volumeSelector.currentNode(), 0, index)
        slicer.app.processEvents()
        story.chooseStructure(name)
        story.click(middleOf(truth, name, index)[1])
        correct(story, truth, name, index)
        story.press(story.ui.acceptButton)
    story.show("exemplar")
    story.press(story.ui.addAnnotatedButton)
    assert story.ui.exemplarList.count >= 1
    story.picture("3-exemplars")


def segmentAtOnce(story: Story, truth: Labelmap, index: int) -> None:
    """Without training, from the exemplars: the other slices of this patient, and a click where that is wrong."""
    ui = story.ui
    story.show("adapt")
    drawn = ui.segmentationSelector.currentNode()
    story.press(ui.supportButton)
    story.finishJobs()
    segmented = ui.segmentationSelector.currentNode()
    assert segmented is not drawn, ui.adaptStatusLabel.text
    drawn.GetDisplayNode().SetVisibility(False)  # one at a time
    lookAt(ui.volumeSelector.currentNode(), truth, KIDNEY, index)
    liver, inLiver = middleOf(truth, LIVER, index)
    atOnce = story.mask(LIVER, index)
    assert dice(atOnce, liver) > 0.5
    story.picture("3-from-exemplars")
    story.show("segment")
    story.chooseStructure(LIVER)
    story.click(inLiver)
    story.press(ui.acceptButton)
    assert not np.array_equal(story.mask(LIVER, index), atOnce)
    segmented.GetDisplayNode().SetVisibility(False)
    drawn.GetDisplayNode().SetVisibility(True)
    ui.segmentationSelector.setCurrentNode(drawn)


def adapt(story: Story, truth: Labelmap, index: int) -> None:
    """Adapt to the exemplars, looking at one of their slices."""
    ui = story.ui
    lookAt(ui.volumeSelector.currentNode(), truth, KIDNEY, index)
    story.show("adapt")
    story.runUntil(lambda: ui.adaptButton.enabled, 120)
    assert story.widget.panel.adapt.startModel.choose(SCALE.model)
    story.widget.panel.adapt._forms["lora"].setRecipe(SCALE.recipe)
    story.press(ui.adaptButton)
    plot = story.widget.panel.adapt.training.plot  # empty in the stages before
    story.runUntil(lambda: plot.loss and ui.trainingProgressBar.value >= 60, 900)
    story.picture("4-adapt")
    story.finishJobs()
    assert ui.adapterList.count == 1, ui.adaptStatusLabel.text


def applyTo(story: Story, path: Path, truth: Labelmap) -> None:
    """Segment a patient that the adapter has not seen."""
    other = story.open(path)
    story.show("result")
    story.ui.applyVolumeSelector.setCurrentNode(other)
    story.press(story.ui.applyButton)
    story.finishJobs()
    results = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    applied = next(n for n in results if n.GetNodeReference("referenceImageGeometryRef") is other)
    found = Segmentations.labelmapFromSegmentation(applied, other)
    value = next(value for value, name in found.structures.items() if name == LIVER)
    theirs = next(value for value, name in truth.structures.items() if name == LIVER)
    assert dice(found.volume.array == value, truth.volume.array == theirs) > 0.3
    lookAt(other, truth, KIDNEY, slicesWith(truth, LIVER, KIDNEY)[0])
    story.picture("5-result")


def segmentFolder(story: Story, paths: list[Path], folder: Path) -> None:
    ui = story.ui
    story.show("batch")
    (folder / "to do").mkdir()
    for source in paths:
        (folder / "to do" / source.name).write_bytes(source.read_bytes())
    ui.batchFolderEdit.currentPath, ui.batchOutputEdit.currentPath = "to do", "done"  # as short as in a real folder
    story.press(ui.runBatchButton)
    story.finishJobs()
    tables = list((folder / "done").glob("*.csv"))
    assert len(tables) == 1, ui.batchStatusLabel.text
    rows = list(csv.DictReader(tables[0].open(encoding="utf-8")))
    assert {Path(row["image"]).name for row in rows} == {path.name for path in paths}
    assert len(list((folder / "done").glob("*.seg.nrrd"))) == len(paths)
    story.picture("6-batch")


def closeAndLoadAgain(story: Story, file: Path) -> None:
    """Save the scene, close it and load it, with its exemplars."""
    assert slicer.util.saveScene(str(file))
    exemplars = story.ui.exemplarList.count
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    assert story.ui.exemplarList.count == 0
    slicer.util.loadScene(str(file))
    slicer.app.processEvents()
    assert story.ui.exemplarList.count == exemplars


def goOn(story: Story, truth: Labelmap, index: int, mask: np.ndarray) -> None:
    """What was clicked before the scene was closed is there, and takes another click."""
    volumeNode = slicer.util.getNode("patient 0")
    story.ui.volumeSelector.setCurrentNode(volumeNode)
    segmentationNode = next(iter(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")))
    story.ui.segmentationSelector.setCurrentNode(segmentationNode)
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    SliceViews.jumpToSlice(volumeNode, 0, index)
    story.show("segment")
    story.chooseStructure(LIVER)
    np.testing.assert_array_equal(story.mask(LIVER, index), mask)
    clicks = len(story.live.promptOn(0, index).points_ras)
    assert clicks >= 2
    taken = ijk_from_ras(truth.volume.affine, story.live.promptOn(0, index).points_ras)[:, :2]
    inside = np.argwhere(middleOf(truth, LIVER, index)[0])[:, ::-1]
    # Away from all points, which would be taken hold of.
    farthest = inside[np.linalg.norm(inside[:, None] - taken, axis=-1).min(axis=1).argmax()]
    story.click(ras_from_ijk(truth.volume.affine, np.array([[*farthest, index]], float))[0])
    assert len(story.live.promptOn(0, index).points_ras) == clicks + 1
    story.picture("7-reloaded")
    story.picture("light", "light")  # the last, as some widgets keep a colour when the theme changes back


def test_from_a_click_to_a_folder_of_patients_and_back_after_closing(
    story: Story, cases: list[tuple[Path, Volume, Labelmap]], tmp_path: Path
) -> None:
    (path, _volume, truth), (otherPath, _, otherTruth), (lastPath, *_) = cases
    first, *others = SCALE.slices
    story.show("segment")
    volumeNode = story.open(path)
    for name in (LIVER, KIDNEY):
        story.addStructure(name)
    story.chooseStructure(LIVER)
    loadModel(story, truth, others[0])
    SliceViews.jumpToSlice(volumeNode, 0, first)
    slicer.app.processEvents()
    corrected = clickAndCorrect(story, truth, first)
    shown = [(index, name) for index in others for name in (LIVER, KIDNEY) if index in slicesWith(truth, name)]
    keepExemplars(story, truth, [(first, KIDNEY), *shown])
    segmentAtOnce(story, truth, SCALE.other_slice)
    adapt(story, truth, first)
    applyTo(story, otherPath, otherTruth)
    segmentFolder(story, [otherPath, lastPath], tmp_path)
    closeAndLoadAgain(story, tmp_path / "story.mrb")
    goOn(story, truth, first, corrected)
