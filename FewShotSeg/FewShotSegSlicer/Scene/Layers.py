"""The labelmaps inside a segmentation, in the index order of a volume.

A segmentation keeps its voxels in layers: labelmaps that several segments may share, each with a grid and an extent of
its own. Where the grid of a layer is the volume's, its axes permuted or flipped at most, voxels correspond one to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from FewShotSegLib.data.volume import Volume, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import index_map, resample_labelmap, turned

from .Geometry import Array, Shape, quoted, rasFromIjk, worldFromNode

LABELMAP = "Binary labelmap"
SURFACE = "Closed surface"


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer in the index order of a volume: the same memory, so that writing here writes to the segmentation."""

    array: Array
    """Label values (k, j, i) of the part of space that the layer covers."""
    first: Shape
    """(k, j, i) of its first voxel in the volume; the layer may reach beyond the volume."""

    def within(self, shape: Shape) -> tuple[Array, tuple[slice, slice, slice]]:
        """Return the part inside a volume of `shape` (K, J, I), and where in the volume it is."""
        own, inside = [], []
        for first, count, size in zip(self.first, self.array.shape, shape, strict=True):
            low, high = max(first, 0), min(first + count, size)
            own.append(slice(low - first, max(low, high) - first))
            inside.append(slice(low, max(low, high)))
        k, j, i = inside
        return self.array[tuple(own)], (k, j, i)

    def onSlice(self, shape: Shape, axis: int, index: int) -> tuple[Array, tuple[slice, slice]]:
        """Return the part (rows, columns) on a slice, and where on the slice it is; it may be empty."""
        part, where = self.within(shape)
        rows, columns = (where[a] for a in range(3) if a != axis)
        if not where[axis].start <= index < where[axis].stop:
            return np.empty((0, 0), part.dtype), (slice(0, 0), slice(0, 0))
        return np.moveaxis(part, axis, 0)[index - where[axis].start], (rows, columns)


def segmentOf(segmentationNode: Any, segmentId: str) -> Any:
    """Return the segment, or raise `InputError` where the segmentation has none of that ID."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    if segment is None:
        raise InputError(f'{quoted(segmentationNode)} has no segment "{segmentId}" (any more); choose another segment.')
    return segment


def existing(segmentationNode: Any, segmentIds: Iterable[str]) -> list[str]:
    """Return those of the segments that are there: the user may have removed some."""
    segmentation = segmentationNode.GetSegmentation()
    return [segmentId for segmentId in segmentIds if segmentation.GetSegment(segmentId) is not None]


def layerOf(segmentationNode: Any, segmentId: str) -> Any:
    """Return the vtkOrientedImageData that holds the voxels of a segment and maybe of others."""
    layer = segmentOf(segmentationNode, segmentId).GetRepresentation(LABELMAP)
    if layer is None:
        raise InputError(
            f"{quoted(segmentationNode)} holds no voxels; create its binary labelmap in the module Segmentations."
        )
    return layer


def arrayFromLayer(layer: Any) -> Array:
    """Return the label values (k, j, i) of a layer in its own index order, sharing its memory."""
    i0, i1, j0, j1, k0, k1 = layer.GetExtent()
    shape = (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
    scalars = layer.GetPointData().GetScalars()
    if scalars is None or min(shape) < 1:
        return np.empty((0, 0, 0), np.uint8)
    return vtk_to_numpy(scalars).reshape(shape)


def layerView(layer: Any, segmentationNode: Any, volumeNode: Any) -> LayerView | None:
    """Return a layer in the indices of the volume, or None where its voxels are not voxels of the volume's grid."""
    own = arrayFromLayer(layer)
    if not own.size:
        return LayerView(own, (0, 0, 0))
    exact = gridMap(layer, segmentationNode, volumeNode)
    return None if exact is None else viewThrough(layer, exact)


def gridMap(layer: Any, segmentationNode: Any, volumeNode: Any) -> Array | None:
    """Return the (4, 4) matrix of whole numbers from (i, j, k) of a layer's grid to the volume's, None if it has none.

    Unlike its array, the grid does not begin at the layer's extent: the map stays valid when the layer grows.
    """
    shape = arrayFromLayer(layer).shape
    exact = index_map(_affineOf(layer, segmentationNode), (shape[0], shape[1], shape[2]), rasFromIjk(volumeNode))
    if exact is not None:
        exact[:3, 3] -= exact[:3, :3] @ layer.GetExtent()[::2]
    return exact


def viewThrough(layer: Any, exact: Array) -> LayerView:
    """Return a layer in the indices of the volume to which its `gridMap` leads."""
    own = arrayFromLayer(layer)
    i, j, k = ras_from_ijk(exact, np.array(layer.GetExtent()[::2]))[0]
    fromArray = exact.copy()
    fromArray[:3, 3] = i, j, k
    return LayerView(turned(own, exact), _firstIndex(own.shape, fromArray))


def resampledLayer(layer: Any, segmentationNode: Any, shape: Shape, affine: Array) -> Array:
    """Return the label values nearest to the voxels (K, J, I) of any grid, 0 outside the layer."""
    source = Volume(arrayFromLayer(layer), _affineOf(layer, segmentationNode))
    return resample_labelmap(source, Volume(np.broadcast_to(np.uint8(0), shape), affine)).array


