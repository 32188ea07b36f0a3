from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import slicer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegSlicer.Scene import Scene
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    addTransform,
    addVolume,
    addWarp,
    affineOf,
    ball,
    paint,
    rotation,
    segmentVoxels,
    segmentVoxelsByPoint,
    surfaceOf,
    worldOf,
)

VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}

fewExamples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
angles = st.floats(-180, 180)
spacings = st.floats(0.2, 8)
offsets = st.floats(-300, 300)


@st.composite
def anyAffine(draw):
    """Turned, anisotropic, maybe flipped, maybe sheared."""
    axis = draw(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1))
    flips = np.diag(draw(st.tuples(*[st.sampled_from([-1, 1])] * 3)))
    shear = np.eye(3)
    shear[0, 1], shear[1, 2] = draw(st.floats(-0.3, 0.3)), draw(st.floats(-0.3, 0.3))
    directions = rotation(axis, draw(angles)) @ flips @ shear
    return affineOf(directions, [draw(spacings) for _ in range(3)], [draw(offsets) for _ in range(3)])


@st.composite
def anyTransform(draw):
    """Turned, moved, maybe mirrored and scaled, as a (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((1, -2, 0.5), draw(angles)) * [draw(st.sampled_from([-1, 1])), 1, draw(st.floats(0.5, 2))]
    matrix[:3, 3] = [draw(offsets) for _ in range(3)]
    return matrix


@pytest.fixture(params=GEOMETRIES)
def aVolumeNode(request, scene):
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return addVolume(values, GEOMETRIES[request.param])


def sliceNode(name):
    return slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()


# ------------------------------------------------------------------------------------------------------------- volumes


@fewExamples
@given(affine=anyAffine(), outer=anyTransform(), inner=anyTransform(), depth=st.integers(0, 2))
def test_voxels_lie_where_vtk_places_them_under_any_linear_transforms(scene, affine, outer, inner, depth):
    node = addVolume(np.zeros(SHAPE, np.int16), affine)
    if depth:
        parent = addTransform(outer)
        node.SetAndObserveTransformNodeID((addTransform(inner, parent) if depth == 2 else parent).GetID())
    rasFromIjk = Scene.rasFromIjk(node)
    for corner in ((0, 0, 0), (8, 0, 0), (0, 10, 0), (0, 0, 6), (8, 10, 6)):
        assert (rasFromIjk @ [*corner, 1])[:3] == pytest.approx(worldOf(node, corner), abs=1e-6)
    np.testing.assert_allclose(Scene.ijkFromRas(node) @ rasFromIjk, np.eye(4), atol=1e-9)


def test_a_volume_has_the_voxels_of_its_node(aVolumeNode):
    volume = Scene.volumeFromNode(aVolumeNode)
    assert volume.shape == SHAPE
    for i, j, k in ((0, 0, 0), (8, 10, 6), (3, 5, 2)):
        assert volume.array[k, j, i] == aVolumeNode.GetImageData().GetScalarComponentAsDouble(i, j, k, 0)
    np.testing.assert_allclose(volume.affine, Scene.rasFromIjk(aVolumeNode))


def test_a_warp_is_refused_by_name_also_above_a_linear_transform(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    warp = addWarp()
    for parent in (warp, addTransform(np.eye(4), warp)):
        node.SetAndObserveTransformNodeID(parent.GetID())
        with pytest.raises(InputError, match=r'"CT" is under the non-linear transform "(warp|moved)"; harden'):
            Scene.volumeFromNode(node)


def test_a_transform_that_flattens_space_is_refused(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    node.SetAndObserveTransformNodeID(addTransform(np.diag([1.0, 1, 0, 1])).GetID())
    with pytest.raises(InputError, match='"CT" is flattened'):
        Scene.rasFromIjk(node)


def test_what_is_no_scalar_volume_is_refused_with_a_way_out(scene):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(InputError, match='"nothing" has no voxels; load'):
        Scene.volumeFromNode(empty)
    colour = slicer.util.addVolumeFromArray(
        np.zeros((*SHAPE, 3), np.uint8), name="photo", nodeClassName="vtkMRMLVectorVolumeNode"
    )
    with pytest.raises(InputError, match=r'"photo" has 3 values per voxel.*Vector to Scalar'):
        Scene.volumeFromNode(colour)
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(InputError, match='"CT": 1 voxel is not a finite number'):
        Scene.volumeFromNode(addVolume(array, np.eye(4), "CT"))


def test_the_volumes_of_a_sequence_come_in_order_and_under_the_transform_of_what_is_shown(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for number in range(3):
        node = addVolume(np.full(SHAPE, number, np.int16), GEOMETRIES["oblique"])
        sequence.SetDataNodeAtValue(node, str(number))
        scene.RemoveNode(node)
    for number, volume in Scene.volumesInSequence(sequence):
        assert (volume.array == number).all()
        np.testing.assert_allclose(volume.affine, GEOMETRIES["oblique"], atol=1e-9)

    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    with pytest.raises(InputError, match="has no sequence"):
        list(Scene.volumesInSequence(browser))
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(addVolume(np.zeros(SHAPE), np.eye(4)), sequence, False)
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    browser.GetProxyNode(sequence).SetAndObserveTransformNodeID(addTransform(shift).GetID())
    numbers, volumes = zip(*Scene.volumesInSequence(browser), strict=True)
    assert numbers == (0, 1, 2)
    np.testing.assert_allclose(volumes[2].affine, shift @ GEOMETRIES["oblique"], atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- slices


def test_a_view_that_jumped_to_a_slice_views_that_slice(aVolumeNode):
    for axis in range(3):
        for index in range(SHAPE[axis]):
            Scene.jumpToSlice(aVolumeNode, axis, index)
            views = [sliceNode(name) for name in VIEWS]
            assert (axis, index) in [Scene.viewedSlice(aVolumeNode, view) for view in views]


def test_a_given_view_is_turned_to_show_a_slice_and_left_alone_where_it_does_already(aVolumeNode):
    red = sliceNode("Red")
    for axis in (2, 1, 0):
        Scene.jumpToSlice(aVolumeNode, axis, 4, red)
        assert Scene.viewedSlice(aVolumeNode, red) == (axis, 4)
        before = slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3].copy()
        Scene.jumpToSlice(aVolumeNode, axis, 2, red)
        assert Scene.viewedSlice(aVolumeNode, red) == (axis, 2)
        np.testing.assert_array_equal(slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3], before)


def test_the_offset_of_a_slice_is_that_of_the_view_that_jumped_there(aVolumeNode):
    for axis in range(3):
        red = sliceNode("Red")
        Scene.jumpToSlice(aVolumeNode, axis, 3, red)
        assert Scene.sliceOffset(aVolumeNode, axis, 3, red) == pytest.approx(red.GetSliceOffset(), abs=1e-6)


def test_without_a_view_the_offset_is_the_coordinate_along_the_nearest_anatomical_direction(scene):
    node = addVolume(np.zeros(SHAPE), GEOMETRIES["LPS"])
    assert Scene.sliceOffset(node, 0, 3) == pytest.approx(worldOf(node, (0, 0, 3))[2])
    assert Scene.sliceOffset(node, 1, 3) == pytest.approx(worldOf(node, (0, 3, 0))[1])
    assert Scene.sliceOffset(node, 2, 3) == pytest.approx(worldOf(node, (3, 0, 0))[0])


def test_a_plane_beside_the_volume_views_no_slice(scene):
    node = addVolume(np.zeros(SHAPE), GEOMETRIES["RAS"])
    red = sliceNode("Red")
    low, high = (worldOf(node, (0, 0, k))[2] for k in (-0.5, SHAPE[0] - 0.5))
    for offset, index in ((low - 0.1, None), (low + 0.1, 0), (high - 0.1, SHAPE[0] - 1), (high + 0.1, None)):
        red.SetSliceOffset(offset)
        assert Scene.viewedSlice(node, red) == (None if index is None else (0, index))


@pytest.mark.parametrize("degrees", [0, 1.5, 30, 44])
def test_the_obliqueness_is_the_angle_by_which_the_volume_is_turned(scene, degrees):
    node = addVolume(np.zeros(SHAPE), affineOf(rotation((1, 0, 0), degrees)))
    assert Scene.sliceObliqueness(node, sliceNode("Red")) == pytest.approx(degrees, abs=1e-6)
    assert Scene.sliceObliqueness(node, sliceNode("Yellow")) == pytest.approx(0, abs=1e-6)


def test_in_an_oblique_view_the_slice_under_the_middle_of_the_view_is_meant(scene):
    node = addVolume(np.zeros((40, 60, 50)), affineOf(rotation((1, 0, 0), 30), (1, 1, 1), (0, 0, 0)))
    red = sliceNode("Red")
    for voxel in ((25, 10, 5), (25, 30, 20), (10, 50, 33)):
        r, a, s = worldOf(node, voxel)
        red.JumpSliceByCentering(r, a, s)
        assert Scene.viewedSlice(node, red) == (0, voxel[2])


def test_an_aligned_view_shows_the_slice_it_viewed_and_nothing_of_others(aVolumeNode):
    for name in VIEWS:
        view = sliceNode(name)
        view.JumpSliceByCentering(*worldOf(aVolumeNode, (4, 5, 3)))
        viewed = Scene.viewedSlice(aVolumeNode, view)
        Scene.alignView(aVolumeNode, view)
        assert Scene.viewedSlice(aVolumeNode, view) == viewed
        assert Scene.sliceObliqueness(aVolumeNode, view) == pytest.approx(0, abs=1e-6)
        rasFromSlice = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, :3]
        np.testing.assert_allclose(rasFromSlice.T @ rasFromSlice, np.eye(3), atol=1e-9)
        view.JumpSliceByCentering(5000, 5000, 5000)
        Scene.alignView(aVolumeNode, view)
        assert Scene.viewedSlice(aVolumeNode, view) == (viewed[0], SHAPE[viewed[0]] // 2)


@pytest.mark.parametrize("viewName", VIEWS)
@pytest.mark.parametrize("geometry", [*GEOMETRIES, "moved"])
def test_a_click_on_a_voxel_becomes_a_prompt_at_that_voxel(scene, clickIn, geometry, viewName):
    volumeNode = addVolume(np.zeros((20, 24, 28), np.int16), GEOMETRIES.get(geometry, GEOMETRIES["oblique"]))
    if geometry == "moved":
        turn = np.eye(4)
        turn[:3, :3], turn[:3, 3] = rotation((0.2, 1, -0.4), 12), (5, -3, 8)
        volumeNode.SetAndObserveTransformNodeID(addTransform(turn).GetID())
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    voxel_ijk, axis = (13, 9, 7), {"Red": 0, "Green": 1, "Yellow": 2}[viewName]
    Scene.jumpToSlice(volumeNode, axis, voxel_ijk[2 - axis], sliceNode(viewName))
    Scene.alignView(volumeNode, sliceNode(viewName))
    clicked_ras = _placedByClick(scene, clickIn, viewName, worldOf(volumeNode, voxel_ijk))

    viewed = Scene.viewedSlice(volumeNode, sliceNode(viewName))
    assert viewed == (axis, voxel_ijk[2 - axis])
    prompt = Scene.promptFromRas(volumeNode, *viewed, [clicked_ras], [1])
    assert np.rint(prompt.points_ijk[0]).astype(int).tolist() == list(voxel_ijk)
    assert prompt.points_ijk[0, 2 - axis] == voxel_ijk[2 - axis]


def _placedByClick(scene, clickIn, viewName, at_ras):
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    markups.CreateDefaultDisplayNodes()
    slicer.modules.markups.logic().SetActiveList(markups)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    clickIn(viewName, at_ras)
    assert markups.GetNumberOfDefinedControlPoints() == 1
    position = [0.0, 0.0, 0.0]
    markups.GetNthControlPointPositionWorld(0, position)
    return position


def test_points_beside_the_slice_move_onto_it_along_its_axis(aVolumeNode):
    beside_ijk = np.array([[2.2, 3.4, 1.3], [5.0, 1.0, 4.0]])
    beside_ras = np.array([worldOf(aVolumeNode, point) for point in beside_ijk])
    for axis in range(3):
        expected_ijk = beside_ijk.copy()
        expected_ijk[:, 2 - axis] = 3
        expected_ras = [worldOf(aVolumeNode, point) for point in expected_ijk]
        np.testing.assert_allclose(Scene.projectedOntoSlice(aVolumeNode, axis, 3, beside_ras), expected_ras, atol=1e-6)
        prompt = Scene.promptFromRas(aVolumeNode, axis, 3, beside_ras, [1, 0], box_ras=beside_ras)
        np.testing.assert_allclose(prompt.points_ijk, expected_ijk, atol=1e-6)
        np.testing.assert_allclose(prompt.box_ijk, np.sort(expected_ijk, axis=0), atol=1e-6)
        assert prompt.point_labels.tolist() == [1, 0]


def test_a_slice_that_is_not_there_is_refused(scene):
    node = addVolume(np.zeros(SHAPE), np.eye(4), "CT")
    with pytest.raises(InputError, match='"CT" has the slices k=0 to 6, got k=7'):
        Scene.jumpToSlice(node, 0, 7)
    with pytest.raises(InputError, match="axis is 0"):
        Scene.annotatedSlices(addSegmentation(node), node, 3)


# ------------------------------------------------------------------------------------------------------- segmentations


def twoStructures(affine):
    """A ball and a plate beside it, as labels (K, J, I)."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, affine, 3.0)] = 1
    labels[2:5, 1:3, 6:] = 2
    return labels


