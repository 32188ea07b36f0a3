"""A volume in each of the geometries, and segments to write into."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    addVolume,
    ball,
    paint,
)
from Testing.Extension.writing import OBLIQUE


@pytest.fixture(params=GEOMETRIES)
def aVolumeNode(request, scene):
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return addVolume(values, GEOMETRIES[request.param])


@pytest.fixture
def volumeNode(scene):
    return addVolume(np.random.default_rng(5).integers(0, 100, SHAPE).astype(np.int16), OBLIQUE, "CT")


@pytest.fixture
def aBall():
    return ball(SHAPE, OBLIQUE, 4.0)


@pytest.fixture
def node(volumeNode, aBall):
    """Three segments in one layer: a ball, the block below it, and an empty one."""
    node = addSegmentation(volumeNode, "ball", "block", "empty")
    block = np.zeros(SHAPE, bool)
    block[:, 7:, 2:7] = True
    paint(node, "block", block, OBLIQUE)
    paint(node, "ball", aBall & ~block, OBLIQUE)
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    return node


@pytest.fixture
def writer(node, volumeNode):
    return SegmentWriter(node, volumeNode)


@pytest.fixture
def overlapped(node, volumeNode):
    """`node` with a segment in a layer of its own that overlaps all others, and one that is hidden."""
    for name in ("over", "hidden"):
        node.GetSegmentation().AddEmptySegment(name, name)
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 2:9, 1:8] = True
    paint(node, "over", mask, OBLIQUE)
    mask[:] = False
    mask[1:6, 4:, :4] = True
    paint(node, "hidden", mask, OBLIQUE)
    node.GetDisplayNode().SetSegmentVisibility("hidden", False)
    assert node.GetSegmentation().GetNumberOfLayers() > 1
    return node
