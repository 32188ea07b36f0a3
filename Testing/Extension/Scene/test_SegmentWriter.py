"""Slices that are accepted and taken back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import slicer
from hypothesis import HealthCheck, given, settings

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Segmentations
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
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
    surfaceOf,
)
from Testing.Extension.writing import OBLIQUE, actions, assertSame, copyOf, randomPlane, voxelsOf, withSlice


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
    writer.area.overwriteMode = mode
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
        writer.area.overwriteMode = "some"


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
        writer.area.overwriteMode = mode
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