def test_a_labelmap_becomes_a_segmentation_and_comes_back_as_it_was(aVolumeNode):
    affine = Scene.rasFromIjk(aVolumeNode)
    labels = twoStructures(affine)
    node = Scene.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball", 2: "plate"}), aVolumeNode)
    for value, name in ((1, "ball"), (2, "plate")):
        segmentId = Scene.segmentsByName(node)[name]
        np.testing.assert_array_equal(segmentVoxels(node, segmentId, aVolumeNode), labels == value)
    back = Scene.labelmapFromSegmentation(node, aVolumeNode)
    np.testing.assert_array_equal(back.volume.array, labels)
    assert back.structures == {1: "ball", 2: "plate"}
    np.testing.assert_allclose(back.volume.affine, affine)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_slices_of_a_segment_are_slices_of_its_voxels(aVolumeNode):
    labels = twoStructures(Scene.rasFromIjk(aVolumeNode))
    node = addSegmentation(aVolumeNode, "ball", "plate")
    for value, segmentId in ((1, "ball"), (2, "plate")):
        paint(node, segmentId, labels == value, Scene.rasFromIjk(aVolumeNode))
    for axis in range(3):
        for index in range(SHAPE[axis]):
            for value, segmentId in ((1, "ball"), (2, "plate")):
                np.testing.assert_array_equal(
                    Scene.sliceMask(node, segmentId, aVolumeNode, axis, index), labels.take(index, axis) == value
                )
        others = tuple({0, 1, 2} - {axis})
        assert Scene.annotatedSlices(node, aVolumeNode, axis) == np.flatnonzero(labels.any(others)).tolist()
        plate = np.flatnonzero((labels == 2).any(others)).tolist()
        assert Scene.annotatedSlices(node, aVolumeNode, axis, ["plate"]) == plate


