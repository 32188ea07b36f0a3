"""Segmentation nodes as labelmaps of the library, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
from hypothesis import given

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegSlicer.Scene import Geometry, Segmentations
from Testing.Extension.geometries import anyAffine, anyTransform, fewExamples
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    addTransform,
    addVolume,
    affineOf,
    ball,
    paint,
    rotation,
    segmentVoxels,
    segmentVoxelsByPoint,
    surfaceOf,
    twoStructures,
)


def test_a_labelmap_becomes_a_segmentation_and_comes_back_as_it_was(aVolumeNode):
    affine = Geometry.rasFromIjk(aVolumeNode)
    labels = twoStructures(affine)
    node = Segmentations.segmentationFromLabelmap(
        Labelmap(Volume(labels, affine), {1: "ball", 2: "plate"}), aVolumeNode
    )
    for value, name in ((1, "ball"), (2, "plate")):
        segmentId = Segmentations.segmentsByName(node)[name]
        np.testing.assert_array_equal(segmentVoxels(node, segmentId, aVolumeNode), labels == value)
    back = Segmentations.labelmapFromSegmentation(node, aVolumeNode)
    np.testing.assert_array_equal(back.volume.array, labels)
    assert back.structures == {1: "ball", 2: "plate"}
    np.testing.assert_allclose(back.volume.affine, affine)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_slices_of_a_segment_are_slices_of_its_voxels(aVolumeNode):
    labels = twoStructures(Geometry.rasFromIjk(aVolumeNode))
    node = addSegmentation(aVolumeNode, "ball", "plate")
    for value, segmentId in ((1, "ball"), (2, "plate")):
        paint(node, segmentId, labels == value, Geometry.rasFromIjk(aVolumeNode))
    for axis in range(3):
        for index in range(SHAPE[axis]):
            for value, segmentId in ((1, "ball"), (2, "plate")):
                np.testing.assert_array_equal(
                    Segmentations.sliceMask(node, segmentId, aVolumeNode, axis, index),
                    labels.take(index, axis) == value,
                )
        others = tuple({0, 1, 2} - {axis})
        assert Segmentations.annotatedSlices(node, aVolumeNode, axis) == np.flatnonzero(labels.any(others)).tolist()
        plate = np.flatnonzero((labels == 2).any(others)).tolist()
        assert Segmentations.annotatedSlices(node, aVolumeNode, axis, ["plate"]) == plate


@fewExamples
@given(affine=anyAffine(), ofVolume=anyTransform(), ofSegmentation=anyTransform())
def test_transforms_of_volume_and_segmentation_may_differ(scene, affine, ofVolume, ofSegmentation):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    volumeNode.SetAndObserveTransformNodeID(addTransform(ofVolume).GetID())
    segmentationNode = addSegmentation()
    segmentationNode.SetAndObserveTransformNodeID(addTransform(ofSegmentation).GetID())
    labels = twoStructures(affine)
    labelmap = Labelmap(Volume(labels, Geometry.rasFromIjk(volumeNode)), {1: "ball", 2: "plate"})
    Segmentations.segmentationFromLabelmap(labelmap, volumeNode, segmentationNode)
    np.testing.assert_array_equal(
        Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode).volume.array, labels
    )
    ballId = Segmentations.segmentsByName(segmentationNode)["ball"]
    np.testing.assert_array_equal(segmentVoxelsByPoint(segmentationNode, ballId, volumeNode), labels == 1)


def test_a_new_segmentation_moves_with_its_volume_and_lies_beside_it_in_the_hierarchy(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES["oblique"])
    transform = addTransform(rotation((0, 0, 1), 40))
    volumeNode.SetAndObserveTransformNodeID(transform.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volumeNode), study)
    labels = twoStructures(GEOMETRIES["oblique"])
    labelmap = Labelmap(Volume(labels, Geometry.rasFromIjk(volumeNode)), {1: "ball", 2: "plate"})
    node = Segmentations.segmentationFromLabelmap(labelmap, volumeNode, name="result")
    assert node.GetName() == "result"
    assert node.GetParentTransformNode() is transform
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([1.0, -1, 2, 1])))
    np.testing.assert_array_equal(Segmentations.labelmapFromSegmentation(node, volumeNode).volume.array, labels)


def test_an_empty_segmentation_has_no_structures_and_no_annotated_slice(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    assert Segmentations.labelmapFromSegmentation(addSegmentation(), volumeNode).structures == {}
    node = addSegmentation(None, "empty")
    assert Segmentations.labelmapFromSegmentation(node, volumeNode).structures == {1: "empty"}
    assert Segmentations.annotatedSlices(node, volumeNode, 1) == []
    assert not Segmentations.sliceMask(node, "empty", volumeNode, 0, 3).any()


def test_where_segments_overlap_the_later_is_kept_and_the_voxels_of_the_first_are_known(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    node = addSegmentation(volumeNode, "first", "second")
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[1:4], second[3:5] = True, True
    paint(node, "first", first, np.eye(4))
    paint(node, "second", second, np.eye(4))
    labelmap = Segmentations.labelmapFromSegmentation(node, volumeNode)
    np.testing.assert_array_equal(labelmap.volume.array, np.where(second, 2, first))
    np.testing.assert_array_equal(labelmap.mask(1), first)
    np.testing.assert_array_equal(labelmap.mask(2), second)


def test_two_segments_of_one_name_stay_two_structures(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    node = addSegmentation(volumeNode, "a", "b")
    for segmentId in ("a", "b"):
        node.GetSegmentation().GetSegment(segmentId).SetName("cyst")
    assert Segmentations.labelmapFromSegmentation(node, volumeNode).structures == {1: "cyst", 2: "cyst (2)"}
    assert Segmentations.segmentsByName(node) == {"cyst": "a"}


@pytest.mark.parametrize("overlapping", [False, True], ids=["beside", "under"])
def test_a_result_goes_to_the_segments_of_its_names_and_leaves_all_others_alone(scene, overlapping):
    affine = GEOMETRIES["oblique"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    node = addSegmentation(volumeNode, "own", "plate")
    own = np.zeros(SHAPE, bool)
    own[(slice(2, 5) if overlapping else slice(0, 2)), 1:4] = True
    old = np.zeros(SHAPE, bool)
    old[5:7] = True
    paint(node, "own", own, affine)
    paint(node, "plate", old, affine)
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    labels = twoStructures(affine)
    structures = {1: "ball", 2: "plate", 7: "nowhere"}
    returned = Segmentations.segmentationFromLabelmap(Labelmap(Volume(labels, affine), structures), volumeNode, node)
    assert returned is node
    assert list(Segmentations.segmentsByName(node)) == ["own", "plate", "ball", "nowhere"]
    np.testing.assert_array_equal(segmentVoxels(node, "own", volumeNode), own)
    np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), labels == 2)
    np.testing.assert_array_equal(
        segmentVoxels(node, Segmentations.segmentsByName(node)["ball"], volumeNode), labels == 1
    )
    assert not segmentVoxels(node, Segmentations.segmentsByName(node)["nowhere"], volumeNode).any()


def test_voxels_without_a_named_structure_are_left_out(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    labels = np.zeros(SHAPE, np.uint16)
    labels[1], labels[2] = 300, 5
    node = Segmentations.segmentationFromLabelmap(Labelmap(Volume(labels, np.eye(4)), {300: "kept"}), volumeNode)
    np.testing.assert_array_equal(
        segmentVoxels(node, Segmentations.segmentsByName(node)["kept"], volumeNode), labels == 300
    )
    assert (Segmentations.labelmapFromSegmentation(node, volumeNode).volume.array > 0).sum() == (labels == 300).sum()


def test_surfaces_that_are_shown_follow_a_result(scene):
    affine = GEOMETRIES["isotropic"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    node = addSegmentation(volumeNode, "ball", "other")
    for segmentId, part in (("ball", slice(0, 2)), ("other", slice(5, 7))):
        mask = np.zeros(SHAPE, bool)
        mask[part, 2:6, 2:6] = True
        paint(node, segmentId, mask, affine)
    node.CreateClosedSurfaceRepresentation()
    other = surfaceOf(node, "other")
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, affine, 2.5)] = 1
    Segmentations.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball", 2: "new"}), volumeNode, node)
    fresh = Segmentations.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball"}), volumeNode)
    fresh.CreateClosedSurfaceRepresentation()
    freshId = Segmentations.segmentsByName(fresh)["ball"]
    np.testing.assert_allclose(surfaceOf(node, "ball"), surfaceOf(fresh, freshId))
    np.testing.assert_array_equal(surfaceOf(node, "other"), other)


def test_a_labelmap_of_another_grid_changes_nothing(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4), "CT")
    node = addSegmentation(volumeNode, "ball")
    nodes = scene.GetNumberOfNodes()
    labelmap = Labelmap(Volume(np.ones(SHAPE, np.uint8), affineOf(np.eye(3), (1, 1, 1.5))), {1: "ball", 2: "more"})
    for target in (node, None):
        with pytest.raises(InputError, match='does not lie on the grid of "CT"'):
            Segmentations.segmentationFromLabelmap(labelmap, volumeNode, target)
    assert list(Segmentations.segmentsByName(node)) == ["ball"]
    assert scene.GetNumberOfNodes() == nodes


def test_a_segmentation_of_another_grid_is_not_written_to(scene):
    other = affineOf(np.eye(3), (1, 1, 1.5))
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4), "CT")
    node = addSegmentation(None, "mine")
    paint(node, "mine", np.ones(SHAPE, bool), other)
    labelmap = Labelmap(Volume(np.ones(SHAPE, np.uint8), np.eye(4)), {1: "ball"})
    with pytest.raises(InputError, match='Segment "mine" of "segmentation" lies on another grid than "CT"'):
        Segmentations.segmentationFromLabelmap(labelmap, volumeNode, node)
    assert list(Segmentations.segmentsByName(node)) == ["mine"]


def test_a_labelmap_in_another_index_order_is_written_voxel_by_voxel(scene):
    affine = GEOMETRIES["LPS"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    labels = twoStructures(affine)
    flipped = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[0] - 1], [0, 0, 0, 1.0]])
    labelmap = Labelmap(Volume(labels[::-1], flipped), {1: "ball", 2: "plate"})
    node = Segmentations.segmentationFromLabelmap(labelmap, volumeNode)
    np.testing.assert_array_equal(Segmentations.labelmapFromSegmentation(node, volumeNode).volume.array, labels)


def test_a_saved_segmentation_is_loaded_as_it_was_by_slicer_and_by_the_library(aVolumeNode, tmp_path: Path):
    affine = Geometry.rasFromIjk(aVolumeNode)
    labels = twoStructures(affine)
    node = Segmentations.segmentationFromLabelmap(
        Labelmap(Volume(labels, affine), {1: "ball", 2: "plate"}), aVolumeNode
    )
    path = tmp_path / "saved.seg.nrrd"
    assert slicer.util.saveNode(node, str(path))
    loaded = slicer.util.loadSegmentation(str(path))
    np.testing.assert_array_equal(Segmentations.labelmapFromSegmentation(loaded, aVolumeNode).volume.array, labels)
    colors = [
        n.GetSegmentation().GetSegment(Segmentations.segmentsByName(n)["ball"]).GetColor() for n in (node, loaded)
    ]
    assert colors[0] == pytest.approx(colors[1], abs=1e-4)
    fromFile = load_labelmap(path)
    assert list(fromFile.structures.values()) == ["ball", "plate"]
    assert np.count_nonzero(fromFile.volume.array == 1) == np.count_nonzero(labels == 1)


def test_a_new_segment_is_in_progress_and_has_the_colour_of_its_name(scene):
    node = addSegmentation()
    segmentation = node.GetSegmentation()
    names = ["liver", "my structure", "tumor", "liver"]
    ids = [Segmentations.addSegment(node, name) for name in names]
    assert len(set(ids)) == 4
    expected = structure_colors(dict(enumerate(names, start=1)))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for number, segmentId in enumerate(ids, start=1):
        segment = segmentation.GetSegment(segmentId)
        assert segment.GetName() == names[number - 1]
        assert segment.GetColor() == pytest.approx(expected[number])
        assert logic.GetSegmentStatus(segment) == logic.InProgress
        assert "^Tissue~" in segment.GetTerminology()
    with pytest.raises(InputError, match="needs a name"):
        Segmentations.addSegment(node, "  ")
