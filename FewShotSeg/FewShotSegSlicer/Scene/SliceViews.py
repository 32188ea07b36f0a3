"""Slices of a volume in the slice views: which one a view shows, and how to get there.

A slice is (axis, index); axis 0, 1, 2 is k, j, i of the array (K, J, I).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from FewShotSegLib.data.volume import ijk_from_ras, ras_from_ijk

from .Geometry import Array, checkedSlice, rasFromIjk, shapeOf


def viewedSlice(volumeNode: Any, sliceNode: Any) -> tuple[int, int] | None:
    """Return (axis, index) of the volume's slice nearest to a view's plane; None where that is outside the volume.

    In an oblique view, that is the slice under the middle of the view.
    """
    affine, shape = rasFromIjk(volumeNode), shapeOf(volumeNode)
    normal_ras, centre_ras = _planeOf(sliceNode)
    axis, _ = _nearestAxis(affine, normal_ras)
    column = 2 - axis
    normal_ijk = affine[:3, :3].T @ normal_ras  # a plane's normal moves with the transposed matrix
    centre_ijk = ijk_from_ras(affine, centre_ras)[0]
    aside_ijk = np.clip(centre_ijk, 0, np.array(shape[::-1]) - 1)
    aside_ijk[column] = 0
    position = normal_ijk @ (centre_ijk - aside_ijk) / normal_ijk[column]
    index = int(np.floor(position + 0.5 + 1e-6))  # half-way between two slices the last bit must not decide
    return (axis, index) if 0 <= index < shape[axis] else None


def viewedSlices(volumeNode: Any) -> list[tuple[int, int]]:
    """Return the slices that the views of the layout show of a volume, in the order of the views."""
    layoutManager = slicer.app.layoutManager()
    names = layoutManager.sliceViewNames() if layoutManager is not None else ()
    views = [layoutManager.sliceWidget(name).mrmlSliceNode() for name in names]
    return [where for view in views if (where := viewedSlice(volumeNode, view)) is not None]


def showVolume(volumeNode: Any) -> None:
    """Show a volume in the slice views, unless they show it already."""
    layoutManager = slicer.app.layoutManager()
    if layoutManager is None:
        return
    shown = {
        layoutManager.sliceWidget(name).sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID()
        for name in layoutManager.sliceViewNames()
    }
    if shown != {volumeNode.GetID()}:
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)


def sliceObliqueness(volumeNode: Any, sliceNode: Any) -> float:
    """Return the angle in degrees between a view's plane and the slice of the volume that `viewedSlice` returns."""
    return _nearestAxis(rasFromIjk(volumeNode), _planeOf(sliceNode)[0])[1]


def jumpToSlice(volumeNode: Any, axis: int, index: int, sliceNode: Any = None) -> None:
    """Show a slice in the views that cut the volume along `axis`, or in `sliceNode`; turns a view where it must."""
    affine, centre_ras = rasFromIjk(volumeNode), _sliceCentre(volumeNode, axis, index)
    views = [sliceNode] if sliceNode is not None else list(slicer.util.getNodesByClass("vtkMRMLSliceNode"))
    along = [view for view in views if _nearestAxis(affine, _planeOf(view)[0])[0] == axis]
    if not along:
        for view in views[:1]:
            _alignTo(view, volumeNode, axis, centre_ras)
    for view in along:
        view.JumpSliceByOffsetting(*centre_ras)
        if viewedSlice(volumeNode, view) != (axis, index):  # an oblique view shows other slices away from the centre
            view.JumpSliceByCentering(*centre_ras)


def _sliceCentre(volumeNode: Any, axis: int, index: int) -> Array:
    checkedSlice(volumeNode, axis, index)
    centre_ijk = (np.array(shapeOf(volumeNode)[::-1]) - 1) / 2
    centre_ijk[2 - axis] = index
    return ras_from_ijk(rasFromIjk(volumeNode), centre_ijk)[0]


def _planeOf(sliceNode: Any) -> tuple[Array, Array]:
    """Return the unit normal and the middle of a view's plane in RAS."""
    rasFromSlice = slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS())
    return rasFromSlice[:3, 2] / np.linalg.norm(rasFromSlice[:3, 2]), rasFromSlice[:3, 3]


def _alignTo(view: Any, volumeNode: Any, axis: int, centre_ras: Array) -> None:
    """Turn a view into the plane of a slice, as little as possible from the nearest anatomical orientation."""
    view.SetOrientation(("Sagittal", "Coronal", "Axial")[_anatomicalAxis(volumeNode, axis)])
    preset = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
    normal = _sliceNormals(rasFromIjk(volumeNode))[axis]
    normal = normal * np.sign(normal @ preset[:3, 2])
    across = preset[:3, 0] - normal * (normal @ preset[:3, 0])
    view.SetSliceToRASByNTP(*normal, *(across / np.linalg.norm(across)), *centre_ras, 0)


def _sliceNormals(affine: Array) -> Array:
    """Return the unit normals in RAS of the slices along k, j and i; of a sheared volume these are not its axes."""
    normals = np.linalg.inv(affine[:3, :3])[::-1]
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _nearestAxis(affine: Array, normal_ras: Array) -> tuple[int, float]:
    """Return the axis whose slices lie most like a plane, and the angle between the two in degrees."""
    normals = _sliceNormals(affine)
    cosines = np.abs(normals @ normal_ras)
    axis = int(cosines.argmax())
    sine = np.linalg.norm(np.cross(normals[axis], normal_ras))
    return axis, float(np.degrees(np.arctan2(sine, cosines[axis])))


def _anatomicalAxis(volumeNode: Any, axis: int) -> int:
    """Return whether the slices along `axis` are most like sagittal (0), coronal (1) or axial (2) ones."""
    return int(np.abs(_sliceNormals(rasFromIjk(volumeNode))[axis]).argmax())
