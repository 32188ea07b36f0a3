"""Where the voxels of nodes lie in the world: RAS in mm, all parent transforms applied."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from FewShotSegLib.data.volume import AXIS_LETTERS
from FewShotSegLib.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, int, int]


def rasFromIjk(volumeNode: Any) -> Array:
    """Return the (4, 4) matrix from (i, j, k) to world RAS; `InputError` under a non-linear or flattening transform."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    affine = worldFromNode(volumeNode) @ slicer.util.arrayFromVTKMatrix(matrix)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise InputError(f"{quoted(volumeNode)} is flattened by its spacing or transform; correct it in Transforms.")
    return affine


def worldFromNode(node: Any) -> Array:
    """Return the (4, 4) matrix from the coordinates of a node to the world; `InputError` where it is not linear."""
    transformNode = node.GetParentTransformNode()
    if transformNode is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if not transformNode.IsTransformToWorldLinear() or not transformNode.GetMatrixTransformToWorld(matrix):
        raise InputError(
            f"{quoted(node)} is under the non-linear transform {quoted(transformNode)}; harden the transform or take "
            "the node out of it in the module Transforms."
        )
    return slicer.util.arrayFromVTKMatrix(matrix)


def shapeOf(volumeNode: Any) -> Shape:
    """Return the number of voxels (K, J, I)."""
    image = volumeNode.GetImageData()
    i, j, k = image.GetDimensions() if image is not None else (0, 0, 0)
    if not i * j * k:
        raise InputError(f"{quoted(volumeNode)} has no voxels; load the image again or choose another volume.")
    return k, j, i


def voxelsOf(volumeNode: Any) -> Array:
    """Return the voxels (K, J, I), sharing the node's memory; `InputError` unless there is one number per voxel."""
    shape, scalars = shapeOf(volumeNode), volumeNode.GetImageData().GetPointData().GetScalars()
    components = scalars.GetNumberOfComponents() if scalars is not None else 0
    if scalars is None or components != 1:
        raise InputError(
            f"{quoted(volumeNode)} has {components} values per voxel, one is needed; convert it in the module Vector "
            "to Scalar Volume."
        )
    return vtk_to_numpy(scalars).reshape(shape)


def checkedSlice(volumeNode: Any, axis: int, index: int) -> tuple[int, int]:
    """Return the shape (rows, columns) of a slice, or raise `InputError` where the volume has no such slice."""
    shape = shapeOf(volumeNode)
    if axis not in (0, 1, 2):
        raise InputError(f"The slice axis is 0 (k), 1 (j) or 2 (i), got {axis!r}.")
    if not 0 <= index < shape[axis]:
        letter = AXIS_LETTERS[axis]
        raise InputError(f"{quoted(volumeNode)} has the slices {letter}=0 to {shape[axis] - 1}, got {letter}={index}.")
    rows, columns = (n for a, n in enumerate(shape) if a != axis)
    return rows, columns


def quoted(node: Any) -> str:
    """Return the name of a node as messages show it."""
    return f'"{node.GetName()}"'
