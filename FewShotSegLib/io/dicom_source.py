"""The DICOM series referenced by a segmentation or a structure set, and code shared by the two."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

from .dicom import LPS_FROM_RAS, header_of, series_files
from .images import DICOM_SUFFIXES

if TYPE_CHECKING:
    from pydicom import Dataset

_TOLERANCE_MM = 1e-3
_LONGEST_NAME = 64  # characters of DICOM's value representation LO
_BEHIND_SOP_CLASS = 0x00080017  # the first tag after SOP Class UID


def sop_class_of(path: Path) -> str:
    """Return the SOP class UID (PS3.4) of a DICOM file; "" if it is not a DICOM file."""
    from pydicom.filereader import read_partial

    if not path.is_file() or path.suffix.lower() not in DICOM_SUFFIXES:
        return ""
    try:
        with path.open("rb") as stream:
            start = read_partial(stream, lambda tag, *_: tag >= _BEHIND_SOP_CLASS)
        return str(start.get("SOPClassUID") or start.file_meta.get("MediaStorageSOPClassUID") or "")
    except Exception:  # of many types; reading the file as an image reports what is wrong with it
        return ""


def check_source(image: str | os.PathLike[str], what: str) -> tuple[Path, ...]:
    """Return the files of the series that `what`, such as "a DICOM segmentation", will reference.

    `InputError` if the image is not a DICOM series, or is an enhanced one with all slices in one file.
    """
    path = Path(image)
    if path.is_file() and path.suffix.lower() in DICOM_SUFFIXES:
        files: tuple[Path, ...] = (path,)
    elif path.is_dir():
        files = tuple(series_files(path, str(path)))
    else:
        raise InputError(
            f"{path} is no DICOM series, and {what} refers to one; give the folder of the series, or choose the "
            "format seg.nrrd."
        )
    if int(header_of(files[0], str(path)).get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{path} is an enhanced DICOM image with all slices in one file, for which {what} cannot be written yet; "
            "choose the format seg.nrrd."
        )
    return files


def images_of(volume: Volume, source: Sequence[Path], path: Path) -> list[Dataset]:
    """Return the images of a series in the order of a labelmap's slices; rejected if its grid differs.

    `path` is the output file, for messages.
    """
    import pydicom

    images = [pydicom.dcmread(file) for file in source]
    affine = LPS_FROM_RAS @ volume.affine
    count = (len(images), int(images[0].Rows), int(images[0].Columns))
    if volume.shape != count:
        raise InputError(f"{path}: the labelmap has {volume.shape} voxels (K, J, I), the DICOM series {count}.")
    along = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    ordered: list[Dataset] = sorted(
        images, key=lambda image: float(np.array(image.ImagePositionPatient, float) @ along)
    )
    for index, image in enumerate(ordered):
        place = affine[:3, 3] + index * affine[:3, 2]
        if np.abs(place - np.array(image.ImagePositionPatient, float)).max() > _TOLERANCE_MM:
            raise InputError(
                f"{path}: slice k={index} of the labelmap is not where the DICOM series has it; segment the series "
                "itself."
            )
    return ordered


def checked_name(name: str) -> str:
    """Return the name of a structure; `InputError` if it is too long for DICOM.

    >>> checked_name("left kidney")
    'left kidney'
    """
    if len(name) > _LONGEST_NAME or "\\" in name:
        raise InputError(
            f'A structure\'s name in DICOM has up to {_LONGEST_NAME} characters and no backslash, got "{name}".'
        )
    return name
