"""DICOM segmentation objects: written for a source series with coded terminology, read as named structures.

Needs the extra `dicom-seg` (highdicom). The objects are of the type BINARY, with a frame for each slice of a structure
that is not empty, as dcmqi writes them and viewers expect them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.structures import distinct_names, structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.version import __version__

from .dicom import LPS_FROM_RAS, SEGMENTATION, header_of, series_files
from .files import written_whole
from .images import DICOM_SUFFIXES

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)

SUFFIX = ".seg.dcm"
_SEG_CLASSES = (SEGMENTATION, "1.2.840.10008.5.1.4.1.1.66.7")  # and Label Map Segmentation
_TOLERANCE_MM = 1e-3
_LONGEST_NAME = 64  # characters of DICOM's value representation LO
_SIDES = ("left", "right")
# Words of ours for what the standard's dictionary calls otherwise.
_CALLED = {
    "urinary bladder": "bladder",
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
    "postcava": "inferior vena cava",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "metastasis": "neoplasm secondary",
    "oedema": "edema",
    "thyroid gland": "thyroid",
    "bone": "bone tissue",
    "muscle": "muscle tissue",
    "fat": "adipose tissue",
}
# The context groups of DICOM that hold the types of a category (CID 7150).
_GROUPS = {
    "AnatomicalStructure": "cid7192",
    "MorphologicallyAbnormalStructure": "cid7194",
    "Tissue": "cid7191",
}


def check_available() -> None:
    """Raise `InputError` where the extra is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError('DICOM SEG needs the package highdicom: pip install "FewShotSegLib[dicom-seg]".')


# --------------------------------------------------------------------------------------------------------------- read


def is_dicom_seg(path: Path) -> bool:
    """Whether a file says that it is a DICOM segmentation."""
    import SimpleITK as sitk

    if not path.is_file() or path.suffix.lower() not in DICOM_SUFFIXES:
        return False
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    key = "0008|0016"
    return reader.HasMetaDataKey(key) and reader.GetMetaData(key).strip("\0 ") in _SEG_CLASSES


def load_dicom_seg(path: str | os.PathLike[str]) -> Labelmap:
    """Return the segments of a DICOM segmentation by name; their values are the segment numbers.

    The labelmap covers the slices from the first to the last one that holds a segment. Where segments overlap the
    higher number is kept, which is logged. `InputError`: probabilities instead of segments, slices at uneven distances.
    """
    check_available()
    import highdicom

    path = Path(path)
    try:
        found = highdicom.seg.segread(path)
        volume = _combined(found, path)
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a DICOM segmentation ({error}).") from None
    if volume is None:
        raise InputError(f"{path}: the segments do not lie on slices at even distances; resample them first.")
    affine = LPS_FROM_RAS @ np.asarray(volume.affine)[:, [2, 1, 0, 3]]
    labels = np.ascontiguousarray(volume.array)
    names = {int(number): str(found.get_segment_description(number).segment_label) for number in found.segment_numbers}
    kind = np.uint8 if max(names, default=0) <= 255 else np.uint16
    return Labelmap(Volume(labels.astype(kind), affine), distinct_names(names))


def _combined(found: Any, path: Path) -> Any:
    """The segments on one grid; None where there is no such grid."""
    try:
        return found.get_volume(combine_segments=True)
    except RuntimeError as error:
        if "overlap" not in str(error).lower():
            return None
    log.warning("%s: segments overlap; the one with the higher number is kept.", path)
    return found.get_volume(combine_segments=True, skip_overlap_checks=True)


# -------------------------------------------------------------------------------------------------------------- write


