"""Looking through the results of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegSlicer.Panel.BatchSection import BatchSection
from FewShotSegSlicer.Scene import Segmentations, SliceViews
from Testing.conftest import write_discs
from Testing.Extension.panels import Case


@pytest.fixture
def batch(case: Case, tmp_path: Path) -> Path:
    """The output folder of a batch of two volumes, of which b is flagged."""
    (tmp_path / "out").mkdir()
    for seed, (name, flags) in enumerate({"a": [], "b": ["has a low confidence"]}.items()):
        image, labelmap = write_discs(tmp_path / "data", name, seed)
        labelmap.rename(tmp_path / "out" / f"{name}.seg.nrrd")
        structures = {"disc": {"flags": flags, "confidence": 0.9}, "square": {"flags": [], "confidence": 0.8}}
        record = {"image": str(image), "axis": "k", "least_sure_slice": 4, "metrics": {"structures": structures}}
        (tmp_path / "out" / f"{name}.result.json").write_text(json.dumps(record), encoding="utf-8")
    case.show("batch")
    section: BatchSection = case.panel.batch
    section._onDone(str(tmp_path / "out" / "volumes.csv"))
    return tmp_path / "out"


def rows(case: Case) -> list[str]:
    return [case.ui.resultList.item(row).text() for row in range(case.ui.resultList.count)]


def test_the_doubtful_come_first_and_open_at_their_doubtful_slice(case: Case, batch: Path) -> None:
    assert rows(case) == ["b\ndisc has a low confidence", "a\nno flags"]
    case.press(case.ui.nextResultButton)
    assert case.selection.volumeNode.GetName() == "b"
    assert list(Segmentations.segmentsByName(case.selection.segmentationNode)) == ["disc", "square"]
    assert (0, 4) in SliceViews.viewedSlices(case.selection.volumeNode)
    assert "disc has a low confidence" in case.ui.batchStatusLabel.text


def test_accepting_and_skipping_open_the_next_and_put_the_last_away(case: Case, batch: Path) -> None:
    case.press(case.ui.nextResultButton)
    case.press(case.ui.acceptResultButton)
    assert case.selection.volumeNode.GetName() == "a"
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1
    case.press(case.ui.skipResultButton)
    assert "All results have been reviewed" in case.ui.batchStatusLabel.text
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert rows(case) == ["b (accepted)\ndisc has a low confidence", "a (skipped)\nno flags"]
    assert "all results have been reviewed" in case.ui.nextResultButton.toolTip


def test_a_correction_is_written_to_the_file_and_offered_as_an_exemplar(case: Case, batch: Path, messages: Any) -> None:
    case.press(case.ui.nextResultButton)
    node, volumeNode = case.selection.segmentationNode, case.selection.volumeNode
    disc = Segmentations.segmentsByName(node)["disc"]
    mask = np.zeros((6, 64, 64), np.uint8)
    mask[:, 2:9, 3:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, disc, volumeNode)
    case.press(case.ui.correctResultButton)
    (question,) = messages.texts("confirm")
    assert question.startswith("Saved to b.seg.nrrd. Add the slice as an exemplar")
    saved = load_labelmap(batch / "b.seg.nrrd")
    (value,) = (value for value, name in saved.structures.items() if name == "disc")
    assert np.array_equal(saved.volume.array == value, mask > 0)
    assert [exemplar.volumeName for exemplar in case.logic.exemplars.list()] == ["b"]
    assert rows(case)[-1].startswith("b (corrected)")


def test_an_earlier_batch_is_gone_on_with_where_its_folder_is_chosen(case: Case, batch: Path) -> None:
    case.press(case.ui.nextResultButton)
    case.press(case.ui.acceptResultButton)
    case.ui.batchOutputEdit.setCurrentPath("")
    case.panel.batch.worklist.findings = []
    case.ui.batchOutputEdit.setCurrentPath(str(batch))
    assert [row.split("\n")[0] for row in rows(case)] == ["a", "b (accepted)"]


def test_a_volume_that_is_gone_is_explained(case: Case, batch: Path) -> None:
    (batch.parent / "data" / "b.nrrd").unlink()
    case.press(case.ui.nextResultButton)
    assert "The volume b is neither a file nor in the scene any more" in case.ui.batchStatusLabel.text
    assert not case.ui.acceptResultButton.enabled
