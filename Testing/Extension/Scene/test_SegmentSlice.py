"""Slices of segments that share voxels."""

from __future__ import annotations

import itertools

import numpy as np

from FewShotSegSlicer.Scene.SegmentSlice import SegmentSlice


def voxelsOf(place: SegmentSlice) -> np.ndarray:
    voxels = np.zeros((3, 3, 3), bool)
    np.moveaxis(voxels, place.axis, 0)[place.index] = True
    return voxels


def test_slices_meet_where_they_share_a_voxel_of_the_volume_whatever_the_segment() -> None:
    places = [SegmentSlice(name, axis, index) for name in "ab" for axis in range(3) for index in range(3)]
    for one, other in itertools.product(places, places):
        assert one.meets(other) == bool((voxelsOf(one) & voxelsOf(other)).any())
