"""Slices of volumes in real slice views."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from FewShotSegSlicer.Scene import SliceViews
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addVolume,
    affineOf,
    rotation,
    worldOf,
)

VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


def sliceNode(name):
    return slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()


def test_a_view_that_jumped_to_a_slice_views_that_slice(aVolumeNode):
    for axis in range(3):
        for index in range(SHAPE[axis]):
            SliceViews.jumpToSlice(aVolumeNode, axis, index)
            views = [sliceNode(name) for name in VIEWS]
            assert (axis, index) in [SliceViews.viewedSlice(aVolumeNode, view) for view in views]


def test_a_given_view_is_turned_to_show_a_slice_and_left_alone_where_it_does_already(aVolumeNode):
    red = sliceNode("Red")
    for axis in (2, 1, 0):
        SliceViews.jumpToSlice(aVolumeNode, axis, 4, red)
        assert SliceViews.viewedSlice(aVolumeNode, red) == (axis, 4)
        rasFromSlice = slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3]
        np.testing.assert_allclose(rasFromSlice.T @ rasFromSlice, np.eye(3), atol=1e-9)
        if axis != 2:  # of another one before, so it had to be turned
            assert SliceViews.sliceObliqueness(aVolumeNode, red) == pytest.approx(0, abs=1e-6)
        before = slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3].copy()
        SliceViews.jumpToSlice(aVolumeNode, axis, 2, red)
        assert SliceViews.viewedSlice(aVolumeNode, red) == (axis, 2)
        np.testing.assert_array_equal(slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3], before)


def test_a_plane_beside_the_volume_views_no_slice(scene):
    node = addVolume(np.zeros(SHAPE), GEOMETRIES["RAS"])
    red = sliceNode("Red")
    low, high = (worldOf(node, (0, 0, k))[2] for k in (-0.5, SHAPE[0] - 0.5))
    for offset, index in ((low - 0.1, None), (low + 0.1, 0), (high - 0.1, SHAPE[0] - 1), (high + 0.1, None)):
        red.SetSliceOffset(offset)
        assert SliceViews.viewedSlice(node, red) == (None if index is None else (0, index))


@pytest.mark.parametrize("degrees", [0, 1.5, 30, 44])
def test_the_obliqueness_is_the_angle_by_which_the_volume_is_turned(scene, degrees):
    node = addVolume(np.zeros(SHAPE), affineOf(rotation((1, 0, 0), degrees)))
    assert SliceViews.sliceObliqueness(node, sliceNode("Red")) == pytest.approx(degrees, abs=1e-6)
    assert SliceViews.sliceObliqueness(node, sliceNode("Yellow")) == pytest.approx(0, abs=1e-6)


def test_in_an_oblique_view_the_slice_under_the_middle_of_the_view_is_meant(scene):
    node = addVolume(np.zeros((40, 60, 50)), affineOf(rotation((1, 0, 0), 30), (1, 1, 1), (0, 0, 0)))
    red = sliceNode("Red")
    for voxel in ((25, 10, 5), (25, 30, 20), (10, 50, 33)):
        r, a, s = worldOf(node, voxel)
        red.JumpSliceByCentering(r, a, s)
        assert SliceViews.viewedSlice(node, red) == (0, voxel[2])