@fewExamples
@given(affine=anyAffine(), ofVolume=anyTransform(), ofSegmentation=anyTransform())
def test_transforms_of_volume_and_segmentation_may_differ(scene, affine, ofVolume, ofSegmentation):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    volumeNode.SetAndObserveTransformNodeID(addTransform(ofVolume).GetID())
    segmentationNode = addSegmentation()
    segmentationNode.SetAndObserveTransformNodeID(addTransform(ofSegmentation).GetID())
    labels = twoStructures(affine)
    labelmap = Labelmap(Volume(labels, Scene.rasFromIjk(volumeNode)), {1: "ball", 2: "plate"})
    Scene.segmentationFromLabelmap(labelmap, volumeNode, segmentationNode)
    np.testing.assert_array_equal(Scene.labelmapFromSegmentation(segmentationNode, volumeNode).volume.array, labels)
    ballId = Scene.segmentsByName(segmentationNode)["ball"]
    np.testing.assert_array_equal(segmentVoxelsByPoint(segmentationNode, ballId, volumeNode), labels == 1)


def test_a_new_segmentation_moves_with_its_volume_and_lies_beside_it_in_the_hierarchy(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES["oblique"])
    transform = addTransform(rotation((0, 0, 1), 40))
    volumeNode.SetAndObserveTransformNodeID(transform.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volumeNode), study)
    labels = twoStructures(GEOMETRIES["oblique"])
    labelmap = Labelmap(Volume(labels, Scene.rasFromIjk(volumeNode)), {1: "ball", 2: "plate"})
    node = Scene.segmentationFromLabelmap(labelmap, volumeNode, name="result")
    assert node.GetName() == "result"
    assert node.GetParentTransformNode() is transform
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([1.0, -1, 2, 1])))
    np.testing.assert_array_equal(Scene.labelmapFromSegmentation(node, volumeNode).volume.array, labels)


