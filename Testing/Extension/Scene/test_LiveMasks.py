"""Masks that are shown and taken off again without a trace."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import SliceViews
from FewShotSegSlicer.Scene.EditableArea import EditableArea
from FewShotSegSlicer.Scene.LiveMasks import LiveMasks
from FewShotSegSlicer.Scene.SegmentSlice import SegmentSlice
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addSegmentation,
    addVolume,
    paint,
)
from Testing.Extension.writing import OBLIQUE, actions, assertSame, copyOf, randomPlane, voxelsOf, withSlice


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
    writer.area.overwriteMode = "all"
    writer.showLive("ball", 0, 2, ~plane)
    writer.accept("ball", 0, 2, ~plane)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_a_removed_segment_gives_back_what_its_live_mask_covered(writer, node, volumeNode):
    before = voxelsOf(node)
    writer.area.overwriteMode = "all"
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
    writer.area.overwriteMode = mode
    withoutLive = SegmentWriter(twin, volumeNode)
    withoutLive.area.overwriteMode = mode
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


def test_closing_takes_off_live_masks_also_when_the_nodes_have_left_the_scene(scene, writer, node, volumeNode):
    before = voxelsOf(node)
    writer.showLive("ball", 0, 3, randomPlane(0))
    writer.showLive("empty", 2, 3, randomPlane(2))
    scene.RemoveNode(volumeNode)
    scene.RemoveNode(node)
    writer.close()
    assertSame(voxelsOf(node), before)
    assert not writer.undo()


# -------------------------------------------------------------------------------------------------- without a writer


@pytest.fixture
def live(node, volumeNode):
    return LiveMasks(node, volumeNode, EditableArea(node, volumeNode))


def test_of_masks_on_each_other_the_last_one_shown_is_on_top_and_the_one_below_can_be_exchanged(live, node):
    before, across = voxelsOf(node)["ball"], SegmentSlice("ball", 1, 6)
    below, first, second, top = SegmentSlice("ball", 0, 3), randomPlane(0, 1), randomPlane(0, 2), randomPlane(1, 3)
    live.show(below, first)
    live.show(across, top)
    np.testing.assert_array_equal(voxelsOf(node)["ball"], withSlice(withSlice(before, 0, 3, first), 1, 6, top))
    live.show(below, second)
    np.testing.assert_array_equal(voxelsOf(node)["ball"], withSlice(withSlice(before, 0, 3, second), 1, 6, top))
    live.remove(below)
    np.testing.assert_array_equal(voxelsOf(node)["ball"], withSlice(before, 1, 6, top))


def test_only_masks_that_share_voxels_are_taken_off_and_come_back_in_their_order(live, node):
    shown = {SegmentSlice("ball", 0, 3): randomPlane(0), SegmentSlice("ball", 0, 5): randomPlane(0, 1)}
    shown[SegmentSlice("empty", 0, 3)] = randomPlane(0, 2)
    for place, plane in shown.items():
        live.show(place, plane)
    after = voxelsOf(node)
    taken = live.takenOff([SegmentSlice("block", 0, 3)])
    assert [one.place for one in taken] == [SegmentSlice("ball", 0, 3), SegmentSlice("empty", 0, 3)]
    assert not voxelsOf(node)["empty"].any()
    live.putBack(taken)
    assertSame(voxelsOf(node), after)


def test_a_mask_of_a_segment_that_is_gone_is_not_put_back(live, node):
    live.show(SegmentSlice("ball", 0, 3), randomPlane(0))
    live.show(SegmentSlice("empty", 0, 2), randomPlane(0, 1))
    taken = live.takenOff()
    before = voxelsOf(node)
    node.GetSegmentation().RemoveSegment("empty")
    live.putBack(taken)
    expected = withSlice(before["ball"], 0, 3, randomPlane(0))
    assertSame(voxelsOf(node), {"ball": expected, "block": before["block"]})


def test_a_layer_that_grew_gets_its_extent_back_unless_somebody_painted_there(live, node):
    layer = node.GetSegmentation().GetSegment("ball").GetRepresentation("Binary labelmap")
    extent, everywhere = layer.GetExtent(), np.ones((SHAPE[1], SHAPE[2]), bool)
    place = SegmentSlice("ball", 0, 0)

    def extentNow():
        return node.GetSegmentation().GetSegment("ball").GetRepresentation("Binary labelmap").GetExtent()

    live.show(place, everywhere)
    assert extentNow() != extent
    live.remove(place)
    assert extentNow() == extent
    live.show(place, everywhere)
    mine = np.zeros(SHAPE, bool)
    mine[0, 0, 0] = True  # where the layer did not reach before
    paint(node, "block", voxelsOf(node)["block"] | mine, OBLIQUE, overwrite=["ball"])
    live.remove(place)
    assert voxelsOf(node)["block"][0, 0, 0]
