from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import slicer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Segmentations, SliceViews
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    addTransform,
    addVolume,
    affineOf,
    ball,
    orientedImage,
    ownVoxels,
    paint,
    rotation,
    segmentVoxels,
    surfaceOf,
)

OBLIQUE = GEOMETRIES["oblique left-handed"]


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


# ------------------------------------------------------------------------------------------------- one slice, no others


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("segmentId", ["ball", "block", "empty"])
def test_a_live_mask_changes_one_slice_of_one_segment_and_restoring_brings_everything_back(
    writer, node, volumeNode, axis, segmentId
):
    before = voxelsOf(node)
    extent = node.GetBinaryLabelmapInternalRepresentation("ball").GetExtent()
    for seed in range(3):
        plane = randomPlane(axis, seed)
        writer.showLive(segmentId, axis, 3, plane)
        expected = {**before, segmentId: withSlice(before[segmentId], axis, 3, plane)}
        assertSame(voxelsOf(node), expected)
    writer.restore(segmentId, axis, 3)
    assertSame(voxelsOf(node), before)
    if segmentId == "ball":
        assert node.GetBinaryLabelmapInternalRepresentation("ball").GetExtent() == extent
    writer.restore(segmentId, axis, 3)  # nothing left to restore
    assertSame(voxelsOf(node), before)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("segmentId", ["ball", "block", "empty"])
def test_accepting_changes_one_slice_of_one_segment_and_undo_is_exact(writer, node, axis, segmentId):
    before, plane = voxelsOf(node), randomPlane(axis)
    accepted = {**before, segmentId: withSlice(before[segmentId], axis, 3, plane)}
    for _ in range(2):
        writer.showLive(segmentId, axis, 3, ~plane)
        writer.accept(segmentId, axis, 3, plane)
        assertSame(voxelsOf(node), accepted)
        assert writer.undo()
        assertSame(voxelsOf(node), before)
        assert not writer.undo()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("mode", ["none", "visible", "all"])
def test_many_slices_accepted_at_once_are_the_same_and_one_step(writer, node, axis, mode):
    writer.overwriteMode = mode
    before, planes = voxelsOf(node), {index: randomPlane(axis, seed=index) for index in (5, 1, 2)}
    for index, plane in planes.items():
        writer.accept("ball", axis, index, plane)
    oneByOne = voxelsOf(node)
    while writer.undo():
        pass
    for _ in range(2):
        writer.showLive("ball", axis, 2, ~planes[2])
        writer.acceptSlices("ball", axis, planes)
        assertSame(voxelsOf(node), oneByOne)
        assert writer.undo()
        assertSame(voxelsOf(node), before)
        assert not writer.undo()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_ball_written_slice_by_slice_is_the_ball(scene, geometry):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES[geometry])
    node = addSegmentation()
    outer = addTransform(rotation((1, 0.3, 0), 50))
    volumeNode.SetAndObserveTransformNodeID(outer.GetID())
    node.SetAndObserveTransformNodeID(addTransform(rotation((0, 1, 1), 15), outer).GetID())
    writer = SegmentWriter(node, volumeNode)
    mask = ball(SHAPE, GEOMETRIES[geometry], 4.5)
    for axis in range(3):
        segmentId = Segmentations.addSegment(node, f"ball along {axis}")
        for index in range(SHAPE[axis]):
            writer.showLive(segmentId, axis, index, mask.take(index, axis))
            writer.accept(segmentId, axis, index, mask.take(index, axis))
        np.testing.assert_array_equal(segmentVoxels(node, segmentId, volumeNode), mask)


def test_several_levels_are_undone_in_turn(writer, node, volumeNode):
    states = [voxelsOf(node)]
    for step in range(12):
        axis = step % 3
        writer.accept(("ball", "empty")[step % 2], axis, step % 5, randomPlane(axis, step))
        states.append(voxelsOf(node))
    for state in reversed(states[:-1]):
        assert writer.undo()
        assertSame(voxelsOf(node), state)
    assert not writer.undo()


