"""What masks are written into, and arrays that say what must come of it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    ownVoxels,
)

OBLIQUE = GEOMETRIES["oblique left-handed"]


def voxelsOf(node):
    return {segmentId: ownVoxels(node, segmentId) for segmentId in node.GetSegmentation().GetSegmentIDs()}


def assertSame(found, expected):
    assert list(found) == list(expected)
    for segmentId in expected:
        np.testing.assert_array_equal(found[segmentId], expected[segmentId], err_msg=segmentId)


def withSlice(mask, axis, index, plane):
    """A copy of a mask (K, J, I) with one slice replaced."""
    result = mask.copy()
    np.moveaxis(result, axis, 0)[index] = plane
    return result


def randomPlane(axis, seed=0, share=0.4):
    shape = tuple(n for a, n in enumerate(SHAPE) if a != axis)
    return np.random.default_rng(seed).random(shape) < share


def copyOf(node):
    copy = addSegmentation()
    copy.GetSegmentation().DeepCopy(node.GetSegmentation())
    for segmentId in node.GetSegmentation().GetSegmentIDs():
        copy.GetDisplayNode().SetSegmentVisibility(segmentId, node.GetDisplayNode().GetSegmentVisibility(segmentId))
    return copy


places = st.tuples(st.sampled_from(["ball", "block", "empty"]), st.integers(0, 2), st.integers(0, 5))


actions = st.lists(
    st.tuples(
        st.sampled_from(["live", "live", "live", "accept", "accept", "restore", "undo"]), places, st.integers(0, 9)
    ),
    max_size=12,
)
