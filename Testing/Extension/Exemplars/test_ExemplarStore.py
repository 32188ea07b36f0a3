"""Exemplars that live in the scene: kept as they were drawn, saved and restored, and as the library reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import ExemplarFiles
from FewShotSegLib.data.volume import AXES, Labelmap
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Scene import Segmentations, Volumes
from Testing.Extension.cases import addCase


def loaded(files: ExemplarFiles) -> Exemplar:
    """As the pipeline reads it."""
    return load_exemplar(
        files.image, files.labelmap, axis=AXES[files.axis or "k"], slices=files.slices, structures=files.structures
    )


def draw(segmentationNode: Any, volumeNode: Any, name: str, mask: np.ndarray) -> None:
    labels = Volumes.volumeFromNode(volumeNode).like(mask.astype(np.uint8))
    Segmentations.segmentationFromLabelmap(Labelmap(labels, {1: name}), volumeNode, segmentationNode)


# -------------------------------------------------------------------------------------------------------------- adding


def test_a_slice_is_kept_as_it_was_drawn(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, volume, labels = addCase()
    exemplar = store.addSlice(volumeNode, segmentationNode, 0, 3)
    draw(segmentationNode, volumeNode, "disc", np.zeros(volume.shape, bool))  # erased afterwards
    assert (exemplar.axis, exemplar.slices, exemplar.emptySlices) == (0, (3,), ())
    assert exemplar.structures == {1: "disc", 2: "square"}
    assert (exemplar.name, exemplar.volumeName) == ("CT k=3", "CT")
    (files,) = store.files(tmp_path)
    found = loaded(files)
    assert np.array_equal(found.volume.array, volume.array)
    assert np.allclose(found.volume.affine, volume.affine)
    assert np.array_equal(found.labels_on(3), labels[3])
    assert (found.annotated_slices, dict(found.structures)) == ((3,), {1: "disc", 2: "square"})


@pytest.mark.parametrize("axis", [1, 2])
def test_slices_may_be_along_any_axis(store: ExemplarStore, axis: int, tmp_path: Path) -> None:
    volumeNode, segmentationNode, _, labels = addCase(slices=(20, 25), axis=axis)
    store.addSlice(volumeNode, segmentationNode, axis, 20)
    (files,) = store.files(tmp_path)
    assert files.axis == "kji"[axis]
    assert np.array_equal(loaded(files).labels_on(20), labels.take(20, axis))
    assert store.thumbnail(store.list()[0].id).shape[2] == 3


def test_all_annotated_slices_come_in_one_call(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    exemplar = store.addAnnotatedSlices(volumeNode, segmentationNode)
    assert exemplar.slices == (1, 3)
    (files,) = store.files(tmp_path)
    assert np.array_equal(loaded(files).labelmap, labels)


def test_a_slice_added_again_replaces_what_was_kept_of_it_and_keeps_its_name(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    first = store.addSlice(volumeNode, segmentationNode, 0, 1)
    store.rename(first.id, "the good one")
    corrected = labels == 1
    corrected[1, :10, :10] = True
    draw(segmentationNode, volumeNode, "disc", corrected)
    again = store.addSlice(volumeNode, segmentationNode, 0, 1)
    assert [e.name for e in store.list()] == ["the good one"] == [again.name]
    both = store.addAnnotatedSlices(volumeNode, segmentationNode)
    assert [e.slices for e in store.list()] == [(1, 3)]
    store.markEmpty(volumeNode, 0, 3)
    assert [(e.slices, e.emptySlices) for e in store.list()] == [((1,), ()), ((), (3,))]
    assert store.list()[0].id == both.id


def test_a_slice_marked_as_empty_joins_the_others_of_its_volume(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    store.addAnnotatedSlices(volumeNode, segmentationNode)
    store.markEmpty(volumeNode, 0, 5)
    (files,) = store.files(tmp_path)
    found = loaded(files)
    assert (found.annotated_slices, found.empty_slices) == ((1, 3), (5,))
    assert store.slicesOf(volumeNode, 0) == (1, 3, 5)


def test_segments_that_nobody_has_drawn_say_nothing(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    Segmentations.addSegment(segmentationNode, "tumor")
    assert store.addSlice(volumeNode, segmentationNode, 0, 1).structures == {1: "disc", 2: "square"}


def test_chosen_segments_alone_are_kept(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    square = Segmentations.segmentsByName(segmentationNode)["square"]
    store.addSlice(volumeNode, segmentationNode, 0, 1, [square])
    (files,) = store.files(tmp_path)
    assert np.array_equal(loaded(files).labels_on(1) == 1, labels[1] == 2)


def test_an_empty_slice_or_segmentation_is_refused_with_what_to_do(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    with pytest.raises(InputError, match=r"k=2 shows no disc or square; draw them, or mark the slice as empty"):
        store.addSlice(volumeNode, segmentationNode, 0, 2)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "blank")
    with pytest.raises(InputError, match='Nothing is drawn in "blank"'):
        store.addAnnotatedSlices(volumeNode, empty)
    with pytest.raises(InputError, match="k=0 to 5"):
        store.markEmpty(volumeNode, 0, 6)


# ---------------------------------------------------------------------------------------------------------------- list


def test_every_change_is_told_once(store: ExemplarStore) -> None:
    heard: list[int] = []
    store.changed.connect(lambda: heard.append(len(store.list())))
    volumeNode, segmentationNode, *_ = addCase()
    exemplar = store.addSlice(volumeNode, segmentationNode, 0, 1)
    store.rename(exemplar.id, "one")
    assert store.list()[0].name == "one"
    store.setEnabled(exemplar.id, False)
    store.remove(exemplar.id)
    assert heard == [1, 1, 1, 0]
    with pytest.raises(InputError, match="There is no exemplar vtkMRMLScriptedModuleNode"):
        store.remove(exemplar.id)


def test_exemplars_are_chosen_by_the_name_of_a_structure(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    ids = Segmentations.segmentsByName(segmentationNode)
    store.addSlice(volumeNode, segmentationNode, 0, 1, [ids["disc"]])
    store.addSlice(volumeNode, segmentationNode, 0, 3, [ids["square"]])
    store.markEmpty(volumeNode, 0, 5)
    assert [e.slices for e in store.list("square")] == [(3,)]
    assert [(e.slices, e.emptySlices) for e in store.enableForStructures(["Disc"])] == [((1,), ()), ((), (5,))]
    assert store.structures() == ("disc",)
    store.setEnabled(store.list()[1].id, True)
    assert store.structures() == ("disc", "square")


def test_a_thumbnail_shows_the_slice_with_its_structures_as_slicer_shows_it(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    exemplar = store.addSlice(volumeNode, segmentationNode, 0, 1)
    picture = store.thumbnail(exemplar.id, size=64)
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    colored = np.ptp(picture.astype(int), axis=2) > 20
    assert np.array_equal(colored, labels[1] > 0)  # i grows to the left, j to the back: nothing is turned
    slicer.mrmlScene.RemoveNode(volumeNode)
    assert (np.ptp(store.thumbnail(exemplar.id, size=64).astype(int), axis=2) > 20).sum() == colored.sum()


# ----------------------------------------------------------------------------------------------------------- the scene


def savedAndLoaded(path: Path) -> None:
    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(path))


def test_exemplars_are_saved_with_the_scene_and_restored(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, volume, labels = addCase()
    store.rename(store.addAnnotatedSlices(volumeNode, segmentationNode).id, 'with "quotes" & ümlauts | <tags>')
    store.markEmpty(volumeNode, 0, 5)
    before, picture = store.list(), store.thumbnail(store.list()[0].id)
    savedAndLoaded(tmp_path / "scene.mrb")
    after = store.list()
    assert [(e.name, e.slices, e.emptySlices, e.structures, e.date) for e in after] == [
        (e.name, e.slices, e.emptySlices, e.structures, e.date) for e in before
    ]
    assert store.preflight() == []
    (files,) = store.files(tmp_path)
    found = loaded(files)
    assert np.array_equal(found.volume.array, volume.array)
    assert np.array_equal(found.labelmap, labels)
    assert np.array_equal(store.thumbnail(after[0].id), picture)


def test_closing_the_scene_takes_the_exemplars_with_it_and_says_so(store: ExemplarStore) -> None:
    heard: list[int] = []
    volumeNode, segmentationNode, *_ = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 1)
    store.changed.connect(lambda: heard.append(len(store.list())))
    slicer.mrmlScene.Clear(0)
    assert heard == [0]


def test_a_scene_that_is_added_brings_its_exemplars(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 1)
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert len(store.list()) == 2
    assert len(store.files(tmp_path)) == 2  # each of its own volume


def test_moving_the_volume_moves_the_exemplar_with_it(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, volume, labels = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 3)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = 10, -20, 30
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    volumeNode.SetAndObserveTransformNodeID(transform.GetID())
    (files,) = store.files(tmp_path)
    found = loaded(files)
    assert np.allclose(found.volume.affine, matrix @ volume.affine)
    assert np.array_equal(found.labels_on(3), labels[3])


# ----------------------------------------------------------------------------------------------------------- preflight


def test_good_exemplars_pass(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    assert store.preflight() == ["There is no exemplar yet: annotate a slice and add it."]
    store.addAnnotatedSlices(volumeNode, segmentationNode)
    assert store.preflight() == []


def test_preflight_names_what_is_wrong(store: ExemplarStore) -> None:
    volumeNode, segmentationNode, volume, _ = addCase(name="abdomen")
    odd = np.zeros(volume.shape, bool)
    odd[1, 5, 5] = True
    draw(segmentationNode, volumeNode, "nodule", odd)
    edge = np.zeros(volume.shape, bool)
    edge[3, 0, 5:9] = True
    draw(segmentationNode, volumeNode, "skin", edge)
    store.addAnnotatedSlices(volumeNode, segmentationNode)
    sentences = "\n".join(store.preflight())
    assert "abdomen, slice k=1: nodule is a single voxel" in sentences
    assert "abdomen, slice k=3: skin touches the border" in sentences


def test_preflight_names_an_exemplar_whose_volume_is_gone_or_was_changed(store: ExemplarStore, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 1)
    array = slicer.util.arrayFromVolume(volumeNode)
    array[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(volumeNode)
    (sentence,) = store.preflight()
    assert 'CT k=1: the voxels of "CT" have changed' in sentence
    slicer.mrmlScene.RemoveNode(volumeNode)
    (sentence,) = store.preflight()
    assert 'CT k=1: its volume "CT" is not in the scene any more' in sentence
    with pytest.raises(InputError, match="not in the scene any more"):
        store.files(tmp_path)


def test_different_kinds_of_image_are_named(store: ExemplarStore) -> None:
    for name, seed in (("CT", 0), ("MR", 1)):
        volumeNode, segmentationNode, *_ = addCase(seed, name=name)
        if name == "MR":
            array = slicer.util.arrayFromVolume(volumeNode)
            np.clip(array, 0, None, out=array)
            slicer.util.arrayFromVolumeModified(volumeNode)
        store.addAnnotatedSlices(volumeNode, segmentationNode)
    assert any("CT has Hounsfield units and MR has not" in sentence for sentence in store.preflight())