def test_segments_listed_in_another_index_order_are_read_voxel_by_voxel(scene):
    affine = GEOMETRIES["oblique"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    labels = twoStructures(affine)
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[2] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # (i, j, k) -> (k, -i, j)
    node = addSegmentation(None, "plate")
    paint(node, "plate", labels.transpose(1, 2, 0)[:, ::-1] == 2, affine @ np.linalg.inv(turn))
    np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), labels == 2)  # the test turns it right
    np.testing.assert_array_equal(Scene.labelmapFromSegmentation(node, volumeNode).volume.array == 1, labels == 2)
    for axis in range(3):
        mask = Scene.sliceMask(node, "plate", volumeNode, axis, 3)
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
    mask = Scene.labelmapFromSegmentation(node, volumeNode).volume.array == 1
    assert mask[distance < 12 - 0.5].all()
    assert not mask[distance > 12 + 0.5].any()
    assert 0 < mask.sum() < mask.size
    for axis in range(3):
        np.testing.assert_array_equal(Scene.sliceMask(node, "ball", volumeNode, axis, 9), mask.take(9, axis))
        found = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))).tolist()
        assert Scene.annotatedSlices(node, volumeNode, axis) == found


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
    assert (Scene.labelmapFromSegmentation(node, volumeNode, ["all"]).volume.array == 1).all()
    expected = np.zeros(SHAPE, bool)
    expected[:2, 0, 0] = True
    np.testing.assert_array_equal(
        Scene.labelmapFromSegmentation(node, volumeNode, ["corner"]).volume.array == 1, expected
    )
    assert Scene.annotatedSlices(node, volumeNode, 0, ["corner"]) == [0, 1]
    assert Scene.annotatedSlices(node, volumeNode, 0, ["outside"]) == []


