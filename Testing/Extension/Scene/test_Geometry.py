"""Where voxels lie in the world, compared to VTK."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Geometry, Segmentations, SliceViews, Volumes
from Testing.Extension.geometries import anyAffine, anyTransform, fewExamples
from Testing.Extension.nodes import (
    SHAPE,
    addSegmentation,
    addTransform,
    addVolume,
    addWarp,
    worldOf,
)


@fewExamples
@given(affine=anyAffine(), outer=anyTransform(), inner=anyTransform(), depth=st.integers(0, 2))
def test_voxels_lie_where_vtk_places_them_under_any_linear_transforms(scene, affine, outer, inner, depth):
    node = addVolume(np.zeros(SHAPE, np.int16), affine)
    if depth:
        parent = addTransform(outer)
        node.SetAndObserveTransformNodeID((addTransform(inner, parent) if depth == 2 else parent).GetID())
    rasFromIjk = Geometry.rasFromIjk(node)
    for corner in ((0, 0, 0), (8, 0, 0), (0, 10, 0), (0, 0, 6), (8, 10, 6)):
        assert (rasFromIjk @ [*corner, 1])[:3] == pytest.approx(worldOf(node, corner), abs=1e-6)


def test_a_warp_is_refused_by_name_also_above_a_linear_transform(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    warp = addWarp()
    for parent in (warp, addTransform(np.eye(4), warp)):
        node.SetAndObserveTransformNodeID(parent.GetID())
        with pytest.raises(InputError, match=r'"CT" is under the non-linear transform "(warp|moved)"; harden'):
            Volumes.volumeFromNode(node)


def test_a_transform_that_flattens_space_is_refused(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    node.SetAndObserveTransformNodeID(addTransform(np.diag([1.0, 1, 0, 1])).GetID())
    with pytest.raises(InputError, match='"CT" is flattened'):
        Geometry.rasFromIjk(node)


def test_a_slice_that_is_not_there_is_refused(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    with pytest.raises(InputError, match='"CT" has the slices k=0 to 6, got k=7'):
        SliceViews.jumpToSlice(node, 0, 7)
    with pytest.raises(InputError, match="axis is 0"):
        Segmentations.annotatedSlices(addSegmentation(node), node, 3)


def test_the_voxels_are_those_of_the_node_and_not_a_copy(aVolumeNode):
    voxels = Geometry.voxelsOf(aVolumeNode)
    assert voxels.shape == Geometry.shapeOf(aVolumeNode) == SHAPE
    for i, j, k in ((0, 0, 0), (8, 10, 6), (3, 5, 2)):
        voxels[k, j, i] = 100 * k + 10 * j + i
        assert aVolumeNode.GetImageData().GetScalarComponentAsDouble(i, j, k, 0) == 100 * k + 10 * j + i


@pytest.mark.parametrize(("axis", "shape"), [(0, (11, 9)), (1, (7, 9)), (2, (7, 11))])
def test_a_slice_that_is_there_has_the_two_other_axes_as_rows_and_columns(scene, axis, shape):
    node = addVolume(np.zeros(SHAPE), np.eye(4))
    assert Geometry.checkedSlice(node, axis, SHAPE[axis] - 1) == shape
    for index in (-1, SHAPE[axis]):
        with pytest.raises(InputError, match=f"={index}"):
            Geometry.checkedSlice(node, axis, index)


def test_the_world_of_a_node_is_that_of_all_transforms_above_it(scene):
    node = addSegmentation()
    assert (Geometry.worldFromNode(node) == np.eye(4)).all()
    outer, inner = np.diag([2.0, 1, 1, 1]), np.eye(4)
    inner[:3, 3] = 1, 2, 3
    node.SetAndObserveTransformNodeID(addTransform(inner, addTransform(outer)).GetID())
    np.testing.assert_allclose(Geometry.worldFromNode(node), outer @ inner)
