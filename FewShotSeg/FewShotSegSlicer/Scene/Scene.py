"""MRML nodes as the library's data, and back. Stateless.

With Geometry and Layers the only place where RAS meets nodes. World is RAS in mm with all parent transforms; arrays are
(K, J, I); axis 0, 1, 2 of a slice is k, j, i. Segments on another grid than the volume are read by their nearest voxel;
writing to them is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.structures import distinct_names, structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed

from .Geometry import Array, Shape, checkedSlice, ijkFromRas, quoted, rasFromIjk, shapeOf, voxelsOf, worldFromNode
from .Layers import (
    LABELMAP,
    SURFACE,
    checkGrid,
    layerOf,
    layerView,
    orientedImage,
    rebuildSurfaces,
    resampledLayer,
    segmentOf,
)

__all__ = [
    "addSegment",
    "alignView",
    "annotatedSlices",
    "claim",
    "ijkFromRas",
    "jumpToSlice",
    "labelmapFromSegmentation",
    "newSegmentation",
    "projectedOntoSlice",
    "promptFromRas",
    "rasFromIjk",
    "segmentationFromLabelmap",
    "segmentsByName",
    "sliceMask",
    "sliceObliqueness",
    "sliceOffset",
    "viewedSlice",
    "volumeFromNode",
    "volumeOf",
    "volumesInSequence",
]

_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------------- volumes


def volumeFromNode(volumeNode: Any) -> Volume:
    """Return the voxels (K, J, I), sharing the node's memory, and the affine from (i, j, k) to world RAS.

    Raises `InputError` for a node without voxels, with several values per voxel or NaN, or under a warp.
    """
    array = voxelsOf(volumeNode)
    try:
        return Volume(array, rasFromIjk(volumeNode))
    except InputError as error:
        raise InputError(f"{quoted(volumeNode)}: {error}") from None


def volumesInSequence(node: Any) -> Iterator[tuple[int, Volume]]:
    """Yield the number, from 0, and the volume of every item of a sequence, given itself or by its browser."""
    sequence, world = node, np.eye(4)
    if node.IsA("vtkMRMLSequenceBrowserNode"):
        sequence = node.GetMasterSequenceNode()
        if sequence is None:
            raise InputError(f"The sequence browser {quoted(node)} has no sequence; add one in the module Sequences.")
        proxy = node.GetProxyNode(sequence)
        world = worldFromNode(proxy) if proxy is not None else world  # the items themselves are under no transform
    for number in range(sequence.GetNumberOfDataNodes()):
        item = sequence.GetNthDataNode(number)
        if not item.IsA("vtkMRMLVolumeNode"):
            raise InputError(f"{quoted(sequence)} is a sequence of {item.GetNodeTagName()}s; choose one of volumes.")
        volume = volumeFromNode(item)
        yield number, Volume(volume.array, world @ volume.affine)


# -------------------------------------------------------------------------------------------------------------- slices


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


def sliceObliqueness(volumeNode: Any, sliceNode: Any) -> float:
    """Return the angle in degrees between a view's plane and the slice of the volume that `viewedSlice` returns."""
    return _nearestAxis(rasFromIjk(volumeNode), _planeOf(sliceNode)[0])[1]


