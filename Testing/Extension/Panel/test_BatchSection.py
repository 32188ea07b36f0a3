"""Section 5: many volumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import qt
import slicer

from Testing.Extension.panels import Case


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


def test_what_lies_apart_is_kept_and_results_are_replaced_where_that_is_ticked(
    case: Case, adapter: str, tmp_path: Path
) -> None:
    case.ui.batchFolderEdit.setCurrentPath(str(tmp_path))
    case.ui.batchOutputEdit.setCurrentPath(str(tmp_path / "out"))
    for ticked in (False, True):
        case.ui.batchAllPiecesCheckBox.checked = case.ui.overwriteCheckBox.checked = ticked
        case.press(case.ui.runBatchButton)
        run = case.runs["processBatch"]
        assert (run.arguments["allPieces"], run.arguments["overwrite"]) == (ticked, ticked)
        run.done(str(tmp_path / "out" / "volumes.csv"))


def test_what_the_worker_warns_of_stays_to_be_read(case: Case, adapter: str, tmp_path: Path) -> None:
    case.ui.batchFolderEdit.setCurrentPath(str(tmp_path))
    case.ui.batchOutputEdit.setCurrentPath(str(tmp_path / "out"))
    case.press(case.ui.runBatchButton)
    run = case.runs["processBatch"]
    run.warnings = ("ct1 holds 2 DICOM series; the larger is read.", "ct2 is <no> CT.")
    run.progress(step=2, total=2, message="ct2: slice 3")
    run.done(str(tmp_path / "out" / "volumes.csv"))
    text = case.ui.batchStatusLabel.text
    assert "volumes.csv" in text
    assert "ct1 holds 2 DICOM series; the larger is read." in text
    assert "ct2 is &lt;no&gt; CT." in text


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


def test_a_batch_that_ends_early_is_explained_and_can_be_run_again(case: Case, adapter: str, tmp_path: Path) -> None:
    case.show("batch")
    case.ui.batchFolderEdit.setCurrentPath(str(tmp_path))
    assert "choose the output folder first" in case.ui.runBatchButton.toolTip
    case.ui.batchOutputEdit.setCurrentPath(str(tmp_path / "out"))
    case.press(case.ui.runBatchButton)
    assert case.ui.batchFrame.visible
    assert "another task is running" in case.ui.runBatchButton.toolTip
    case.press(case.ui.cancelBatchButton)
    run = case.runs["processBatch"]
    assert run.told == ["cancel"]
    run.failed("cancelled", "Cancelled.")
    assert case.ui.batchStatusLabel.text == "Cancelled. Completed volumes are kept; run again to resume."
    assert not case.ui.batchFrame.visible
    case.press(case.ui.runBatchButton)
    case.runs["processBatch"].failed("dead", "The process ended.")
    assert "The process ended." in case.ui.batchStatusLabel.text
    assert case.ui.runBatchButton.enabled


def test_table_and_folder_are_opened_by_the_system(
    case: Case, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    case.ui.batchFolderEdit.setCurrentPath(str(tmp_path))
    case.ui.batchOutputEdit.setCurrentPath(str(tmp_path))
    case.show("batch")
    case.press(case.ui.runBatchButton)
    case.runs["processBatch"].done(str(tmp_path / "volumes.csv"))
    case.press(case.ui.openTableButton)
    case.press(case.ui.openFolderButton)
    assert opened == [str(tmp_path / "volumes.csv"), str(tmp_path)]