def test_accepting_the_same_again_is_still_one_step(writer, node, volumeNode):
    plane = randomPlane(0)
    writer.accept("empty", 0, 2, plane)
    writer.accept("empty", 0, 2, plane)
    assert writer.undo()
    np.testing.assert_array_equal(Segmentations.sliceMask(node, "empty", volumeNode, 0, 2), plane)
    assert writer.undo()
    assert not Segmentations.sliceMask(node, "empty", volumeNode, 0, 2).any()


def test_undo_keeps_what_the_user_did_since(writer, node, volumeNode):
    before = voxelsOf(node)
    writer.accept("empty", 0, 2, randomPlane(0))
    segmentation = node.GetSegmentation()
    segmentation.GetSegment("empty").SetTag("prompts", "[]")
    segmentation.GetSegment("ball").SetColor(1, 0, 0)
    new = Segmentations.addSegment(node, "new")
    paint(node, new, np.ones(SHAPE, bool), OBLIQUE)
    assert writer.undo()
    assertSame(voxelsOf(node), {**before, new: np.ones(SHAPE, bool)})
    assert segmentation.GetSegment("ball").GetColor() == (1, 0, 0)
    assert segmentation.GetSegment("empty").HasTag("prompts")


def test_undo_passes_over_a_segment_that_was_removed(writer, node, volumeNode):
    writer.accept("empty", 0, 2, randomPlane(0))
    writer.accept("ball", 0, 2, randomPlane(0, 1))
    before = voxelsOf(node)
    node.GetSegmentation().RemoveSegment("ball")
    assert writer.undo()
    assertSame(voxelsOf(node), {i: before[i] for i in ("block", "empty")})
    assert writer.undo()
    assert not segmentVoxels(node, "empty", volumeNode).any()


# ------------------------------------------------------------------------------------------------------ other segments


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


def bySegmentEditor(node, volumeNode, segmentId, axis, index, plane, configure):
    """Erase and paint a slice with the logic of Slicer's Segment Editor, as its own effects do."""
    logic, settings_ = slicer.vtkSlicerSegmentEditorLogic(), slicer.vtkMRMLSegmentEditorNode()
    slicer.mrmlScene.AddNode(settings_)
    logic.SetSegmentEditorNode(settings_)
    settings_.SetAndObserveSegmentationNode(node)
    settings_.SetAndObserveSourceVolumeNode(volumeNode)
    settings_.SetSelectedSegmentID(segmentId)
    configure(settings_)
    old = ownVoxels(node, segmentId).take(index, axis)
    for mask, mode in ((old & ~plane, logic.ModificationModeRemove), (plane, logic.ModificationModeAdd)):
        image = orientedImage(withSlice(np.zeros(SHAPE, bool), axis, index, mask), OBLIQUE)
        logic.ModifySegmentByLabelmap(node, segmentId, image, mode, False, False)
    slicer.mrmlScene.RemoveNode(settings_)


def copyOf(node):
    copy = addSegmentation()
    copy.GetSegmentation().DeepCopy(node.GetSegmentation())
    for segmentId in node.GetSegmentation().GetSegmentIDs():
        copy.GetDisplayNode().SetSegmentVisibility(segmentId, node.GetDisplayNode().GetSegmentVisibility(segmentId))
    return copy


SETTINGS = [(mode, area) for mode in ("none", "visible", "all") for area in ("everywhere", "intensity")]
# Inside a segment the Segment Editor also erases beyond the range, and takes voxels from third segments that overlap.
INSIDE = [("node", segmentId, mode, "inside") for segmentId in ("ball", "empty") for mode in ("visible", "all")]


