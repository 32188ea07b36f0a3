"""Volume nodes as volumes of the library."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Geometry, Volumes
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addTransform,
    addVolume,
)


def test_a_volume_has_the_voxels_of_its_node(aVolumeNode):
    volume = Volumes.volumeFromNode(aVolumeNode)
    assert volume.shape == SHAPE
    for i, j, k in ((0, 0, 0), (8, 10, 6), (3, 5, 2)):
        assert volume.array[k, j, i] == aVolumeNode.GetImageData().GetScalarComponentAsDouble(i, j, k, 0)
    np.testing.assert_allclose(volume.affine, Geometry.rasFromIjk(aVolumeNode))


def test_what_is_no_scalar_volume_is_refused_with_a_way_out(scene):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(InputError, match='"nothing" has no voxels; load'):
        Volumes.volumeFromNode(empty)
    colour = slicer.util.addVolumeFromArray(
        np.zeros((*SHAPE, 3), np.uint8), name="photo", nodeClassName="vtkMRMLVectorVolumeNode"
    )
    with pytest.raises(InputError, match=r'"photo" has 3 values per voxel.*Vector to Scalar'):
        Volumes.volumeFromNode(colour)
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(InputError, match='"CT": 1 voxel has no value'):
        Volumes.volumeFromNode(addVolume(array, np.eye(4), "CT"))


def test_the_volumes_of_a_sequence_come_in_order_and_under_the_transform_of_what_is_shown(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for number in range(3):
        node = addVolume(np.full(SHAPE, number, np.int16), GEOMETRIES["oblique"])
        sequence.SetDataNodeAtValue(node, str(number))
        scene.RemoveNode(node)
    for number, volume in Volumes.volumesInSequence(sequence):
        assert (volume.array == number).all()
        np.testing.assert_allclose(volume.affine, GEOMETRIES["oblique"], atol=1e-9)

    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    with pytest.raises(InputError, match="has no sequence"):
        list(Volumes.volumesInSequence(browser))
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(addVolume(np.zeros(SHAPE), np.eye(4)), sequence, False)
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    browser.GetProxyNode(sequence).SetAndObserveTransformNodeID(addTransform(shift).GetID())
    numbers, volumes = zip(*Volumes.volumesInSequence(browser), strict=True)
    assert numbers == (0, 1, 2)
    np.testing.assert_allclose(volumes[2].affine, shift @ GEOMETRIES["oblique"], atol=1e-9)


def test_the_values_shown_black_and_white_are_those_of_the_display(scene):
    node = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(400, 40)
    assert Volumes.shownWindow(node) == (-160, 240)
    node.SetAndObserveDisplayNodeID(None)
    assert Volumes.shownWindow(node) is None