def test_an_empty_segmentation_has_no_structures_and_no_annotated_slice(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    assert Scene.labelmapFromSegmentation(addSegmentation(), volumeNode).structures == {}
    node = addSegmentation(None, "empty")
    assert Scene.labelmapFromSegmentation(node, volumeNode).structures == {1: "empty"}
    assert Scene.annotatedSlices(node, volumeNode, 1) == []
    assert not Scene.sliceMask(node, "empty", volumeNode, 0, 3).any()


def test_where_segments_overlap_the_later_is_kept_and_the_log_says_so(scene, caplog):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    node = addSegmentation(volumeNode, "first", "second")
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[1:4], second[3:5] = True, True
    paint(node, "first", first, np.eye(4))
    paint(node, "second", second, np.eye(4))
    labels = Scene.labelmapFromSegmentation(node, volumeNode).volume.array
    np.testing.assert_array_equal(labels, np.where(second, 2, first))
    assert f"overlap in {SHAPE[1] * SHAPE[2]} voxels" in caplog.text


def test_two_segments_of_one_name_stay_two_structures(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    node = addSegmentation(volumeNode, "a", "b")
    for segmentId in ("a", "b"):
        node.GetSegmentation().GetSegment(segmentId).SetName("cyst")
    assert Scene.labelmapFromSegmentation(node, volumeNode).structures == {1: "cyst", 2: "cyst (2)"}
    assert Scene.segmentsByName(node) == {"cyst": "a"}


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
    returned = Scene.segmentationFromLabelmap(Labelmap(Volume(labels, affine), structures), volumeNode, node)
    assert returned is node
    assert list(Scene.segmentsByName(node)) == ["own", "plate", "ball", "nowhere"]
    np.testing.assert_array_equal(segmentVoxels(node, "own", volumeNode), own)
    np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), labels == 2)
    np.testing.assert_array_equal(segmentVoxels(node, Scene.segmentsByName(node)["ball"], volumeNode), labels == 1)
    assert not segmentVoxels(node, Scene.segmentsByName(node)["nowhere"], volumeNode).any()


