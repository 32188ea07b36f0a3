"""The sample patients: registered, painted, and told apart."""

from __future__ import annotations

import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import SamplePatients


def test_sample_patients_are_registered_when_slicer_has_started(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[dict[str, Any]] = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(**source: Any) -> None:
            registered.append(source)

    sampleData = types.ModuleType("SampleData")
    sampleData.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", sampleData)
    slicer.app.startupCompleted.emit()
    assert [source["sampleName"] for source in registered] == ["FewShotSegPatient1", "FewShotSegPatient2"]
    assert all(Path(source["thumbnailFileName"]).is_file() for source in registered)
    pressed = types.SimpleNamespace(sampleName="FewShotSegPatient2")
    [node] = registered[1]["customDownloader"](pressed)
    assert node.GetName() == "FewShotSegPatient2"


def test_the_first_patient_has_five_structures_on_three_slices(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    volumeNode, segmentationNode = SamplePatients.load(1)
    assert slicer.util.arrayFromVolume(volumeNode).shape == (40, 160, 160)
    segmentation = segmentationNode.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(number) for number in range(segmentation.GetNumberOfSegments())]
    names = [segmentation.GetSegment(one).GetName() for one in ids]
    assert names == ["liver", "right kidney", "left kidney", "spleen", "aorta"]
    masks = [slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, one, volumeNode) for one in ids]
    assert all(mask.any() for mask in masks)
    assert np.flatnonzero(np.any(masks, axis=(0, 2, 3))).size == 3


def test_the_second_patient_is_another_one_and_comes_without_a_segmentation(scene: Any) -> None:
    first, _ = SamplePatients.load(1)
    second, segmentationNode = SamplePatients.load(2)
    assert segmentationNode is None
    assert (slicer.util.arrayFromVolume(first) != slicer.util.arrayFromVolume(second)).mean() > 0.5
    assert slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetBackgroundLayer().GetVolumeNode() is second


def test_there_is_no_third_patient(scene: Any) -> None:
    with pytest.raises(InputError, match="There are the sample patients 1 and 2, got 3"):
        SamplePatients.load(3)
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
