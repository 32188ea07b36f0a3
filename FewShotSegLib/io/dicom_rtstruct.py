"""RT structure sets (DICOM PS3.3, A.19): structures as closed contours on the slices of a series, reading and writing.

Contours are written along pixel edges, holes as keyholes (C.8.8.6.3); see `imaging.contours`. Only pydicom is
required.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.structures import distinct_names, structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError, reason_of
from FewShotSegLib.imaging.contours import filled, outlines
from FewShotSegLib.version import __version__

from .dicom import RT_STRUCTURE_SET, header_of
from .dicom_seg import terminology_of
from .dicom_source import checked_name, images_of, sop_class_of
from .files import written_whole

if TYPE_CHECKING:
    from pydicom import Dataset

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

SUFFIX = ".rtstruct.dcm"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE = 0.1  # tolerated offset of a contour from its slice, in slice spacings; headers are rounded
_LPS = np.array([-1.0, -1.0, 1.0])  # RAS to LPS and back


def is_rtstruct(path: Path) -> bool:
    """Whether a file is an RT structure set, by its header."""
    return sop_class_of(path) == RT_STRUCTURE_SET


# --------------------------------------------------------------------------------------------------------------- read


@dataclass(frozen=True, eq=False)
class _Outline:
    """A closed outline (N, 3), in RAS mm or in voxels (i, j, k); whether its geometric type is CLOSEDPLANAR_XOR."""

    points: Array
    exclusive: bool


def rtstruct_names(path: Path) -> dict[int, str]:
    """Return {label: name} of the structures of an RT structure set, as `load_rtstruct` numbers them."""
    return {number: name for number, (name, _) in _structures_of(path).items()}


def load_rtstruct(path: Path, grid: Volume, *, series: Sequence[Path] = (), extend: bool = False) -> Labelmap:
    """Return the structures of an RT structure set, rasterized on `grid`, numbered 1, 2, ... in the order of the set.

    A voxel belongs to a structure if its centre is within the contours of its slice. Where structures overlap, the
    smaller one is on top and `Labelmap.mask` has all voxels of each. With `extend` the grid is extended to cover all
    contours. Structures of points and open contours are skipped, which is logged.

    `InputError`: a set of another series than the one with the files `series` (none: not checked), contours between the
    slices or outside the image, nothing but points and open contours.
    """
    found = _structures_of(path, series)
    outlined = {
        number: [_Outline(ijk_from_ras(grid.affine, one.points), one.exclusive) for one in every]
        for number, (_, every) in found.items()
    }
    names = {number: name for number, (name, _) in found.items()}
    axis = _across(outlined, names, path)
    low, high = np.zeros(3, np.int64), np.array(grid.shape[::-1])  # of i, j, k
    points = [one.points for every in outlined.values() for one in every]
    if extend and points:
        whole = np.concatenate(points)
        low = np.minimum(low, np.ceil(whole.min(axis=0) - _OFF_SLICE)).astype(np.int64)
        high = np.maximum(high, np.floor(whole.max(axis=0) + _OFF_SLICE) + 1).astype(np.int64)
    else:
        _check_inside(points, high, axis, path)
    affine = grid.affine.copy()
    affine[:3, 3] = ras_from_ijk(grid.affine, low)[0]
    shape = tuple((high - low)[::-1].tolist())
    voxels = {
        number: _voxels([_Outline(one.points - low, one.exclusive) for one in every], axis, shape, names[number], path)
        for number, every in outlined.items()
    }
    labels, hidden = _on_top_of_each_other(voxels, shape)
    return Labelmap(Volume(labels, affine), names, hidden)


def _structures_of(path: Path, series: Sequence[Path] = ()) -> dict[int, tuple[str, list[_Outline]]]:
    """{number: (name, contours in RAS mm)} of the structures with closed contours, or without any."""
    header = header_of(path, str(path))
    if header.get("SOPClassUID") != RT_STRUCTURE_SET:
        raise InputError(f"{path} is no RT structure set; choose one, or a segmentation.")
    _check_series(header, path, series)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about non-conformant values; what matters is checked here
            found = _read(header)
    except Exception as error:  # texts instead of numbers, missing sequences, ...
        reason = reason_of(error)
        raise InputError(f"{path} cannot be read as an RT structure set ({reason}); export it again.") from None
    open_ones = [name for name, every in found.values() if every is None]
    if open_ones:
        log.warning("%s: %s left out, of points or open lines, which hold no voxels.", path, ", ".join(open_ones))
    closed = {number: (name, every) for number, (name, every) in found.items() if every is not None}
    if not closed:
        raise InputError(f"{path} holds no structure with a closed outline; export one with outlines on the slices.")
    names = distinct_names({number: name for number, (name, _) in closed.items()})
    return {number: (names[number], every) for number, (_, every) in closed.items()}


def _read(header: Dataset) -> dict[int, tuple[str, list[_Outline] | None]]:
    """{position in the set: (name, contours)}; None for a structure with points or open contours."""
    drawn = {int(item.ReferencedROINumber): item for item in header.get("ROIContourSequence") or []}
    found: dict[int, tuple[str, list[_Outline] | None]] = {}
    for number, roi in enumerate(header.get("StructureSetROISequence") or [], start=1):
        item = drawn.get(int(roi.ROINumber))
        contours = [one for one in (item and item.get("ContourSequence")) or [] if one.get("ContourData")]
        name = str(roi.get("ROIName") or "").strip() or f"ROI {roi.ROINumber}"
        closed = all(one.ContourGeometricType in _CLOSED for one in contours)
        found[number] = name, [_outline(one) for one in contours] if closed else None
    return found


def _outline(contour: Dataset) -> _Outline:
    points = np.array(contour.ContourData, np.float64).reshape(-1, 3) * _LPS
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is no number")
    return _Outline(points, contour.ContourGeometricType == "CLOSEDPLANAR_XOR")


def _check_series(header: Dataset, path: Path, series: Sequence[Path]) -> None:
    if not series:
        return
    own = str(header_of(series[0], str(series[0])).get("SeriesInstanceUID") or "")
    referred = [
        str(one.get("SeriesInstanceUID"))
        for frame in header.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for one in study.get("RTReferencedSeriesSequence") or []
    ]
    if referred and own not in referred:
        raise InputError(
            f"{path} was drawn on another series ({', '.join(referred)}) than the one in {series[0].parent} ({own}); "
            "give the series that it was drawn on. Where only the identifiers differ, as after de-identification, ask "
            "for the image's geometry (--same-voxels, same_voxels=True)."
        )


def _across(outlined: Mapping[int, Sequence[_Outline]], names: Mapping[int, str], path: Path) -> int:
    """The axis of (i, j, k) across the slices of the contours; rejected if they are not on slices."""
    ranges = [np.ptp(one.points, axis=0) for every in outlined.values() for one in every]
    axis = int(np.argmin(np.max(ranges, axis=0))) if ranges else 2
    for number, every in outlined.items():
        for one in every:
            at = one.points[:, axis]
            beside = float(np.abs(at - np.rint(at.mean())).max())
            if beside > _OFF_SLICE:
                raise InputError(
                    f'{path}: an outline of "{names[number]}" does not lie on a slice of the image, but '
                    f"{beside:.2g} slices beside one; give the image that it was drawn on."
                )
    return axis


def _check_inside(points: Sequence[Array], size: Array, axis: int, path: Path) -> None:
    """Reject contours on missing slices or outside the image; those that cross its border are clipped."""
    outside = 0
    for one in points:
        index = np.rint(one[:, axis].mean())
        beside = (one.max(axis=0) < -0.5) | (one.min(axis=0) > size - 0.5)
        outside += bool(beside.any() or not 0 <= index < size[axis])
    if outside:
        raise InputError(
            f"{path}: {outside} of {len(points)} outlines lie beyond the image; give the image that they were drawn on."
        )


def _voxels(every: Sequence[_Outline], axis: int, shape: tuple[int, ...], name: str, path: Path) -> Array:
    """The voxels of a structure in an array (K, J, I), as flat indices (N,)."""
    columns, rows = (a for a in range(3) if a != axis)  # of (i, j, k): the lower one is along the rows of a slice
    slices: dict[int, list[tuple[Array, bool]]] = {}
    for one in every:
        index = int(np.rint(one.points[:, axis].mean()))
        slices.setdefault(index, []).append((one.points[:, [columns, rows]], one.exclusive))
    found, overlapping = [np.zeros(0, np.int64)], []
    for index, polygons in sorted(slices.items()):
        mask, overlaps = filled(polygons, (shape[2 - rows], shape[2 - columns]))
        at: list[Any] = [None, None, None]
        at[2 - rows], at[2 - columns] = np.nonzero(mask)
        at[2 - axis] = np.full(len(at[2 - rows]), index)
        found.append(np.ravel_multi_index(at, shape))
        overlapping += [index] if overlaps else []
    if overlapping:
        log.warning('%s: outlines of "%s" overlap on slice %d; they are joined.', path, name, overlapping[0])
    return np.concatenate(found)


def _on_top_of_each_other(voxels: Mapping[int, Array], shape: tuple[int, ...]) -> tuple[Array, dict[int, Array]]:
    """Labels (K, J, I), small structures on top of large ones, and {label: mask} of voxels covered by others."""
    labels = np.zeros(shape, np.uint8 if max(voxels) <= 255 else np.uint16)
    hidden: dict[int, Array] = {}
    for number in sorted(voxels, key=lambda number: -len(voxels[number])):
        under = labels.reshape(-1)[voxels[number]]
        for below in np.unique(under[under > 0]).tolist():
            mask = hidden.setdefault(below, np.zeros(shape, bool))
            mask.reshape(-1)[voxels[number][under == below]] = True
        labels.reshape(-1)[voxels[number]] = number
    return labels, hidden


# -------------------------------------------------------------------------------------------------------------- write


def save_rtstruct(labelmap: Labelmap, path: str | os.PathLike[str], source: Sequence[Path]) -> None:
    """Write an RT structure set for the series with the files `source`, in any order.

    The labelmap must be on the voxel grid of that series, else `InputError`. Patient, study and frame of reference are
    those of the series; each structure has its name, its colour and the SNOMED CT code of its name in DICOM's
    dictionary. The same labels for the same series get the same unique identifiers.
    """
    path = Path(path)
    images = images_of(labelmap.volume, source, path)
    if not labelmap.structures:
        raise InputError(f"{path}: an RT structure set needs at least one structure, got none.")
    if not images[0].get("FrameOfReferenceUID"):
        raise InputError(
            f"{path}: the series has no frame of reference, which an RT structure set refers to; choose the format "
            "seg.nrrd."
        )
    found = _card(labelmap, images)
    found.StructureSetROISequence, found.ROIContourSequence, found.RTROIObservationsSequence = [], [], []
    colors = structure_colors(labelmap.structures)
    for number, (value, name) in enumerate(labelmap.structures.items(), start=1):
        found.StructureSetROISequence.append(_roi(number, name, images[0]))
        contours = list(_contours(labelmap.mask(value), labelmap.volume, images))
        rgb = [round(255 * part) for part in colors[value]]
        found.ROIContourSequence.append(_item(ROIDisplayColor=rgb, ReferencedROINumber=number))
        if contours:
            found.ROIContourSequence[-1].ContourSequence = contours
        found.RTROIObservationsSequence.append(_observation(number, name))
    with written_whole(path) as part:
        _save(found, part)


def _save(found: Dataset, path: Path) -> None:
    """Write a file with preamble and header, with pydicom 3 and pydicom 2, which ships with Slicer."""
    import pydicom

    if int(pydicom.__version__.split(".")[0]) >= 3:
        found.save_as(path, enforce_file_format=True)
        return
    found.is_little_endian, found.is_implicit_VR = True, False
    found.save_as(path, write_like_original=False)


def _item(**values: Any) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    return item


def _card(labelmap: Labelmap, images: Sequence[Dataset]) -> Dataset:
    """The set without its structures: patient, study, equipment, and the referenced series."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    first, now = images[0], datetime.now()
    hidden = [sha256_of_array(mask) for _, mask in sorted(labelmap.hidden.items())]
    content = [sha256_of_array(labelmap.volume.array), *hidden, sha256_of_json(list(labelmap.structures.values()))]
    content.append(str(first.SeriesInstanceUID))
    found = _item(
        SOPClassUID=RT_STRUCTURE_SET,
        SOPInstanceUID=generate_uid(entropy_srcs=["rtstruct instance", *content]),
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(entropy_srcs=["rtstruct series", *content]),
        SeriesNumber=int(first.get("SeriesNumber") or 0) + 2000,
        SeriesDescription="FewShotSeg structures",
        InstanceNumber=1,
        OperatorsName="",
        Manufacturer="FewShotSeg",
        ManufacturerModelName="FewShotSegLib",
        SoftwareVersions=__version__,
        StructureSetLabel="FewShotSeg",
        StructureSetDate=f"{now:%Y%m%d}",
        StructureSetTime=f"{now:%H%M%S}",
        ApprovalStatus="UNAPPROVED",
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        PositionReferenceIndicator=first.get("PositionReferenceIndicator", ""),
    )
    for key in ("SpecificCharacterSet", "PatientAge", "StudyDescription"):
        if first.get(key):
            setattr(found, key, first.get(key))
    for key in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        setattr(found, key, first.get(key, ""))
    for key in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(found, key, first.get(key, ""))
    if any(not name.isascii() for name in labelmap.structures.values()):
        found.SpecificCharacterSet = "ISO_IR 192"  # UTF-8; pydicom re-encodes the patient's name
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=[_reference(i) for i in images])
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # Detached Study Management, as required by the standard
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    found.ReferencedFrameOfReferenceSequence = [frame]
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    return found


def _reference(image: Dataset) -> Dataset:
    return _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)


def _roi(number: int, name: str, image: Dataset) -> Dataset:
    return _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=image.FrameOfReferenceUID,
        ROIName=checked_name(name),
        ROIGenerationAlgorithm="SEMIAUTOMATIC",
    )


def _observation(number: int, name: str) -> Dataset:
    _, kind, side = terminology_of(name)
    code = _code(kind)
    if side is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [_code(side)]
    return _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIIdentificationCodeSequence=[code],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )


def _code(code: Any) -> Dataset:
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def _contours(mask: Array, volume: Volume, images: Sequence[Dataset]) -> Iterator[Dataset]:
    """The contours of a structure (K, J, I), slice by slice."""
    for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        for polygon in outlines(mask[k]):
            ijk = np.column_stack([polygon, np.full(len(polygon), float(k))])
            lps = ras_from_ijk(volume.affine, ijk) * _LPS
            yield _item(
                ContourImageSequence=[_reference(images[k])],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(polygon),
                ContourData=[f"{value:.4f}" for value in lps.ravel()],
            )