@pytest.mark.parametrize(
    ("start", "segmentId", "mode", "area"),
    [*(("overlapped", i, *s) for i in ("ball", "over", "empty") for s in SETTINGS), *INSIDE],
)
def test_accepting_is_what_the_segment_editor_does_with_the_same_settings(
    request, volumeNode, start, segmentId, mode, area
):
    node = request.getfixturevalue(start)
    reference = copyOf(node)
    writer = SegmentWriter(node, volumeNode)
    writer.overwriteMode = mode
    writer.editableInside = "block" if area == "inside" else None
    writer.editableIntensity = (20, 70) if area == "intensity" else None

    def configure(settings_):
        modes = {"none": "OverwriteNone", "visible": "OverwriteVisibleSegments", "all": "OverwriteAllSegments"}
        settings_.SetOverwriteMode(getattr(settings_, modes[mode]))
        if area == "inside":
            settings_.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
            settings_.SetMaskSegmentID("block")
        settings_.SetSourceVolumeIntensityMask(area == "intensity")
        settings_.SetSourceVolumeIntensityMaskRange(20, 70)

    states = [voxelsOf(node)]
    for axis, index in ((0, 3), (1, 8), (2, 4)):
        plane = randomPlane(axis, axis, 0.6)
        bySegmentEditor(reference, volumeNode, segmentId, axis, index, plane, configure)
        states.append(voxelsOf(reference))
        writer.showLive(segmentId, axis, index, plane)
        np.testing.assert_array_equal(ownVoxels(node, segmentId), states[-1][segmentId])
        writer.accept(segmentId, axis, index, plane)
        assertSame(voxelsOf(node), states[-1])
    for state in reversed(states[:-1]):
        assert writer.undo()
        assertSame(voxelsOf(node), state)


def test_inside_a_segment_that_keeps_its_voxels_nothing_beside_it_changes(overlapped, volumeNode):
    before = voxelsOf(overlapped)
    writer = SegmentWriter(overlapped, volumeNode)
    writer.editableInside = "block"
    plane = randomPlane(0)
    writer.showLive("over", 0, 3, plane)
    writer.accept("over", 0, 3, plane)
    area = before["block"][3]
    expected = withSlice(before["over"], 0, 3, np.where(area, plane, before["over"][3]))
    assertSame(voxelsOf(overlapped), {**before, "over": expected})


@pytest.mark.parametrize("mode", ["none", "all"])
def test_outside_the_intensity_range_nothing_changes_also_inside_a_segment(overlapped, volumeNode, mode):
    before = voxelsOf(overlapped)
    writer = SegmentWriter(overlapped, volumeNode)
    writer.overwriteMode, writer.editableInside, writer.editableIntensity = mode, "block", (20, 70)
    writer.accept("over", 1, 8, randomPlane(1))
    image = slicer.util.arrayFromVolume(volumeNode)
    fixed = (image < 20) | (image > 70)
    for segmentId, mask in voxelsOf(overlapped).items():
        np.testing.assert_array_equal(mask[fixed], before[segmentId][fixed])


def test_what_is_carved_out_of_a_segment_returns_to_it_when_the_mask_shrinks(writer, node):
    block = voxelsOf(node)["block"]
    writer.overwriteMode, writer.editableInside = "all", "block"
    large = np.ones(SHAPE[1:], bool)
    small = randomPlane(0)
    writer.accept("empty", 0, 3, large)
    assert not voxelsOf(node)["block"][3].any()
    writer.showLive("empty", 0, 3, small)
    np.testing.assert_array_equal(voxelsOf(node)["empty"][3], block[3] & small)
    writer.accept("empty", 0, 3, small)
    found = voxelsOf(node)
    np.testing.assert_array_equal(found["empty"][3], block[3] & small)
    np.testing.assert_array_equal(found["block"][3], block[3] & ~small)
    while writer.undo():
        pass
    np.testing.assert_array_equal(voxelsOf(node)["block"], block)