def test_voxels_without_a_named_structure_are_left_out(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4))
    labels = np.zeros(SHAPE, np.uint16)
    labels[1], labels[2] = 300, 5
    node = Scene.segmentationFromLabelmap(Labelmap(Volume(labels, np.eye(4)), {300: "kept"}), volumeNode)
    np.testing.assert_array_equal(segmentVoxels(node, Scene.segmentsByName(node)["kept"], volumeNode), labels == 300)
    assert (Scene.labelmapFromSegmentation(node, volumeNode).volume.array > 0).sum() == (labels == 300).sum()


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
    Scene.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball", 2: "new"}), volumeNode, node)
    fresh = Scene.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball"}), volumeNode)
    fresh.CreateClosedSurfaceRepresentation()
    freshId = Scene.segmentsByName(fresh)["ball"]
    np.testing.assert_allclose(surfaceOf(node, "ball"), surfaceOf(fresh, freshId))
    np.testing.assert_array_equal(surfaceOf(node, "other"), other)


def test_a_labelmap_of_another_grid_changes_nothing(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4), "CT")
    node = addSegmentation(volumeNode, "ball")
    nodes = scene.GetNumberOfNodes()
    labelmap = Labelmap(Volume(np.ones(SHAPE, np.uint8), affineOf(np.eye(3), (1, 1, 1.5))), {1: "ball", 2: "more"})
    for target in (node, None):
        with pytest.raises(InputError, match='does not lie on the grid of "CT"'):
            Scene.segmentationFromLabelmap(labelmap, volumeNode, target)
    assert list(Scene.segmentsByName(node)) == ["ball"]
    assert scene.GetNumberOfNodes() == nodes


def test_a_segmentation_of_another_grid_is_not_written_to(scene):
    other = affineOf(np.eye(3), (1, 1, 1.5))
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), np.eye(4), "CT")
    node = addSegmentation(None, "mine")
    paint(node, "mine", np.ones(SHAPE, bool), other)
    labelmap = Labelmap(Volume(np.ones(SHAPE, np.uint8), np.eye(4)), {1: "ball"})
    with pytest.raises(InputError, match='Segment "mine" of "segmentation" lies on another grid than "CT"'):
        Scene.segmentationFromLabelmap(labelmap, volumeNode, node)
    assert list(Scene.segmentsByName(node)) == ["mine"]


