"""Nodes that tests start from, and ways to look at them that share no code with the extension."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

SHAPE = (7, 11, 9)


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """The (3, 3) rotation about an axis (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affineOf(directions: Any, spacing: Any = (0.7, 0.9, 2.5), origin: Any = (-31.5, 12.25, 70.0)) -> np.ndarray:
    """The matrix from (i, j, k) to RAS for directions in columns, spacing along i, j, k, and an origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions, float) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


_OBLIQUE = rotation((1, 2, 3), 23)
_SHEAR = np.array([[1, 0.15, 0], [0, 1, 0.2], [0, 0, 1]])

GEOMETRIES = {
    "RAS": affineOf(np.eye(3)),
    "LPS": affineOf(np.diag([-1, -1, 1])),
    "left-handed": affineOf(np.diag([-1, -1, -1])),
    "isotropic": affineOf(np.eye(3), (1, 1, 1)),
    "sagittal": affineOf(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), (0.5, 0.5, 4)),
    "coronal": affineOf(np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])),
    "oblique": affineOf(_OBLIQUE),
    "oblique left-handed": affineOf(_OBLIQUE @ np.diag([1, -1, 1])),
    "sheared": affineOf(_OBLIQUE @ _SHEAR),
}


def addVolume(array: Any, affine: np.ndarray, name: str = "image") -> Any:
    return slicer.util.addVolumeFromArray(np.array(array), affine, name)


def addTransform(matrix: np.ndarray, parent: Any = None, name: str = "moved") -> Any:
    """A linear transform of (4, 4) or (3, 3), inside another one."""
    full = np.eye(4)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(full))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def addWarp() -> Any:
    """A transform that bends space."""
    points, moved = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)):
        points.InsertNextPoint(corner)
        moved.InsertNextPoint(corner)
    moved.SetPoint(4, 60, 41, 55)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(moved)
    spline.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    node.SetAndObserveTransformToParent(spline)
    return node


def addSegmentation(volumeNode: Any = None, *names: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    if volumeNode is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    for name in names:
        node.GetSegmentation().AddEmptySegment(name, name)
    return node


def orientedImage(mask: np.ndarray, affine: np.ndarray) -> Any:
    """A mask (K, J, I) as Slicer's segmentation logic takes it."""
    image = slicer.vtkOrientedImageData()
    k, j, i = mask.shape
    image.SetExtent(0, i - 1, 0, j - 1, 0, k - 1)
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    scalars = numpy_to_vtk(np.ascontiguousarray(mask, np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def paint(segmentationNode: Any, segmentId: str, mask: np.ndarray, affine: np.ndarray, overwrite: Any = ()) -> None:
    """Replace a segment by a mask (K, J, I) on a grid in the coordinates of the node, as Slicer's own tools do."""
    logic, image = slicer.vtkSlicerSegmentationsModuleLogic, orientedImage(mask, affine)
    done = logic.SetBinaryLabelmapToSegment(
        image, segmentationNode, segmentId, logic.MODE_REPLACE, None, False, list(overwrite)
    )
    assert done


def segmentVoxels(segmentationNode: Any, segmentId: str, volumeNode: Any) -> np.ndarray:
    """The voxels of a segment (K, J, I) on the volume's grid, as Slicer resamples them."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, volumeNode) != 0


def ownVoxels(segmentationNode: Any, segmentId: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """The voxels of a segment (K, J, I) within a volume of the same grid: fast."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    layer = segment.GetRepresentation("Binary labelmap")
    found = np.zeros(shape, bool)
    i0, i1, j0, j1, k0, k1 = layer.GetExtent()
    if i0 <= i1:
        values = vtk_to_numpy(layer.GetPointData().GetScalars()).reshape(k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
        found[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = values == segment.GetLabelValue()
    return found


def segmentVoxelsByPoint(segmentationNode: Any, segmentId: str, volumeNode: Any) -> np.ndarray:
    """The same by asking VTK for every voxel where it is and what is there; for transforms that Slicer's resampling
    of labelmaps rounds."""
    layer = segmentationNode.GetSegmentation().GetSegment(segmentId).GetRepresentation("Binary labelmap")
    value = segmentationNode.GetSegmentation().GetSegment(segmentId).GetLabelValue()
    ijkFromLocal = vtk.vtkMatrix4x4()
    layer.GetWorldToImageMatrix(ijkFromLocal)
    extent = np.array(layer.GetExtent()).reshape(3, 2)
    found = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    for k, j, i in np.ndindex(found.shape):
        local = [0.0, 0.0, 0.0]
        segmentationNode.TransformPointFromWorld(worldOf(volumeNode, (i, j, k)), local)
        at = np.rint(ijkFromLocal.MultiplyPoint([*local, 1.0])[:3]).astype(int)
        if (at >= extent[:, 0]).all() and (at <= extent[:, 1]).all():
            found[k, j, i] = layer.GetScalarComponentAsDouble(*(int(x) for x in at), 0) == value
    return found


def worldOf(node: Any, point_ijk: Any) -> np.ndarray:
    """World RAS of a voxel, by VTK."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(matrix.MultiplyPoint([*(float(c) for c in point_ijk), 1.0])[:3], world)
    return np.array(world)


def voxelAt(node: Any, point_ras: Any) -> np.ndarray:
    """(i, j, k) of a place in world RAS, not rounded, by VTK."""
    local, matrix = [0.0, 0.0, 0.0], vtk.vtkMatrix4x4()
    node.TransformPointFromWorld([float(c) for c in point_ras], local)
    node.GetRASToIJKMatrix(matrix)
    return np.array(matrix.MultiplyPoint([*local, 1.0])[:3])


def ball(shape: tuple[int, int, int], affine: np.ndarray, radius_mm: float, shift_mm: Any = (0, 0, 0)) -> np.ndarray:
    """The voxels (K, J, I) within a distance of the middle of the volume."""
    k, j, i = np.indices(shape)
    points = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2) + affine[:3, 3] + shift_mm
    return np.linalg.norm(points - middle, axis=-1) <= radius_mm


def twoStructures(affine: np.ndarray) -> np.ndarray:
    """A ball and a plate beside it, as labels (K, J, I)."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, affine, 3.0)] = 1
    labels[2:5, 1:3, 6:] = 2
    return labels


def surfaceOf(segmentationNode: Any, segmentId: str) -> np.ndarray | None:
    """The points (N, 3) of the 3-D surface of a segment; None without a surface."""
    surface = segmentationNode.GetSegmentation().GetSegment(segmentId).GetRepresentation("Closed surface")
    if surface is None:
        return None
    return vtk_to_numpy(surface.GetPoints().GetData()).copy() if surface.GetPoints() else np.empty((0, 3))