def alignView(volumeNode: Any, sliceNode: Any) -> None:
    """Turn an oblique view into the plane of the slice it views, or of the middle slice where it views none.

    Only then is a slice of the volume what the view shows.
    """
    axis, _ = _nearestAxis(rasFromIjk(volumeNode), _planeOf(sliceNode)[0])
    _, index = viewedSlice(volumeNode, sliceNode) or (axis, shapeOf(volumeNode)[axis] // 2)
    _alignTo(sliceNode, volumeNode, axis, _sliceCentre(volumeNode, axis, index))


def sliceOffset(volumeNode: Any, axis: int, index: int, sliceNode: Any = None) -> float:
    """Return the offset in mm at which a view shows the middle of a slice.

    Without `sliceNode`, in that of the axial, coronal and sagittal views which shows the slice least obliquely.
    """
    centre_ras = _sliceCentre(volumeNode, axis, index)
    if sliceNode is None:
        return float(centre_ras[_anatomicalAxis(volumeNode, axis)])
    return float(_planeOf(sliceNode)[0] @ centre_ras)


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


def projectedOntoSlice(volumeNode: Any, axis: int, index: int, points_ras: Any) -> Array:
    """Return points (N, 3) in world RAS moved along `axis` onto a slice: in oblique views clicks lie beside it."""
    return ras_from_ijk(rasFromIjk(volumeNode), _ijkOnSlice(volumeNode, axis, index, points_ras))


def promptFromRas(
    volumeNode: Any,
    axis: int,
    index: int,
    points_ras: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    box_ras: Sequence[Sequence[float]] | None = None,
    structure: str | None = None,
) -> Prompt:
    """Return the prompt on a slice for points, with label 1 (inside) or 0 (outside), and a box given in world RAS."""
    return Prompt(
        axis=axis,
        index=index,
        points_ijk=_ijkOnSlice(volumeNode, axis, index, points_ras),
        point_labels=np.asarray(labels, dtype=np.int64),
        box_ijk=_ijkOnSlice(volumeNode, axis, index, box_ras) if box_ras is not None else None,
        structure=structure,
    )


def _ijkOnSlice(volumeNode: Any, axis: int, index: int, points_ras: Any) -> Array:
    points_ijk = ijk_from_ras(rasFromIjk(volumeNode), points_ras)
    points_ijk[:, 2 - axis] = index
    return points_ijk


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


# ------------------------------------------------------------------------------------------------------- segmentations


def segmentsByName(segmentationNode: Any) -> dict[str, str]:
    """Return {name: ID} in segment order; of two segments of one name, the first."""
    segmentation = segmentationNode.GetSegmentation()
    found: dict[str, str] = {}
    for segmentId in segmentation.GetSegmentIDs():
        found.setdefault(segmentation.GetSegment(segmentId).GetName(), segmentId)
    return found


def volumeOf(segmentationNode: Any) -> Any:
    """Return the volume that a segmentation was made on, None where it does not say."""
    return segmentationNode.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def claim(segmentationNode: Any, volumeNode: Any) -> None:
    """Let a segmentation that does not say on which volume it was made belong to this one; either may be None."""
    if segmentationNode is not None and volumeNode is not None and volumeOf(segmentationNode) is None:
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        segmentationNode.SetNodeReferenceID(role, volumeNode.GetID())


def addSegment(segmentationNode: Any, name: str) -> str:
    """Add an empty segment and return its ID; colour and terminology follow the name, its status is in progress."""
    if not name.strip():
        raise InputError("A segment needs a name; give the structure a name first.")
    segmentation = segmentationNode.GetSegmentation()
    names = [segmentation.GetSegment(segmentId).GetName() for segmentId in segmentation.GetSegmentIDs()]
    color = structure_colors(dict(enumerate([*names, name], start=1)))[len(names) + 1]
    segmentId = segmentation.AddEmptySegment("", name, color)
    segment = segmentation.GetSegment(segmentId)
    segment.NameAutoGeneratedOff()
    segment.ColorAutoGeneratedOff()
    terminology = _terminologyOf(name)
    if terminology is not None:
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, logic.InProgress)
    return segmentId


def sliceMask(segmentationNode: Any, segmentId: str, volumeNode: Any, axis: int, index: int) -> Array:
    """Return which voxels (rows, columns) of a slice of the volume belong to a segment."""
    rows, columns = checkedSlice(volumeNode, axis, index)
    value = segmentOf(segmentationNode, segmentId).GetLabelValue()
    layer = layerOf(segmentationNode, segmentId)
    view = layerView(layer, segmentationNode, volumeNode)
    mask = np.zeros((rows, columns), bool)
    if view is not None:
        part, where = view.onSlice(shapeOf(volumeNode), axis, index)
        mask[where] = part == value
        return mask
    affine = rasFromIjk(volumeNode)
    affine[:3, 3] += index * affine[:3, 2 - axis]
    k, j, i = np.expand_dims(mask, axis).shape
    return resampledLayer(layer, segmentationNode, (k, j, i), affine).reshape(rows, columns) == value