def test_a_labelmap_in_another_index_order_is_written_voxel_by_voxel(scene):
    affine = GEOMETRIES["LPS"]
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), affine)
    labels = twoStructures(affine)
    flipped = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[0] - 1], [0, 0, 0, 1.0]])
    labelmap = Labelmap(Volume(labels[::-1], flipped), {1: "ball", 2: "plate"})
    node = Scene.segmentationFromLabelmap(labelmap, volumeNode)
    np.testing.assert_array_equal(Scene.labelmapFromSegmentation(node, volumeNode).volume.array, labels)


def test_a_saved_segmentation_is_loaded_as_it_was_by_slicer_and_by_the_library(aVolumeNode, tmp_path: Path):
    affine = Scene.rasFromIjk(aVolumeNode)
    labels = twoStructures(affine)
    node = Scene.segmentationFromLabelmap(Labelmap(Volume(labels, affine), {1: "ball", 2: "plate"}), aVolumeNode)
    path = tmp_path / "saved.seg.nrrd"
    assert slicer.util.saveNode(node, str(path))
    loaded = slicer.util.loadSegmentation(str(path))
    np.testing.assert_array_equal(Scene.labelmapFromSegmentation(loaded, aVolumeNode).volume.array, labels)
    colors = [n.GetSegmentation().GetSegment(Scene.segmentsByName(n)["ball"]).GetColor() for n in (node, loaded)]
    assert colors[0] == pytest.approx(colors[1], abs=1e-4)
    fromFile = load_labelmap(path)
    assert list(fromFile.structures.values()) == ["ball", "plate"]
    assert np.count_nonzero(fromFile.volume.array == 1) == np.count_nonzero(labels == 1)


# ------------------------------------------------------------------------------------------------------------ segments


def test_a_new_segment_is_in_progress_and_has_the_colour_of_its_name(scene):
    node = addSegmentation()
    segmentation = node.GetSegmentation()
    names = ["liver", "my structure", "tumor", "liver"]
    ids = [Scene.addSegment(node, name) for name in names]
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
        Scene.addSegment(node, "  ")


@pytest.fixture
def terminologies(scene, tmp_path, monkeypatch):
    """The terminology module of Slicer with three anatomical entries."""

    def code(meaning, value, **more):
        return {"CodeMeaning": meaning, "CodingSchemeDesignator": "SCT", "CodeValue": value, **more}

    sides = [code("Right", "24028007", **{"3dSlicerLabel": "right kidney"})]
    types = [
        code("Liver", "10200004", **{"3dSlicerLabel": "liver"}),
        code("Kidney", "64033007", Modifier=sides),
    ]
    context = {
        "SegmentationCategoryTypeContextName": Scene._ANATOMY,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [code("Anatomical Structure", "123037004", showAnatomy=True, Type=types)]},
    }
    path = tmp_path / "anatomy.term.json"
    path.write_text(json.dumps(context))
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    logic.LoadTerminologyFromFile(str(path))

    class Module:
        @staticmethod
        def logic():
            return logic

    monkeypatch.setattr(slicer.modules, "terminologies", Module, raising=False)


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("Liver", "10200004^Liver~^^"),
        ("right_kidney", "64033007^Kidney~SCT^24028007^Right"),
        ("kidney", "64033007^Kidney~^^"),
        ("phlogiston", "85756007^Tissue~^^"),
    ],
)
def test_a_new_segment_gets_the_terminology_of_its_name_where_slicer_knows_one(terminologies, name, codes):
    node = addSegmentation()
    segment = node.GetSegmentation().GetSegment(Scene.addSegment(node, name))
    assert codes in segment.GetTerminology()
    assert segment.GetName() == name
