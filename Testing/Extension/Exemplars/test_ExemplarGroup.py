"""Exemplars of the scene as the library knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import ExemplarFiles
from FewShotSegLib.data.volume import AXES
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegSlicer.Exemplars.ExemplarGroup import grouped, windowProblem
from FewShotSegSlicer.Exemplars.ExemplarNode import ExemplarNode
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.cases import addCase


def loaded(files: ExemplarFiles) -> Exemplar:
    """As the pipeline reads it."""
    return load_exemplar(
        files.image, files.labelmap, axis=AXES[files.axis or "k"], slices=files.slices, structures=files.structures
    )


def test_exemplars_of_one_volume_become_one_for_the_library(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    for index in (3, 1):
        store.addSlice(volumeNode, segmentationNode, 0, index)
    (files,) = store.files(tmp_path)
    assert np.array_equal(loaded(files).labelmap, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CT labels.seg.nrrd", "CT.nrrd"]


def test_what_a_structure_was_not_drawn_on_is_not_taken_for_its_absence(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    ids = Segmentations.segmentsByName(segmentationNode)
    store.addSlice(volumeNode, segmentationNode, 0, 1, [ids["square"]])
    store.addSlice(volumeNode, segmentationNode, 0, 3)
    first, second = store.files(tmp_path)
    assert (first.structures, second.structures) == ({1: "square"}, {1: "square", 2: "disc"})
    assert first.image == second.image


def test_the_numbers_of_an_adapter_to_go_on_from_are_used(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 3)
    (files,) = store.files(tmp_path, {7: "square", 2: "disc"})
    found = loaded(files)
    assert np.array_equal(found.labels_on(3) == 7, labels[3] == 2)
    assert np.array_equal(found.labels_on(3) == 2, labels[3] == 1)


def test_preflight_compares_the_window_looked_at_with_that_of_the_model(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    store.addAnnotatedSlices(volumeNode, segmentationNode)
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(-1350, 150)  # lung, while soft tissue is what the model sees of a CT
    (sentence,) = store.preflight()
    assert '"CT" is shown from -1350 to 150, and the model sees -125 to 275' in sentence
    assert store.preflight(window=(-1350, 150)) == []
    display.SetWindowLevelMinMax(-160, 240)
    assert store.preflight() == []
    display.SetWindowLevelMinMax(20, 60)
    assert "is shown from 20 to 60" in store.preflight()[0]


# -------------------------------------------------------------------------------------------------- without the library


def nodes(store: ExemplarStore) -> list[ExemplarNode]:
    return [ExemplarNode(slicer.mrmlScene.GetNodeByID(exemplar.id)) for exemplar in store.list()]


def test_a_group_is_of_one_volume_one_axis_and_the_same_structures(store: ExemplarStore) -> None:
    first, second = addCase(0, slices=None, name="A"), addCase(1, slices=None, name="B")
    disc = Segmentations.segmentsByName(first[1])["disc"]
    for volumeNode, segmentationNode, *_ in (first, second):
        store.addSlice(volumeNode, segmentationNode, 0, 1)
        store.addSlice(volumeNode, segmentationNode, 0, 3)
    store.addSlice(first[0], first[1], 1, 20)
    store.addSlice(first[0], first[1], 0, 4, [disc])
    found = [(g.volumeNode.GetName(), g.axis, g.names, g.slices) for g in grouped(nodes(store), ())]
    assert sorted(found) == [
        ("A", 0, ("disc",), (4,)),
        ("A", 0, ("disc", "square"), (1, 3)),
        ("A", 1, ("disc", "square"), (20,)),
        ("B", 0, ("disc", "square"), (1, 3)),
    ]


def test_an_empty_slice_joins_every_group_of_its_volume_and_axis_and_is_alone_without_one(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase(slices=None)
    disc = Segmentations.segmentsByName(segmentationNode)["disc"]
    store.addSlice(volumeNode, segmentationNode, 0, 1)
    store.addSlice(volumeNode, segmentationNode, 0, 3, [disc])
    store.markEmpty(volumeNode, 0, 5)
    store.markEmpty(volumeNode, 2, 9)
    store.markEmpty(volumeNode, 2, 7)
    found = [(g.axis, g.names, g.slices, g.emptySlices) for g in grouped(nodes(store), ("disc", "square"))]
    assert sorted(found) == [
        (0, ("disc",), (3,), (5,)),
        (0, ("disc", "square"), (1,), (5,)),
        (2, ("disc", "square"), (), (7, 9)),
    ]


def test_what_is_not_named_is_background(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    store.addAnnotatedSlices(volumeNode, segmentationNode)
    (group,) = grouped(nodes(store), ())
    exemplar = group.asExemplar({300: "square", 5: "liver"})
    np.testing.assert_array_equal(exemplar.labelmap, np.where(labels == 2, 300, 0))
    assert dict(exemplar.structures) == {300: "square"}
    assert exemplar.annotated_slices == (1, 3)


def test_a_window_that_the_user_did_not_choose_is_no_problem(scene: Any) -> None:
    volumeNode, *_ = addCase()
    display = volumeNode.GetDisplayNode()
    display.SetAutoWindowLevel(True)
    assert windowProblem(volumeNode, (5000.0, 6000.0)) == ""
    display.AutoWindowLevelOff()
    assert "the model sees 5000 to 6000" in windowProblem(volumeNode, (5000.0, 6000.0))
    volumeNode.SetAndObserveDisplayNodeID(None)
    assert windowProblem(volumeNode, (5000.0, 6000.0)) == ""