def checkGrid(segmentationNode: Any, volumeNode: Any) -> None:
    """Make sure that slices of the volume can be written to the segmentation; `InputError` says why not.

    A segmentation without voxels takes over the grid of the volume.
    """
    segmentation = segmentationNode.GetSegmentation()
    rasFromIjk(volumeNode), worldFromNode(segmentationNode)  # must be linear
    if segmentation.GetNumberOfSegments() and segmentation.GetSourceRepresentationName() != LABELMAP:
        raise InputError(
            f"{quoted(segmentationNode)} is made of the representation {segmentation.GetSourceRepresentationName()}; "
            "make the binary labelmap its source in the module Segmentations."
        )
    segmentation.SetSourceRepresentationName(LABELMAP)
    filled = [i for i in segmentation.GetSegmentIDs() if arrayFromLayer(layerOf(segmentationNode, i)).size]
    for segmentId in filled:
        if gridMap(layerOf(segmentationNode, segmentId), segmentationNode, volumeNode) is None:
            raise otherGrid(segmentationNode, segmentId, volumeNode)
    if not filled:
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)


def otherGrid(segmentationNode: Any, segmentId: str, volumeNode: Any) -> InputError:
    """Return the error that says why a segment cannot be written."""
    return InputError(
        f'Segment "{segmentOf(segmentationNode, segmentId).GetName()}" of {quoted(segmentationNode)} lies on another '
        f"grid than {quoted(volumeNode)}; choose the volume it was made on, or a new segmentation."
    )


def resizedLayer(layer: Any, extent: Sequence[int], like: Any) -> Any:
    """Return a copy of a layer with another extent, 0 where it is new, on the grid of `like`."""
    matrix = vtk.vtkMatrix4x4()
    like.GetImageToWorldMatrix(matrix)
    resized = slicer.vtkOrientedImageData()
    resized.SetGeometryFromImageToWorldMatrix(matrix)
    resized.SetExtent(*extent)
    scalars = layer.GetPointData().GetScalars()
    resized.AllocateScalars(scalars.GetDataType() if scalars is not None else vtk.VTK_UNSIGNED_CHAR, 1)
    array, old = arrayFromLayer(resized), arrayFromLayer(layer)
    array[...] = 0
    if array.size and old.size:
        k, j, i = (a - b for a, b in zip(layer.GetExtent()[-2::-2], resized.GetExtent()[-2::-2], strict=True))
        part, where = LayerView(old, (k, j, i)).within((array.shape[0], array.shape[1], array.shape[2]))
        array[where] = part
    return resized


def orientedImage(array: Array, first: Shape, volumeNode: Any, segmentationNode: Any, likeLayer: Any = None) -> Any:
    """Return label values (k, j, i) as a vtkOrientedImageData; `first` is the volume's (k, j, i) of the first of them.

    Its grid is that of `likeLayer` where that holds voxels, which must be on the volume's grid; otherwise the volume's.
    """
    affine, exact = rasFromIjk(volumeNode), np.eye(4)
    exact[:3, 3] = first[::-1]
    if likeLayer is not None and arrayFromLayer(likeLayer).size:
        own = _affineOf(likeLayer, segmentationNode, fromExtent=False)
        exact = np.rint(np.linalg.inv(own) @ affine @ exact)
        affine = own
    k, j, i = _firstIndex(array.shape, exact)
    values = turned(array, exact)
    image = slicer.vtkOrientedImageData()
    image.SetExtent(i, i + values.shape[2] - 1, j, j + values.shape[1] - 1, k, k + values.shape[0] - 1)
    local = np.linalg.inv(worldFromNode(segmentationNode)) @ affine
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(local))
    image.AllocateScalars(get_vtk_array_type(array.dtype), 1)
    arrayFromLayer(image)[...] = values
    return image


def rebuildSurfaces(segmentationNode: Any, segmentIds: Sequence[str]) -> None:
    """Bring the 3-D surfaces of the segments in step with their voxels, without taking them away meanwhile."""
    segmentation = segmentationNode.GetSegmentation()
    slicer.vtkSlicerSegmentationsModuleLogic.ReconvertAllRepresentations(segmentationNode, list(segmentIds))
    for segmentId in segmentIds:
        segmentation.InvokeEvent(segmentation.RepresentationModified, segmentId)


def _firstIndex(shape: Shape, exact: Array) -> Shape:
    """Return (k, j, i) of the first voxel of an array (k, j, i) once it is turned by an index map."""
    corners_ijk = ras_from_ijk(exact, np.array([np.zeros(3), np.array(shape[::-1]) - 1]))
    i, j, k = (int(value) for value in corners_ijk.min(axis=0))
    return k, j, i


def _affineOf(layer: Any, segmentationNode: Any, fromExtent: bool = True) -> Array:
    """Return the (4, 4) matrix to world RAS from the indices of the layer's array, or from those of its grid."""
    matrix = vtk.vtkMatrix4x4()
    layer.GetImageToWorldMatrix(matrix)  # to the coordinates of the node, in spite of the name
    affine = worldFromNode(segmentationNode) @ slicer.util.arrayFromVTKMatrix(matrix)
    if fromExtent:
        affine[:3, 3] = ras_from_ijk(affine, layer.GetExtent()[::2])[0]
    return affine
