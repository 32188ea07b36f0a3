"""Where masks may go, compared to Slicer's Segment Editor."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene.EditableArea import EditableArea
from FewShotSegSlicer.Scene.SegmentSlice import SegmentSlice
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from Testing.Extension.nodes import (
    SHAPE,
    orientedImage,
    ownVoxels,
)
from Testing.Extension.writing import OBLIQUE, assertSame, copyOf, randomPlane, voxelsOf, withSlice


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
    writer.area.overwriteMode = mode
    writer.area.inside = "block" if area == "inside" else None
    writer.area.intensity = (20, 70) if area == "intensity" else None

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
    writer.area.inside = "block"
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
    writer.area.overwriteMode, writer.area.inside, writer.area.intensity = mode, "block", (20, 70)
    writer.accept("over", 1, 8, randomPlane(1))
    image = slicer.util.arrayFromVolume(volumeNode)
    fixed = (image < 20) | (image > 70)
    for segmentId, mask in voxelsOf(overlapped).items():
        np.testing.assert_array_equal(mask[fixed], before[segmentId][fixed])


def test_what_is_carved_out_of_a_segment_returns_to_it_when_the_mask_shrinks(writer, node):
    block = voxelsOf(node)["block"]
    writer.area.overwriteMode, writer.area.inside = "all", "block"
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


# -------------------------------------------------------------------------------------------------- without a writer


def test_without_settings_a_mask_replaces_what_the_segment_had_and_takes_from_nobody(overlapped, volumeNode):
    area, place, plane = EditableArea(overlapped, volumeNode), SegmentSlice("over", 0, 3), randomPlane(0)
    current = voxelsOf(overlapped)["over"][3]
    np.testing.assert_array_equal(area.maskOf("over", place), current)
    losses, gains = area.change(place, plane)
    assert (list(losses), list(gains), area.overwritable("over")) == (["over"], ["over"], [])
    np.testing.assert_array_equal(losses["over"], current & ~plane)
    np.testing.assert_array_equal(gains["over"], plane & ~current)


def test_others_lose_what_is_painted_over_them_if_they_are_seen(overlapped, volumeNode):
    area, place, plane = EditableArea(overlapped, volumeNode), SegmentSlice("over", 0, 3), randomPlane(0)
    before = voxelsOf(overlapped)
    for mode, others in (("visible", ["ball", "block", "empty"]), ("all", ["ball", "block", "empty", "hidden"])):
        area.overwriteMode = mode
        assert area.overwritable("over") == others
        losses, _gains = area.change(place, plane)
        assert list(losses) == ["over", *others]
        for other in others:
            np.testing.assert_array_equal(losses[other], before[other][3] & plane)


def test_the_intensity_limits_both_what_is_lost_and_what_is_painted(node, volumeNode):
    area, place = EditableArea(node, volumeNode), SegmentSlice("ball", 1, 6)
    area.intensity = (20, 70)
    plane, current = randomPlane(1), voxelsOf(node)["ball"][:, 6]
    lost, painted = area.lostAndPainted(place, plane, current)
    image = slicer.util.arrayFromVolume(volumeNode)[:, 6]
    allowed = (image >= 20) & (image <= 70)
    np.testing.assert_array_equal(lost, current & ~plane & allowed)
    np.testing.assert_array_equal(painted, plane & allowed)


def test_an_unknown_mode_is_refused_and_the_old_one_stays(node, volumeNode):
    area = EditableArea(node, volumeNode)
    with pytest.raises(InputError, match="none, visible, all, got 'some'"):
        area.overwriteMode = "some"
    assert area.overwriteMode == "none"