def test_siblings_keep_every_voxel_while_a_mask_over_them_is_live_and_after(writer, node, volumeNode):
    before = voxelsOf(node)
    everything = np.ones(SHAPE[1:], bool)
    writer.showLive("ball", 0, 3, everything)
    expected = {**before, "ball": withSlice(before["ball"], 0, 3, everything)}
    assertSame(voxelsOf(node), expected)
    writer.restore("ball", 0, 3)
    assertSame(voxelsOf(node), before)
    writer.accept("ball", 0, 3, everything)
    assertSame(voxelsOf(node), expected)
    writer.undo()
    assertSame(voxelsOf(node), before)


def test_layers_are_not_split_where_segments_do_not_meet(writer, node, volumeNode):
    plane = np.zeros(SHAPE[1:], bool)
    plane[:5] = True
    for _ in range(2):
        writer.showLive("ball", 0, 3, plane)
        writer.accept("ball", 0, 3, plane)
        writer.undo()
    writer.accept("ball", 0, 3, plane)
    writer.overwriteMode = "all"
    writer.showLive("ball", 0, 2, ~plane)
    writer.accept("ball", 0, 2, ~plane)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_a_removed_segment_gives_back_what_its_live_mask_covered(writer, node, volumeNode):
    before = voxelsOf(node)
    writer.overwriteMode = "all"
    writer.showLive("ball", 0, 3, np.ones(SHAPE[1:], bool))
    writer.showLive("empty", 1, 8, np.ones((SHAPE[0], SHAPE[2]), bool))
    node.GetSegmentation().RemoveSegment("ball")
    writer.restore("ball", 0, 3)
    writer.restore("empty", 1, 8)
    assertSame(voxelsOf(node), {i: before[i] for i in ("block", "empty")})
    with pytest.raises(InputError, match='has no segment "ball"'):
        writer.showLive("ball", 0, 3, np.ones(SHAPE[1:], bool))


def test_what_the_user_paints_beside_or_on_a_live_mask_stays(writer, node, volumeNode):
    before = voxelsOf(node)
    plane = np.zeros(SHAPE[1:], bool)
    plane[1:6, 1:6] = True
    writer.showLive("ball", 0, 3, plane)
    mine = np.zeros(SHAPE, bool)
    mine[2:5, 3:9, :3] = True
    paint(node, "empty", mine, OBLIQUE, overwrite=["ball", "block"])
    writer.restore("ball", 0, 3)
    found = voxelsOf(node)
    np.testing.assert_array_equal(found["empty"], mine)
    for segmentId in ("ball", "block"):
        np.testing.assert_array_equal(found[segmentId], before[segmentId] & ~mine)


places = st.tuples(st.sampled_from(["ball", "block", "empty"]), st.integers(0, 2), st.integers(0, 5))
actions = st.lists(
    st.tuples(
        st.sampled_from(["live", "live", "live", "accept", "accept", "restore", "undo"]), places, st.integers(0, 9)
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=actions)
def test_any_sequence_of_live_masks_accepted_undone_and_restored_is_as_if_done_on_arrays(scene, actions):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), OBLIQUE)
    node = addSegmentation(volumeNode, "ball", "block", "empty")
    accepted = {i: np.zeros(SHAPE, bool) for i in ("ball", "block", "empty")}
    accepted["ball"][1:5, 2:7, 2:6], accepted["block"][:, 7:] = True, True
    for segmentId in ("ball", "block"):
        paint(node, segmentId, accepted[segmentId], OBLIQUE)
    writer, undo, live = SegmentWriter(node, volumeNode), [], {}
    for action, place, seed in actions:
        segmentId, axis, index = place
        plane = randomPlane(axis, seed)
        if action == "live":
            writer.showLive(*place, plane)
            live[place] = plane
        elif action == "restore":
            writer.restore(*place)
            live.pop(place, None)
        elif action == "accept":
            writer.accept(*place, plane)
            live.pop(place, None)
            undo.append(dict(accepted))
            accepted[segmentId] = withSlice(accepted[segmentId], axis, index, plane)
        else:
            assert writer.undo() == bool(undo)
            accepted = undo.pop() if undo else accepted
        expected = dict(accepted)
        for (ofSegment, along, at), mask in live.items():
            expected[ofSegment] = withSlice(expected[ofSegment], along, at, mask)
        assertSame(voxelsOf(node), expected)
    writer.close()
    assertSame(voxelsOf(node), accepted)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=actions, mode=st.sampled_from(["visible", "all"]))
