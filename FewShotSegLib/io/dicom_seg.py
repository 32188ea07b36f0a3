"""DICOM segmentation objects: written for a source series with coded terminology, read as named structures.

Requires the extra `dicom-seg` (highdicom). The objects are of type BINARY, with one frame per nonempty slice of a
structure, as dcmqi writes them and viewers expect them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.structures import distinct_names, structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.version import __version__

from .dicom import LPS_FROM_RAS, SEGMENTATION
from .dicom_source import checked_name, images_of, sop_class_of
from .files import written_whole

log = logging.getLogger(__name__)

SUFFIX = ".seg.dcm"
_SEG_CLASSES = (SEGMENTATION, "1.2.840.10008.5.1.4.1.1.66.7")  # and Label Map Segmentation
_SIDES = ("left", "right")
# Our names for terms that differ in the standard's dictionary.
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
# The DICOM context groups with the types of a category (CID 7150).
_GROUPS = {
    "AnatomicalStructure": "cid7192",
    "MorphologicallyAbnormalStructure": "cid7194",
    "Tissue": "cid7191",
}


def check_available() -> None:
    """Raise `InputError` if the extra is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError('DICOM SEG needs the package highdicom: pip install "FewShotSegLib[dicom-seg]".')


# --------------------------------------------------------------------------------------------------------------- read


def is_dicom_seg(path: Path) -> bool:
    """Whether a file is a DICOM segmentation, by its header."""
    return sop_class_of(path) in _SEG_CLASSES


def load_dicom_seg(path: str | os.PathLike[str]) -> Labelmap:
    """Return the segments of a DICOM segmentation by name; their values are the segment numbers.

    The labelmap covers the slices from the first to the last one with a segment. Where segments overlap the higher
    number wins, which is logged. `InputError`: probabilities instead of segments, nonuniform slice spacing.
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
    """The segments on one grid; None if there is no common grid."""
    try:
        return found.get_volume(combine_segments=True)
    except RuntimeError as error:
        if "overlap" not in str(error).lower():
            return None
    log.warning("%s: segments overlap; the one with the higher number is kept.", path)
    return found.get_volume(combine_segments=True, skip_overlap_checks=True)


# -------------------------------------------------------------------------------------------------------------- write


def save_dicom_seg(labelmap: Labelmap, path: str | os.PathLike[str], source: Sequence[Path]) -> None:
    """Write a DICOM segmentation for the series with the files `source`, in any order.

    The labelmap must be on the voxel grid of that series, else `InputError`. Patient and study are those of the series;
    each structure has the SNOMED CT code of its name in DICOM's dictionary, else that of tissue. The same labels for
    the same series get the same unique identifiers.
    """
    check_available()
    import highdicom
    from pydicom.uid import generate_uid

    path = Path(path)
    images = images_of(labelmap.volume, source, path)
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


def _descriptions(names: Mapping[int, str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="FewShotSeg", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    colors = structure_colors(names)
    descriptions = []
    for number, (value, name) in enumerate(names.items(), start=1):
        category, kind, side = terminology_of(name)
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=checked_name(name),
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
    """Return the codes of category and type of a structure, and of its laterality or None; see DICOM's CID 7150.

    >>> category, kind, side = terminology_of("left kidney")
    >>> category.meaning, kind.meaning, kind.value, side.meaning
    ('Anatomical Structure', 'Kidney', '64033007', 'Left')
    >>> [code.meaning for code in terminology_of("something new")[:2]]
    ['Tissue', 'Tissue']
    """
    from pydicom.sr.codedict import codes

    categories: Any = codes.cid7150
    words = re.sub(r"[^a-z]+", " ", name.lower()).split()
    side = next((word for word in words if word in _SIDES), None)
    without_side = " ".join(word for word in words if word != side)
    for plain, modifier in ((" ".join(words), None), (without_side, side)):
        for category, group in _GROUPS.items():
            kind = _code(getattr(codes, group), _CALLED.get(plain, plain))
            if kind is not None:
                return getattr(categories, category), kind, modifier and getattr(codes.SCT, modifier.capitalize())
    return categories.Tissue, categories.Tissue, None


def _code(group: Any, name: str) -> Any:
    """The code of a name in a context group, whose keys are in CamelCase; or None."""
    keyword = "".join(word.capitalize() for word in re.sub(r"s$", "", name).split())
    for key in (keyword, "".join(word.capitalize() for word in name.split())):
        if key in group.dir():
            return getattr(group, key)
    return None