def annotatedSlices(
    segmentationNode: Any, volumeNode: Any, axis: int, segmentIds: Sequence[str] | None = None
) -> list[int]:
    """Return the indices of the slices along `axis` on which one of the segments (default: any) has a voxel."""
    checkedSlice(volumeNode, axis, 0)
    found = np.zeros(shapeOf(volumeNode)[axis], bool)
    for labels, where in _layersOf(segmentationNode, volumeNode, _segmentIds(segmentationNode, segmentIds)):
        found[where[axis]] |= labels.any(axis=tuple({0, 1, 2} - {axis}))
    return [int(index) for index in np.flatnonzero(found)]


def labelmapFromSegmentation(
    segmentationNode: Any, volumeNode: Any, segmentIds: Sequence[str] | None = None
) -> Labelmap:
    """Return the segments (default: all) on the grid of the volume, with the values 1, 2, ... in their order.

    Where segments overlap the later one is kept, which is logged. Two segments of one name get their value behind it.
    """
    ids = _segmentIds(segmentationNode, segmentIds)
    labels = np.zeros(shapeOf(volumeNode), np.uint8 if len(ids) <= 255 else np.uint16)
    overlapping = 0
    for ofLayer, where in _layersOf(segmentationNode, volumeNode, ids):
        overlapping += int(np.count_nonzero((labels[where] > 0) & (ofLayer > 0)))
        np.maximum(labels[where], ofLayer, out=labels[where])
    if overlapping:
        log.warning("%s: segments overlap in %d voxels; the later is kept.", segmentationNode.GetName(), overlapping)
    names = {label: segmentOf(segmentationNode, i).GetName() for label, i in enumerate(ids, start=1)}
    return Labelmap(Volume(labels, rasFromIjk(volumeNode)), distinct_names(names))


def segmentationFromLabelmap(
    labelmap: Labelmap, volumeNode: Any, segmentationNode: Any = None, name: str | None = None
) -> Any:
    """Write every structure of a labelmap into the segment of its name and return the segmentation node.

    Segments that are missing are added; all others stay as they are, also where they overlap. Without
    `segmentationNode` a new one is made beside the volume, under the same transform. `InputError`, before anything has
    changed, where the labelmap or the segmentation is on another grid than the volume.
    """
    labels = _labelsOn(labelmap, volumeNode)
    if segmentationNode is None:
        segmentationNode = newSegmentation(volumeNode, name)
    checkGrid(segmentationNode, volumeNode)
    existing = segmentsByName(segmentationNode)
    ids = {}
    for value, structure in labelmap.structures.items():
        if structure in existing:  # its old voxels leave the layer that it shares with others
            segmentationNode.GetSegmentation().SeparateSegmentLabelmap(existing[structure])
        ids[value] = existing.get(structure) or addSegment(segmentationNode, structure)
    if ids:
        _replaceVoxels(segmentationNode, ids, labels, volumeNode)
    return segmentationNode


def _labelsOn(labelmap: Labelmap, volumeNode: Any) -> Array:
    """Return the labels (K, J, I) in the index order of the volume."""
    grid = Volume(np.broadcast_to(np.uint8(0), shapeOf(volumeNode)), rasFromIjk(volumeNode))
    same = labelmap.volume if labelmap.volume.same_geometry(grid) else reindexed(labelmap.volume, grid, crop=True)
    if same is None:
        raise InputError(
            f"The labelmap, of {labelmap.volume.shape} voxels, does not lie on the grid of {quoted(volumeNode)}, of "
            f"{grid.shape}; choose the volume it was made from."
        )
    return same.array


def newSegmentation(volumeNode: Any, name: str | None = None) -> Any:
    """Return a new segmentation node without segments, beside the volume and under the same transform."""
    scene = volumeNode.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name or f"{volumeNode.GetName()} segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volumeNode))
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), parent)
    return node


