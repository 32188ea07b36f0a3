"""The whole story as a radiologist lives it: real events in views and panel, real workers, the bundled model.

FEWSHOTSEG_SCREENSHOTS=Resources/Screenshots keeps the pictures of its steps.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume, ras_from_ijk
from FewShotSegLib.demo.phantom import patient
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.sam.clicks import centre_click

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
        from FewShotSegSlicer.Scene import Segmentations

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


def test_from_a_click_to_a_folder_of_patients_and_back_after_closing(
    story: Story, cases: list[tuple[Path, Volume, Labelmap]], pressKey: Callable[[str], None], tmp_path: Path
) -> None:
    from FewShotSegSlicer.Scene import Segmentations, SliceViews

    ui = story.ui
    path, _volume, truth = cases[0]
    first, second = slicesWith(truth, LIVER, KIDNEY)[0], slicesWith(truth, LIVER, KIDNEY)[3]

    # Load a volume, click, see the mask.
    story.show("segment")
    volumeNode = story.open(path)
    story.addStructure(LIVER)
    story.addStructure(KIDNEY)
    SliceViews.jumpToSlice(volumeNode, 0, first)
    story.chooseStructure(LIVER)
    before = story.snapshot("Red")
    liver, inLiver = middleOf(truth, LIVER, first)
    story.click(inLiver)
    clicked = story.mask(LIVER, first)
    assert dice(clicked, liver) > 0.5
    assert np.count_nonzero((story.snapshot("Red") != before).any(axis=-1)) > 500
    story.picture("1-click")

    # Correct it with a click outside, take that back, and again.
    tooMuch = clicked & ~liver
    outside = tooMuch if tooMuch.any() else clicked
    column, row = centre_click(outside)
    story.click(ras_from_ijk(truth.volume.affine, np.array([[column, row, first]], float))[0], "negative")
    corrected = story.mask(LIVER, first)
    assert not np.array_equal(corrected, clicked)
    assert not corrected[row, column]
    story.picture("2-correct")
    story.press(ui.undoButton)
    np.testing.assert_array_equal(story.mask(LIVER, first), clicked)
    story.press(ui.redoButton)
    np.testing.assert_array_equal(story.mask(LIVER, first), corrected)
    story.press(ui.acceptButton)

    # The other structure, and both on another slice: two exemplar slices.
    for index in (first, second):
        SliceViews.jumpToSlice(volumeNode, 0, index)
        slicer.app.processEvents()
        for name in (LIVER, KIDNEY):
            if not (index == first and name == LIVER):
                story.chooseStructure(name)
                story.click(middleOf(truth, name, index)[1])
                story.press(ui.acceptButton)
    story.show("exemplar")
    story.press(ui.addAnnotatedButton)
    assert ui.exemplarList.count >= 1
    story.picture("3-exemplars")

    # At once, without training: the other slices of this patient, and a click where that is wrong.
    story.show("adapt")
    drawn, third = ui.segmentationSelector.currentNode(), slicesWith(truth, LIVER)[6]
    SliceViews.jumpToSlice(volumeNode, 0, third)
    story.press(ui.supportButton)
    story.runUntil(lambda: not story.widget.logic.runs, 300)
    assert ui.segmentationSelector.currentNode() is not drawn, ui.adaptStatusLabel.text
    liver, inLiver = middleOf(truth, LIVER, third)
    atOnce = story.mask(LIVER, third)
    assert dice(atOnce, liver) > 0.5
    story.picture("4-at-once")
    story.show("segment")
    story.chooseStructure(LIVER)
    story.click(inLiver)
    story.press(ui.acceptButton)
    assert not np.array_equal(story.mask(LIVER, third), atOnce)
    ui.segmentationSelector.setCurrentNode(drawn)
    liver, inLiver = middleOf(truth, LIVER, first)

    # Adapt.
    story.show("adapt")
    story.runUntil(lambda: ui.adaptButton.enabled, 120)
    form = story.widget.panel.adapt._forms["lora"]
    form.setRecipe({"steps": 45, "validate_every": 15, "estimate_folds": 0})
    story.press(ui.adaptButton)
    story.runUntil(lambda: ui.trainingProgressBar.value >= 60, 300)
    story.picture("4-adapt")
    story.runUntil(lambda: not story.widget.logic.runs, 300)
    assert ui.adapterList.count == 1, ui.adaptStatusLabel.text

    # Apply to a patient it has not seen.
    other = story.open(cases[1][0])
    story.show("result")
    ui.applyVolumeSelector.setCurrentNode(other)
    story.press(ui.applyButton)
    story.runUntil(lambda: not story.widget.logic.runs, 300)
    results = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    applied = next(n for n in results if n.GetNodeReference("referenceImageGeometryRef") is other)
    found = Segmentations.labelmapFromSegmentation(applied, other)
    value = next(value for value, name in found.structures.items() if name == LIVER)
    theirs = next(value for value, name in cases[1][2].structures.items() if name == LIVER)
    assert dice(found.volume.array == value, cases[1][2].volume.array == theirs) > 0.3
    index = slicesWith(cases[1][2], LIVER, KIDNEY)[0]
    SliceViews.jumpToSlice(other, 0, index)
    slicer.app.processEvents()
    story.picture("5-result")

    # A batch of two files.
    story.show("batch")
    folder = tmp_path / "to do"
    folder.mkdir()
    for source in (cases[1][0], cases[2][0]):
        (folder / source.name).write_bytes(source.read_bytes())
    ui.batchFolderEdit.currentPath, ui.batchOutputEdit.currentPath = "to do", "done"  # as short as in a real folder
    story.press(ui.runBatchButton)
    story.runUntil(lambda: not story.widget.logic.runs, 300)
    tables = list((tmp_path / "done").glob("*.csv"))
    assert len(tables) == 1, ui.batchStatusLabel.text
    rows = list(csv.DictReader(tables[0].open(encoding="utf-8")))
    assert {Path(row["image"]).name for row in rows} == {"patient 1.nrrd", "patient 2.nrrd"}
    assert len(list((tmp_path / "done").glob("*.seg.nrrd"))) == 2
    story.picture("6-batch")

    # Save the scene, close it, load it again, go on.
    scene = tmp_path / "story.mrb"
    assert slicer.util.saveScene(str(scene))
    exemplars = ui.exemplarList.count
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    assert ui.exemplarList.count == 0
    slicer.util.loadScene(str(scene))
    slicer.app.processEvents()
    assert ui.exemplarList.count == exemplars
    volumeNode = slicer.util.getNode("patient 0")
    ui.volumeSelector.setCurrentNode(volumeNode)
    ui.segmentationSelector.setCurrentNode(next(iter(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))))
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    SliceViews.jumpToSlice(volumeNode, 0, first)
    story.show("segment")
    story.chooseStructure(LIVER)
    np.testing.assert_array_equal(story.mask(LIVER, first), corrected)
    assert len(story.live.promptOn(0, first).points_ras) == 2
    rows, columns = np.nonzero(liver)
    edge = np.array([[columns[0], rows[0], first]], float)  # away from the first click, which would be taken hold of
    story.click(ras_from_ijk(truth.volume.affine, edge)[0])
    assert len(story.live.promptOn(0, first).points_ras) == 3
    story.picture("7-reloaded")