def test_live_masks_that_overwrite_leave_no_trace_when_all_are_taken_off(scene, actions, mode):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), OBLIQUE)
    node = addSegmentation(volumeNode, "ball", "block", "empty")
    for segmentId, mask in (("ball", np.s_[1:5, 2:7]), ("block", np.s_[:, 7:])):
        whole = np.zeros(SHAPE, bool)
        whole[mask] = True
        paint(node, segmentId, whole, OBLIQUE)
    node.GetDisplayNode().SetSegmentVisibility("block", False)
    writer, twin = SegmentWriter(node, volumeNode), copyOf(node)
    writer.overwriteMode = mode
    withoutLive = SegmentWriter(twin, volumeNode)
    withoutLive.overwriteMode = mode
    for action, place, seed in actions:
        plane = randomPlane(place[1], seed)
        if action == "live":
            writer.showLive(*place, plane)
        elif action == "restore":
            writer.restore(*place)
        elif action == "accept":
            writer.accept(*place, plane)
            withoutLive.accept(*place, plane)
        else:
            assert writer.undo() == withoutLive.undo()
    writer.close()
    assertSame(voxelsOf(node), voxelsOf(twin))


# ---------------------------------------------------------------------------------------------------------- other grids


def test_a_segmentation_in_another_index_order_is_written_voxel_by_voxel(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), OBLIQUE)
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[2] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # (i, j, k) -> (k, -i, j)
    node = addSegmentation(None, "plate", "other")
    plate, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    plate[1:5, 2:6, 3:7], other[2:4, 7:, :] = True, True
    for segmentId, mask in (("plate", plate), ("other", other)):
        paint(node, segmentId, mask.transpose(1, 2, 0)[:, ::-1], OBLIQUE @ np.linalg.inv(turn))
    writer = SegmentWriter(node, volumeNode)
    for axis in range(3):
        plane = randomPlane(axis)
        writer.showLive("plate", axis, 3, ~plane)
        writer.showLive("plate", axis, 3, plane)
        np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), withSlice(plate, axis, 3, plane))
        writer.accept("plate", axis, 3, plane)
        np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), withSlice(plate, axis, 3, plane))
        np.testing.assert_array_equal(segmentVoxels(node, "other", volumeNode), other)
        writer.undo()
        np.testing.assert_array_equal(segmentVoxels(node, "plate", volumeNode), plate)


def test_voxels_beyond_the_volume_are_left_alone(scene):
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), OBLIQUE)
    larger = OBLIQUE.copy()
    larger[:3, 3] = (OBLIQUE @ [-2, -3, -1, 1])[:3]
    whole = np.random.default_rng(2).random((SHAPE[0] + 3, SHAPE[1] + 5, SHAPE[2] + 4)) < 0.5
    whole[[0, -1], [0, -1], [0, -1]] = True
    node = addSegmentation(None, "a")
    paint(node, "a", whole, larger)
    reach = addVolume(np.zeros(whole.shape, np.int16), larger)
    writer = SegmentWriter(node, volumeNode)
    for axis in range(3):
        plane = randomPlane(axis)
        inner = withSlice(whole[1:-2, 3:-2, 2:-2], axis, 4, plane)
        whole[1:-2, 3:-2, 2:-2] = inner
        writer.showLive("a", axis, 4, plane)
        np.testing.assert_array_equal(segmentVoxels(node, "a", reach), whole)
        writer.accept("a", axis, 4, plane)
        np.testing.assert_array_equal(segmentVoxels(node, "a", reach), whole)