def _replaceVoxels(segmentationNode: Any, ids: Mapping[int, str], labels: Array, volumeNode: Any) -> None:
    """Give the segments {value: ID} the voxels of a labelmap (K, J, I), in one new layer that they share."""
    segmentation = segmentationNode.GetSegmentation()
    named = np.zeros(max(int(labels.max()), *ids) + 1, bool)
    named[list(ids)] = True
    first, part = _boundingBox((labels * named[labels]).astype(np.uint8 if max(ids) <= 255 else np.uint16))
    layer = orientedImage(part, first, volumeNode, segmentationNode)
    for value, segmentId in ids.items():
        segment = segmentation.GetSegment(segmentId)
        segment.SetLabelValue(value)
        segment.AddRepresentation(LABELMAP, layer)
    for segmentId in ids.values():
        segmentation.InvokeEvent(segmentation.SourceRepresentationModified, segmentId)
    if segmentation.ContainsRepresentation(SURFACE):
        rebuildSurfaces(segmentationNode, list(ids.values()))


def _boundingBox(labels: Array) -> tuple[Shape, Array]:
    """Return the part of an array that holds all values other than 0, at least one voxel, behind its first index."""
    spans = []
    for axis in range(3):
        used = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis})))
        spans.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1))
    k, j, i = spans
    return (k.start, j.start, i.start), labels[k, j, i]


def _segmentIds(segmentationNode: Any, segmentIds: Sequence[str] | None) -> list[str]:
    return list(segmentationNode.GetSegmentation().GetSegmentIDs() if segmentIds is None else segmentIds)


def _layersOf(
    segmentationNode: Any, volumeNode: Any, segmentIds: Sequence[str]
) -> Iterator[tuple[Array, tuple[slice, slice, slice]]]:
    """Yield for each layer its part of the volume (k, j, i) with the segments numbered from 1, and where that is."""
    shape = shapeOf(volumeNode)
    layers: dict[Any, dict[int, int]] = {}
    for number, segmentId in enumerate(segmentIds, start=1):
        numbers = layers.setdefault(layerOf(segmentationNode, segmentId), {})
        numbers[segmentOf(segmentationNode, segmentId).GetLabelValue()] = number
    for layer, numbers in layers.items():
        view = layerView(layer, segmentationNode, volumeNode)
        if view is None:
            where = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
            values = resampledLayer(layer, segmentationNode, shape, rasFromIjk(volumeNode))
        else:
            values, where = view.within(shape)
        size = max(int(values.max(initial=0)), *numbers) + 1
        numberOf = np.zeros(size, np.uint8 if len(segmentIds) <= 255 else np.uint16)
        numberOf[list(numbers)] = list(numbers.values())
        yield numberOf[values], where


# --------------------------------------------------------------------------------------------------------- terminology


def _terminologyOf(name: str) -> str | None:
    """Return Slicer's entry for an anatomical name, such as "liver" or "left kidney", in the form segments keep it."""
    module = getattr(slicer.modules, "terminologies", None)
    logic = module.logic() if module is not None else None
    if logic is None or not logic.IsTerminologyContextLoaded(_ANATOMY):
        return None
    plain = re.sub(r"[^a-z]+", " ", name.lower()).strip()
    entry = slicer.vtkSlicerTerminologyEntry()
    if not logic.FindTypeInTerminologyBy3dSlicerLabel(_ANATOMY, plain, entry):
        entry = _entryByMeaning(logic, plain)
    return logic.SerializeTerminologyEntry(entry) if entry is not None else None


def _entryByMeaning(logic: Any, plain: str) -> Any:
    entry = slicer.vtkSlicerTerminologyEntry()
    entry.SetTerminologyContextName(_ANATOMY)
    category, kind = entry.GetCategoryObject(), entry.GetTypeObject()
    for c in range(logic.GetNumberOfCategoriesInTerminology(_ANATOMY)):
        logic.GetNthCategoryInTerminology(_ANATOMY, c, category)
        for t in range(logic.GetNumberOfTypesInTerminologyCategory(_ANATOMY, category)):
            logic.GetNthTypeInTerminologyCategory(_ANATOMY, category, t, kind)
            if kind.GetCodeMeaning().lower() == plain:
                return entry
    return None