def check_source(image: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of the series that a segmentation will refer to.

    `InputError` where the image is no DICOM series, or an enhanced one with all slices in one file.
    """
    check_available()
    path = Path(image)
    if path.is_file() and path.suffix.lower() in DICOM_SUFFIXES:
        files: tuple[Path, ...] = (path,)
    elif path.is_dir():
        files = tuple(series_files(path, str(path)))
    else:
        raise InputError(
            f"{path} is no DICOM series, and a DICOM segmentation refers to one; give the folder of the series, or "
            "choose the format seg.nrrd."
        )
    if int(header_of(files[0], str(path)).get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{path} is an enhanced DICOM image with all slices in one file, for which no DICOM segmentation is "
            "written yet; choose the format seg.nrrd."
        )
    return files


def save_dicom_seg(labelmap: Labelmap, path: str | os.PathLike[str], source: Sequence[Path]) -> None:
    """Write a DICOM segmentation of the series whose files are `source`, in any order.

    The labelmap lies on the voxels of that series, or an `InputError` says so. Patient and study are those of the
    series; each structure has the code of SNOMED CT that DICOM's dictionary gives its name, else that of tissue. The
    same labels for the same series give the same unique identifiers.
    """
    check_available()
    import highdicom
    import pydicom
    from pydicom.uid import generate_uid

    path = Path(path)
    images = _in_order(labelmap.volume, [pydicom.dcmread(file) for file in source], path)
    names = dict(labelmap.structures)
    if not names:
        raise InputError(f"{path}: a DICOM segmentation needs at least one structure, got none.")
    numbered = np.zeros(labelmap.volume.shape, np.uint16 if len(names) > 255 else np.uint8)
    for number, value in enumerate(names, start=1):
        numbered[labelmap.volume.array == value] = number
    content = [sha256_of_array(numbered), sha256_of_json(list(names.values())), str(images[0].SeriesInstanceUID)]
    found = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=numbered,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(names),
        series_instance_uid=generate_uid(entropy_srcs=["series", *content]),
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *content]),
        series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
        instance_number=1,
        manufacturer="FewShotSeg",
        manufacturer_model_name="FewShotSegLib",
        software_versions=__version__,
        device_serial_number="1",
        series_description="FewShotSeg segmentation",
        content_label="SEGMENTATION",
    )
    with written_whole(path) as part:
        found.save_as(part)


def _in_order(volume: Volume, images: Sequence[Dataset], path: Path) -> list[Dataset]:
    """The images in the order of the labelmap's slices; refused where it does not lie on them."""
    affine = LPS_FROM_RAS @ volume.affine
    count = (len(images), int(images[0].Rows), int(images[0].Columns))
    if volume.shape != count:
        raise InputError(f"{path}: the labelmap has {volume.shape} voxels (K, J, I), the DICOM series {count}.")
    along = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    ordered = sorted(images, key=lambda image: float(np.array(image.ImagePositionPatient, float) @ along))
    for index, image in enumerate(ordered):
        place = affine[:3, 3] + index * affine[:3, 2]
        if np.abs(place - np.array(image.ImagePositionPatient, float)).max() > _TOLERANCE_MM:
            raise InputError(
                f"{path}: slice k={index} of the labelmap is not where the DICOM series has it; segment the series "
                "itself."
            )
    return ordered


def _descriptions(names: Mapping[int, str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="FewShotSeg", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    colors = structure_colors(names)
    descriptions = []
    for number, (value, name) in enumerate(names.items(), start=1):
        if len(name) > _LONGEST_NAME or "\\" in name:
            raise InputError(
                f'A structure\'s name in DICOM has up to {_LONGEST_NAME} characters and no backslash, got "{name}".'
            )
        category, kind, side = terminology_of(name)
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in colors[value])),
        )
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(description)
    return descriptions


def terminology_of(name: str) -> tuple[Any, Any, Any]:
    """Return the codes of category and type of a structure, and of its side or None; see DICOM's CID 7150.

    >>> category, kind, side = terminology_of("left kidney")
    >>> category.meaning, kind.meaning, kind.value, side.meaning
    ('Anatomical Structure', 'Kidney', '64033007', 'Left')
    >>> [code.meaning for code in terminology_of("something new")[:2]]
    ['Tissue', 'Tissue']
    """
    from pydicom.sr.codedict import codes

    sct: Any = codes.SCT
    words = re.sub(r"[^a-z]+", " ", name.lower()).split()
    side = next((word for word in words if word in _SIDES), None)
    without_side = " ".join(word for word in words if word != side)
    for plain, modifier in ((" ".join(words), None), (without_side, side)):
        for category, group in _GROUPS.items():
            kind = _code(getattr(codes, group), _CALLED.get(plain, plain))
            if kind is not None:
                return getattr(sct, category), kind, modifier and getattr(sct, modifier.capitalize())
    return sct.Tissue, sct.Tissue, None


def _code(group: Any, name: str) -> Any:
    """The code of a name in a context group, whose keys are written together, each word with a capital; or None."""
    keyword = "".join(word.capitalize() for word in re.sub(r"s$", "", name).split())
    for key in (keyword, "".join(word.capitalize() for word in name.split())):
        if key in group.dir():
            return getattr(group, key)
    return None