def test_a_segmentation_without_voxels_takes_over_the_grid_of_the_volume(scene):
    elsewhere = addVolume(np.zeros((4, 4, 4)), affineOf(np.eye(3), (3, 3, 3)))
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), OBLIQUE)
    node = addSegmentation(elsewhere, "a")
    SegmentWriter(node, volumeNode).accept("a", 0, 2, randomPlane(0))
    expected = withSlice(np.zeros(SHAPE, bool), 0, 2, randomPlane(0))
    np.testing.assert_array_equal(segmentVoxels(node, "a", volumeNode), expected)


def test_what_cannot_be_written_is_refused_with_the_reason(scene, volumeNode, node):
    other = addSegmentation(None, "a")
    paint(other, "a", np.ones((3, 3, 3), bool), affineOf(np.eye(3), (3, 3, 3)))
    with pytest.raises(InputError, match='Segment "a" of "segmentation" lies on another grid than "CT"; choose'):
        SegmentWriter(other, volumeNode)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="Closed surface; make the binary labelmap its source"):
        SegmentWriter(node, volumeNode)
    empty = addSegmentation(volumeNode, "a")
    writer = SegmentWriter(empty, volumeNode)
    with pytest.raises(InputError, match=r"has \(11, 9\) voxels \(rows, columns\), got \(9, 11\)"):
        writer.showLive("a", 0, 2, np.ones((9, 11)))
    with pytest.raises(InputError, match="slices k=0 to 6, got k=7"):
        writer.accept("a", 0, 7, np.ones((11, 9)))
    with pytest.raises(InputError, match='no segment "x"'):
        writer.accept("x", 0, 2, np.ones((11, 9)))
    with pytest.raises(InputError, match="none, visible, all, got 'some'"):
        writer.overwriteMode = "some"


# ----------------------------------------------------------------------------------------------------- views and files


def test_the_surface_stays_while_clicking_and_is_in_step_after_a_pause(writer, node, volumeNode):
    node.CreateClosedSurfaceRepresentation()
    shown = {segmentId: surfaceOf(node, segmentId) for segmentId in ("ball", "block")}

    def expectedSurface():
        twin = copyOf(node)
        twin.GetSegmentation().RemoveRepresentation("Closed surface")
        twin.CreateClosedSurfaceRepresentation()
        return surfaceOf(twin, "ball")

    plane = np.ones(SHAPE[1:], bool)
    writer.showLive("ball", 0, 3, plane)
    for act in (
        lambda: writer.showLive("ball", 0, 3, plane & randomPlane(0)),
        lambda: writer.restore("ball", 0, 3),
        lambda: writer.accept("ball", 0, 3, plane),
        writer.undo,
        lambda: writer.accept("ball", 0, 3, plane),
    ):
        before = surfaceOf(node, "ball")
        act()
        np.testing.assert_array_equal(surfaceOf(node, "ball"), before)  # not computed again, not taken away
        writer.idle()
        np.testing.assert_allclose(surfaceOf(node, "ball"), expectedSurface())
        np.testing.assert_array_equal(surfaceOf(node, "block"), shown["block"])
    assert len(surfaceOf(node, "ball")) != len(shown["ball"])


def test_a_pause_does_not_make_surfaces_that_nobody_asked_for(writer, node):
    writer.showLive("ball", 0, 3, randomPlane(0))
    writer.idle()
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_the_view_shows_a_live_mask_at_once_and_nothing_of_it_when_it_is_taken_off(scene, snapshot):
    volumeNode = addVolume(np.zeros((8, 40, 40), np.int16), GEOMETRIES["LPS"])
    node = addSegmentation(volumeNode, "a")
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    SliceViews.jumpToSlice(volumeNode, 0, 4)
    writer = SegmentWriter(node, volumeNode)
    empty = snapshot("Red")
    plane = np.zeros((40, 40), bool)
    for columns in (slice(5, 15), slice(5, 30)):
        plane[10:30, columns] = True
        writer.showLive("a", 0, 4, plane)
        painted = (snapshot("Red") != empty).any(axis=-1)
        rows, cols = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
        shape = (rows[-1] - rows[0] + 1) / (cols[-1] - cols[0] + 1)
        assert shape == pytest.approx(20 * 0.9 / ((columns.stop - columns.start) * 0.7), rel=0.05)
    writer.restore("a", 0, 4)
    np.testing.assert_array_equal(snapshot("Red"), empty)


