"""Clicks and boxes moved onto slices of the volume, and the volume as the worker knows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Prompting.Target import Target
from FewShotSegSlicer.Scene import SliceViews
from Testing.Extension.bench import Bench, FakeWorkers, K, ras
from Testing.Extension.changes import changeTheVolume, moveTheVolume
from Testing.Extension.nodes import GEOMETRIES, SHAPE, addTransform, addVolume, rotation, voxelAt, worldOf

AXIS_OF = {"Red": 0, "Green": 1, "Yellow": 2}


def targetOn(volumeNode: Any) -> Target:
    return Target(FakeWorkers(), volumeNode, None, None)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- slices


def turnInto(view: Any, volumeNode: Any, axis: int, index: int) -> None:
    """Show exactly the plane of a slice in a view."""
    middle_ijk = (np.array(volumeNode.GetImageData().GetDimensions()) - 1) / 2
    middle_ijk[2 - axis] = index
    middle = worldOf(volumeNode, middle_ijk)
    rows, columns = (worldOf(volumeNode, middle_ijk + np.eye(3)[2 - a]) - middle for a in range(3) if a != axis)
    normal = np.cross(columns, rows)
    normal, across = normal / np.linalg.norm(normal), columns / np.linalg.norm(columns)
    view.SetSliceToRASByNTP(*normal, *across, *middle, 0)


@pytest.mark.parametrize("viewName", AXIS_OF)
@pytest.mark.parametrize("geometry", [*GEOMETRIES, "moved"])
def test_a_click_on_a_voxel_becomes_a_point_at_that_voxel(
    scene: Any, clickIn: Any, geometry: str, viewName: str
) -> None:
    volumeNode = addVolume(np.zeros((20, 24, 28), np.int16), GEOMETRIES.get(geometry, GEOMETRIES["oblique"]))
    if geometry == "moved":
        turn = np.eye(4)
        turn[:3, :3], turn[:3, 3] = rotation((0.2, 1, -0.4), 12), (5, -3, 8)
        volumeNode.SetAndObserveTransformNodeID(addTransform(turn).GetID())
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    voxel_ijk, axis = (13, 9, 7), AXIS_OF[viewName]
    view = slicer.app.layoutManager().sliceWidget(viewName).mrmlSliceNode()
    turnInto(view, volumeNode, axis, voxel_ijk[2 - axis])
    clicked_ras = placedByClick(scene, clickIn, viewName, worldOf(volumeNode, voxel_ijk))

    viewed = SliceViews.viewedSlice(volumeNode, view)
    assert viewed == (axis, voxel_ijk[2 - axis])
    point_ijk = voxelAt(volumeNode, targetOn(volumeNode).pointOnSlice(*viewed, clicked_ras))
    assert np.rint(point_ijk).astype(int).tolist() == list(voxel_ijk)
    assert point_ijk[2 - axis] == pytest.approx(voxel_ijk[2 - axis], abs=1e-6)


def placedByClick(scene: Any, clickIn: Any, viewName: str, at_ras: Any) -> list[float]:
    """Where Slicer's own tool places a point."""
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


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_lies_beside_the_slice_moves_onto_it_along_its_axis(scene: Any, geometry: str) -> None:
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES[geometry])
    target, beside_ijk = targetOn(volumeNode), np.array([[2.2, 3.4, 1.3], [5.0, 1.0, 4.0]])
    beside_ras = [worldOf(volumeNode, point) for point in beside_ijk]
    for axis in range(3):
        expected_ijk = beside_ijk.copy()
        expected_ijk[:, 2 - axis] = 3
        points_ijk = [voxelAt(volumeNode, target.pointOnSlice(axis, 3, point)) for point in beside_ras]
        np.testing.assert_allclose(points_ijk, expected_ijk, atol=1e-6)
        box_ijk = [voxelAt(volumeNode, corner) for corner in target.boxOnSlice(axis, 3, beside_ras)]
        np.testing.assert_allclose(box_ijk, np.sort(expected_ijk, axis=0), atol=1e-6)


def test_a_click_beside_the_slice_counts_as_on_it(bench: Bench) -> None:
    """An oblique view, or one between two slices, is clicked off the middle of the slice."""
    bench.live.addPoint(0, K, ras(8, 7, K + 0.4), positive=True)
    assert bench.live.promptOn(0, K).points_ras == (pytest.approx(ras(8, 7, K)),)


def test_a_box_is_cut_to_the_volume(bench: Bench) -> None:
    bench.live.setBox(0, K, (ras(30, 5, K), ras(10, -6, K)))
    low, high = bench.live.promptOn(0, K).box_ras or ((), ())
    assert low == pytest.approx(ras(10, -0.5, K))
    assert high == pytest.approx(ras(23.5, 5, K))
    bench.workers.answer()
    bench.assertAnswered()


# -------------------------------------------------------------------------------------------------------- boxes, slices


def test_a_box_has_four_corners_in_order_around_it(scene: Any) -> None:
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES["oblique"])
    box_ras = [worldOf(volumeNode, corner) for corner in ((1, 2, 3), (5, 8, 3))]
    corners_ijk = [voxelAt(volumeNode, corner) for corner in targetOn(volumeNode).boxCorners(0, box_ras)]
    np.testing.assert_allclose(corners_ijk, [(1, 2, 3), (5, 2, 3), (5, 8, 3), (1, 8, 3)], atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_slice_of_a_prompt_is_the_one_that_all_of_it_lies_on(scene: Any, geometry: str) -> None:
    volumeNode = addVolume(np.zeros(SHAPE, np.int16), GEOMETRIES[geometry])

    def at(*points_ijk: tuple[float, float, float]) -> SlicePrompt:
        return SlicePrompt(tuple(tuple(worldOf(volumeNode, p)) for p in points_ijk), (1,) * len(points_ijk))

    target = targetOn(volumeNode)
    assert target.sliceOf(0, at((1, 2, 3), (8, 9, 3.4))) == 3
    assert target.sliceOf(2, at((4, 2, 3), (4.2, 9, 6))) == 4
    assert target.sliceOf(0, at((1, 2, 3), (8, 9, 5))) is None
    assert target.sliceOf(0, at((1, 2, 7))) is None  # there are slices 0 to 6


# -------------------------------------------------------------------------------------------------------------- volume


def test_a_volume_is_sent_once_and_anew_when_it_has_changed(bench: Bench) -> None:
    target, workers = bench.live.target, bench.workers
    assert target is not None
    assert not target.isVolumeSent
    name = target.volumeName()
    assert (target.volumeName(), target.isVolumeSent) == (name, True)
    np.testing.assert_array_equal(workers.volumes[name], slicer.util.arrayFromVolume(bench.volume))
    for change in (changeTheVolume, moveTheVolume, lambda bench: bench.workers.close()):
        change(bench)
        assert not target.isVolumeSent
        again = target.volumeName()
        assert again != name
        assert list(workers.volumes) == [again]
        name = again
    target.forgetVolume()
    assert workers.volumes == {}


def test_what_has_left_the_scene_is_not_there(bench: Bench) -> None:
    target = bench.live.target
    assert target is not None
    assert target.isThere
    assert target.isOf(bench.volume, bench.segmentation)
    bench.segmentation.GetSegmentation().RemoveSegment(bench.liver)
    assert (target.areNodesThere, target.isThere) == (True, False)
    slicer.mrmlScene.RemoveNode(bench.volume)
    assert not target.areNodesThere
