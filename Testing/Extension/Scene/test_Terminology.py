"""The terminology of new segments."""

from __future__ import annotations

import json

import pytest
import slicer

from FewShotSegSlicer.Scene import Segmentations, Terminology
from Testing.Extension.nodes import (
    addSegmentation,
)


@pytest.fixture
def terminologies(scene, tmp_path, monkeypatch):
    """The terminology module of Slicer with three anatomical entries."""

    def code(meaning, value, **more):
        return {"CodeMeaning": meaning, "CodingSchemeDesignator": "SCT", "CodeValue": value, **more}

    sides = [code("Right", "24028007", **{"3dSlicerLabel": "right kidney"})]
    types = [
        code("Liver", "10200004", **{"3dSlicerLabel": "liver"}),
        code("Kidney", "64033007", Modifier=sides),
    ]
    context = {
        "SegmentationCategoryTypeContextName": Terminology.ANATOMY,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [code("Anatomical Structure", "123037004", showAnatomy=True, Type=types)]},
    }
    path = tmp_path / "anatomy.term.json"
    path.write_text(json.dumps(context))
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    logic.LoadTerminologyFromFile(str(path))

    class Module:
        @staticmethod
        def logic():
            return logic

    monkeypatch.setattr(slicer.modules, "terminologies", Module, raising=False)


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("Liver", "10200004^Liver~^^"),
        ("right_kidney", "64033007^Kidney~SCT^24028007^Right"),
        ("kidney", "64033007^Kidney~^^"),
        ("phlogiston", "85756007^Tissue~^^"),
    ],
)
def test_a_new_segment_gets_the_terminology_of_its_name_where_slicer_knows_one(terminologies, name, codes):
    node = addSegmentation()
    segment = node.GetSegmentation().GetSegment(Segmentations.addSegment(node, name))
    assert codes in segment.GetTerminology()
    assert segment.GetName() == name