def test_what_was_accepted_is_in_the_saved_file_and_nothing_else(writer, node, volumeNode, tmp_path: Path):
    writer.accept("ball", 1, 5, randomPlane(1))
    writer.showLive("empty", 0, 2, randomPlane(0))
    writer.restore("empty", 0, 2)
    expected = voxelsOf(node)
    path = tmp_path / "saved.seg.nrrd"
    assert slicer.util.saveNode(node, str(path))
    loaded = slicer.util.loadSegmentation(str(path))
    assertSame({i: segmentVoxels(loaded, i, volumeNode) for i in expected}, expected)
    SegmentWriter(loaded, volumeNode).accept("empty", 0, 2, randomPlane(0))
    np.testing.assert_array_equal(Segmentations.sliceMask(loaded, "empty", volumeNode, 0, 2), randomPlane(0))


def test_closing_takes_off_live_masks_also_when_the_nodes_have_left_the_scene(scene, writer, node, volumeNode):
    before = voxelsOf(node)
    writer.showLive("ball", 0, 3, randomPlane(0))
    writer.showLive("empty", 2, 3, randomPlane(2))
    scene.RemoveNode(volumeNode)
    scene.RemoveNode(node)
    writer.close()
    assertSame(voxelsOf(node), before)
    assert not writer.undo()


@pytest.mark.slow
def test_times_for_a_slice_of_512_x_512_x_200(scene, capsys):
    """Prints; asserts nothing about time."""
    shape, affine = (200, 512, 512), affineOf(np.diag([-1, -1, 1]), (0.7, 0.7, 1.5))
    volumeNode = addVolume(np.zeros(shape, np.int16), affine)
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    labels = np.zeros(shape, np.uint8)
    labels[:, 20:500, 20:60], labels[0, 0, 0], labels[-1, -1, -1] = 2, 3, 3
    labels[60:140, 180:340, 180:340] = 1
    node = Segmentations.segmentationFromLabelmap(
        Labelmap(Volume(labels, affine), {1: "liver", 2: "bone", 3: "corners"}), volumeNode
    )
    liver, new = Segmentations.segmentsByName(node)["liver"], Segmentations.addSegment(node, "new")
    j, i = np.indices(shape[1:])

    def disc(radius):
        return (j - 256) ** 2 + (i - 256) ** 2 < radius**2

    def measure(what, act):
        times = []
        for radius in range(100, 107):
            start = time.perf_counter()
            act(radius)
            times.append((time.perf_counter() - start) * 1e3)
        lines.append(f"{what:44s} first {times[0]:7.1f}  median {np.median(times[1:]):6.1f} ms")

    lines: list[str] = []
    writer = SegmentWriter(node, volumeNode)
    for mode in ("all", "none"):
        writer.overwriteMode = mode
        for name, segmentId in (("liver, layer fills the volume", liver), ("new segment", new)):
            measure(f"{mode}: live, {name}", lambda r, i=segmentId: writer.showLive(i, 0, 100, disc(r)))
            measure(f"{mode}: accept, {name}", lambda r, i=segmentId: writer.accept(i, 0, 100, disc(r)))
            measure(f"{mode}: undo, {name}", lambda r: writer.undo())
    node.CreateClosedSurfaceRepresentation()
    measure("with surface: live", lambda r: writer.showLive(liver, 0, 100, disc(r)))
    measure("with surface: accept", lambda r: writer.accept(liver, 0, 100, disc(r)))
    measure("with surface: idle", lambda r: (writer.showLive(liver, 0, 100, disc(r)), writer.idle()))
    with capsys.disabled():
        print("", *lines, sep="\n")  # noqa: T201 - that is its purpose
