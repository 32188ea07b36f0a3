"""The whole story as a radiologist lives it: real events in views and panel, real workers, the small bundled model.

FEWSHOTSEG_SCREENSHOTS=Resources/Screenshots keeps the pictures of its steps.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume, ras_from_ijk
from FewShotSegLib.demo.phantom import patient
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegSlicer.Scene import Segmentations, SliceViews

SHAPE, SPACING_MM = (26, 128, 128), (2.5, 2.5, 7.7)
LIVER, KIDNEY = "liver", "left kidney"


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

    def picture(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.screenshot(self.folder / f"{name}.png")

    def show(self, section: str) -> None:
        """Open one section of the panel, close the others."""
        for name in ("segment", "exemplar", "adapt", "result", "batch", "setup"):
            getattr(self.ui, f"{name}Section").collapsed = name != section
        slicer.app.processEvents()

    def finishJobs(self) -> None:
        self.runUntil(lambda: not self.widget.logic.runs, 300)

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
        volume, truth = patient(np.random.default_rng(number), shape=SHAPE, spacing_mm=SPACING_MM)
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


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


# ------------------------------------------------------------------------------------------------- parts of the story


def clickAndCorrect(story: Story, truth: Labelmap, index: int) -> np.ndarray:
    """Click the liver, correct it with a click outside, take that back, and again; returns the mask."""
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
    story.press(story.ui.acceptButton)
    return corrected


def keepExemplars(story: Story, truth: Labelmap, places: list[tuple[int, str]]) -> None:
    """Click structures on slices, and keep all slices that are annotated then."""
    for index, name in places:
        SliceViews.jumpToSlice(story.ui.volumeSelector.currentNode(), 0, index)
        slicer.app.processEvents()
        story.chooseStructure(name)
        story.click(middleOf(truth, name, index)[1])
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
    SliceViews.jumpToSlice(ui.volumeSelector.currentNode(), 0, index)
    story.press(ui.supportButton)
    story.finishJobs()
    assert ui.segmentationSelector.currentNode() is not drawn, ui.adaptStatusLabel.text
    liver, inLiver = middleOf(truth, LIVER, index)
    atOnce = story.mask(LIVER, index)
    assert dice(atOnce, liver) > 0.5
    story.picture("4-at-once")
    story.show("segment")
    story.chooseStructure(LIVER)
    story.click(inLiver)
    story.press(ui.acceptButton)
    assert not np.array_equal(story.mask(LIVER, index), atOnce)
    ui.segmentationSelector.setCurrentNode(drawn)


def adapt(story: Story) -> None:
    ui = story.ui
    story.show("adapt")
    story.runUntil(lambda: ui.adaptButton.enabled, 120)
    assert story.widget.panel.adapt.startModel.choose((None, "bundled-small"))  # shows curves
    form = story.widget.panel.adapt._forms["lora"]
    form.setRecipe({"steps": 45, "validate_every": 15, "estimate_folds": 0})
    story.press(ui.adaptButton)
    story.runUntil(lambda: ui.trainingProgressBar.value >= 60, 300)
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
    SliceViews.jumpToSlice(other, 0, slicesWith(truth, LIVER, KIDNEY)[0])
    slicer.app.processEvents()
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
    assert len(story.live.promptOn(0, index).points_ras) == 2
    rows, columns = np.nonzero(middleOf(truth, LIVER, index)[0])
    edge = np.array([[columns[0], rows[0], index]], float)  # away from the first click, which would be taken hold of
    story.click(ras_from_ijk(truth.volume.affine, edge)[0])
    assert len(story.live.promptOn(0, index).points_ras) == 3
    story.picture("7-reloaded")


def test_from_a_click_to_a_folder_of_patients_and_back_after_closing(
    story: Story, cases: list[tuple[Path, Volume, Labelmap]], tmp_path: Path
) -> None:
    (path, _volume, truth), (otherPath, _, otherTruth), (lastPath, *_) = cases
    first, second = slicesWith(truth, LIVER, KIDNEY)[0], slicesWith(truth, LIVER, KIDNEY)[3]
    third = slicesWith(truth, LIVER)[6]
    story.show("segment")
    volumeNode = story.open(path)
    for name in (LIVER, KIDNEY):
        story.addStructure(name)
    SliceViews.jumpToSlice(volumeNode, 0, first)
    story.chooseStructure(LIVER)
    corrected = clickAndCorrect(story, truth, first)
    keepExemplars(story, truth, [(first, KIDNEY), (second, LIVER), (second, KIDNEY)])
    segmentAtOnce(story, truth, third)
    adapt(story)
    applyTo(story, otherPath, otherTruth)
    segmentFolder(story, [otherPath, lastPath], tmp_path)
    closeAndLoadAgain(story, tmp_path / "story.mrb")
    goOn(story, truth, first, corrected)
