"""Layers of segmentations in the index order of a volume, and on other grids."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Layers, Segmentations
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
    twoStructures,
)


def test_segments_listed_in_another_index_order_are_read_voxel_by_voxel(scene):
    affine = GEOMETRIES["oblique"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    labels = twoStructures(affine)
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[2] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # (i, j, k) -> (k, -i, j)
    node = addSegmentation(None, "plate")
    paint(node, "plate", labels.transpose(1, 2, 0)[:, ::-1] == 2, affine @ np.linalg.inv(turn))
    np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), labels == 2)  # the test turns it right
    np.testing.assert_array_equal(
        Segmentations.labelmapFromSegmentation(node, volumeNode).volume.array == 1, labels == 2
    )
    for axis in range(3):
        mask = Segmentations.sliceMask(node, "plate", volumeNode, axis, 3)
        np.testing.assert_array_equal(mask, labels.take(3, axis) == 2)


def test_segments_on_another_grid_are_read_by_their_nearest_voxel(scene):
    fine, coarse = affineOf(np.eye(3), (0.5, 0.5, 0.5)), affineOf(rotation((1, 1, 0), 10), (1.1, 1.3, 1.7))
    node = addSegmentation(None, "ball")
    paint(node, "ball", ball((60, 60, 60), fine, 12), fine)
    shape = (24, 28, 26)
    volumeNode = addVolume(np.zeros(shape, np.int16), coarse)
    middle = (fine @ [29.5, 29.5, 29.5, 1])[:3]
    k, j, i = np.indices(shape)
    distance = np.linalg.norm(np.stack([i, j, k], -1) @ coarse[:3, :3].T + coarse[:3, 3] - middle, axis=-1)
    mask = Segmentations.labelmapFromSegmentation(node, volumeNode).volume.array == 1
    assert mask[distance < 12 - 0.5].all()
    assert not mask[distance > 12 + 0.5].any()
    assert 0 < mask.sum() < mask.size
    for axis in range(3):
        np.testing.assert_array_equal(Segmentations.sliceMask(node, "ball", volumeNode, axis, 9), mask.take(9, axis))
        found = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))).tolist()
        assert Segmentations.annotatedSlices(node, volumeNode, axis) == found


def test_a_segmentation_may_reach_beyond_the_volume_or_cover_a_corner_of_it(scene):
    affine = GEOMETRIES["LPS"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    larger = affine.copy()
    larger[:3, 3] = (affine @ [-3, -2, -4, 1])[:3]
    node = addSegmentation(None, "all", "corner", "outside")
    everywhere = np.ones((SHAPE[0] + 8, SHAPE[1] + 5, SHAPE[2] + 6), bool)
    paint(node, "all", everywhere, larger)
    corner, outside = np.zeros_like(everywhere), np.zeros_like(everywhere)
    corner[4:6, 2, 3] = True
    outside[:4] = True
    paint(node, "corner", corner, larger)
    paint(node, "outside", outside, larger)
    assert (Segmentations.labelmapFromSegmentation(node, volumeNode, ["all"]).volume.array == 1).all()
    expected = np.zeros(SHAPE, bool)
    expected[:2, 0, 0] = True
    np.testing.assert_array_equal(
        Segmentations.labelmapFromSegmentation(node, volumeNode, ["corner"]).volume.array == 1, expected
    )
    assert Segmentations.annotatedSlices(node, volumeNode, 0, ["corner"]) == [0, 1]
    assert Segmentations.annotatedSlices(node, volumeNode, 0, ["outside"]) == []


@pytest.mark.parametrize("first", [(-2, 1, 3), (1, -1, -4), (-9, 0, 0), (0, 0, 0)])
def test_the_part_of_a_layer_inside_a_volume_is_what_filling_voxel_by_voxel_gives(first):
    array = np.random.default_rng(3).integers(1, 9, (6, 14, 8))
    expected = np.zeros(SHAPE, array.dtype)
    for place in np.ndindex(array.shape):
        k, j, i = np.add(place, first)
        if (np.array([k, j, i]) >= 0).all() and k < SHAPE[0] and j < SHAPE[1] and i < SHAPE[2]:
            expected[k, j, i] = array[place]
    view, found = Layers.LayerView(array, first), np.zeros(SHAPE, array.dtype)
    part, where = view.within(SHAPE)
    found[where] = part
    np.testing.assert_array_equal(found, expected)
    for axis in range(3):
        for index in range(SHAPE[axis]):
            plane = np.zeros_like(expected.take(index, axis))
            part, onPlane = view.onSlice(SHAPE, axis, index)
            plane[onPlane] = part
            np.testing.assert_array_equal(plane, expected.take(index, axis))


def test_a_layer_that_is_made_larger_or_smaller_keeps_its_voxels_in_place(scene):
    affine = GEOMETRIES["oblique"]
    volumeNode, node = addVolume(np.zeros(SHAPE, np.int16), affine), addSegmentation(None, "plate")
    labels = twoStructures(affine) == 2
    paint(node, "plate", labels, affine)
    segment, layer = node.GetSegmentation().GetSegment("plate"), Layers.layerOf(node, "plate")
    extent = layer.GetExtent()
    for larger in ((0, 8, 0, 10, 0, 6), (-5, 20, -1, 12, -3, 9)):
        segment.AddRepresentation(Layers.LABELMAP, Layers.resizedLayer(layer, larger, layer))
        np.testing.assert_array_equal(segmentVoxelsByPoint(node, "plate", volumeNode), labels)
    shrunk = Layers.resizedLayer(Layers.layerOf(node, "plate"), extent, layer)
    np.testing.assert_array_equal(Layers.arrayFromLayer(shrunk), Layers.arrayFromLayer(layer))
    assert not Layers.arrayFromLayer(Layers.resizedLayer(layer, (30, 33, 30, 33, 30, 33), layer)).any()


def test_label_values_become_an_image_on_the_grid_of_the_volume_or_of_a_layer(scene):
    affine = GEOMETRIES["oblique left-handed"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[2] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # (i, j, k) -> (k, -i, j)
    node = addSegmentation(volumeNode, "turned", "new")
    node.SetAndObserveTransformNodeID(addTransform(rotation((0, 1, 1), 15)).GetID())
    volumeNode.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    paint(node, "turned", np.ones((11, 9, 7), bool), affine @ np.linalg.inv(turn))
    part = np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(np.uint8)
    expected = np.zeros(SHAPE, bool)
    expected[4:6, 1:4, 3:7] = part
    for like in (None, Layers.layerOf(node, "turned")):
        image = Layers.orientedImage(part, (4, 1, 3), volumeNode, node, like)
        segment = node.GetSegmentation().GetSegment("new")
        segment.AddRepresentation(Layers.LABELMAP, image)
        segment.SetLabelValue(1)
        np.testing.assert_array_equal(segmentVoxelsByPoint(node, "new", volumeNode), expected)
        assert Layers.gridMap(image, node, volumeNode) is not None


def test_a_layer_between_the_voxels_of_the_volume_has_no_place_in_its_indices(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = 0.3, 0, 0
    node = addSegmentation(None, "a")
    paint(node, "a", np.ones((3, 3, 3), bool), shifted)
    assert Layers.layerView(Layers.layerOf(node, "a"), node, volumeNode) is None
    with pytest.raises(InputError, match='Segment "a" of "segmentation" lies on another grid'):
        Layers.checkGrid(node, volumeNode)


def test_a_segmentation_without_voxels_can_be_written_and_takes_over_the_grid(scene):
    elsewhere = addVolume(np.zeros((4, 4, 4)), affineOf(np.eye(3), (3, 3, 3)))
    volumeNode, node = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES["oblique"]), addSegmentation(elsewhere, "a")
    Layers.checkGrid(node, volumeNode)
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volumeNode


def test_a_segment_that_is_gone_or_has_no_voxels_of_its_own_is_refused(scene):
    node = addSegmentation(None, "a")
    with pytest.raises(InputError, match='"segmentation" has no segment "b"'):
        Layers.segmentOf(node, "b")
    node.GetSegmentation().GetSegment("a").RemoveRepresentation(Layers.LABELMAP)
    with pytest.raises(InputError, match='"segmentation" holds no voxels; create its binary labelmap'):
        Layers.layerOf(node, "a")
