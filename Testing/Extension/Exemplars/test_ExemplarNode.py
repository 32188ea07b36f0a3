"""One exemplar in a node of the scene, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegSlicer.Exemplars.ExemplarNode import ExemplarNode, SceneExemplar
from Testing.Extension.nodes import addVolume

SHAPE = (6, 4, 5)
EXEMPLAR = SceneExemplar(
    id="",
    name='with "quotes" & ümlauts',
    volumeName="CT",
    date="2026-11-26 10:00:00",
    axis=1,
    slices=(2, 0),
    emptySlices=(3,),
    structures={1: "liver", 2: "spleen", 7: "gone"},
    volumeSha256="abc",
    shape=SHAPE,
)


@pytest.fixture
def volumeNode(scene: Any) -> Any:
    return addVolume(np.zeros(SHAPE, np.int16), np.eye(4), "CT")


@pytest.fixture
def labels() -> np.ndarray:
    """Slices along j: (K, I) each. Structure 7 is shown nowhere."""
    found = np.zeros((2, 6, 5), np.uint16)
    found[0, :2], found[1, 3:] = 1, 2
    return found


@pytest.fixture
def one(volumeNode: Any, labels: np.ndarray) -> ExemplarNode:
    return ExemplarNode.made(EXEMPLAR, labels, volumeNode)


def test_what_was_added_is_read_from_the_node_alone(one: ExemplarNode, volumeNode: Any, labels: np.ndarray) -> None:
    again = ExemplarNode(slicer.mrmlScene.GetNodeByID(one.exemplar.id))
    assert again.exemplar == replace(EXEMPLAR, id=one.node.GetID(), shownStructures=("liver", "spleen"))
    np.testing.assert_array_equal(again.labels, labels)
    assert again.volumeNode is volumeNode
    assert ExemplarNode.isOne(one.node)
    assert not ExemplarNode.isOne(volumeNode)
    assert one.node.GetHideFromEditors()


def test_the_shape_of_a_slice_is_that_of_the_two_other_axes() -> None:
    assert EXEMPLAR.sliceShape == (6, 5)
    assert EXEMPLAR.allSlices == (2, 0, 3)


def test_what_another_hand_writes_into_the_node_is_seen(one: ExemplarNode) -> None:
    card = json.loads(one.node.GetParameter("card"))
    one.node.SetParameter("card", json.dumps({**card, "name": "renamed"}))
    assert one.exemplar.name == "renamed"


def test_writing_the_card_leaves_the_labels(one: ExemplarNode, labels: np.ndarray) -> None:
    one.write(replace(one.exemplar, isEnabled=False))
    assert not one.exemplar.isEnabled
    np.testing.assert_array_equal(one.labels, labels)


def test_forgetting_slices_takes_their_labels_and_structures_along(one: ExemplarNode, labels: np.ndarray) -> None:
    one.forgetSlices({2, 3})
    assert (one.exemplar.slices, one.exemplar.emptySlices) == ((0,), ())
    assert one.exemplar.shownStructures == ("spleen",)
    np.testing.assert_array_equal(one.labels, labels[1:])


def test_without_slices_there_is_no_node(one: ExemplarNode) -> None:
    one.forgetSlices({0, 2, 3})
    assert not any(map(ExemplarNode.isOne, slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")))


def test_the_volume_may_have_left_the_scene(one: ExemplarNode, volumeNode: Any) -> None:
    slicer.mrmlScene.RemoveNode(volumeNode)
    assert one.volumeNode is None
    assert one.exemplar.volumeName == "CT"


def test_a_card_of_an_earlier_version_brings_its_note_and_lacks_what_came_later(one: ExemplarNode) -> None:
    card = json.loads(one.node.GetParameter("card"))
    del card["isEnabled"]
    one.node.SetParameter("card", json.dumps({**card, "note": "checked"}))
    assert (one.exemplar.note, one.exemplar.isEnabled) == ("checked", True)
