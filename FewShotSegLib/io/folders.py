"""Which volumes a folder holds, and where what can be made again is kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from FewShotSegLib.errors import InputError

from .files import known_suffix
from .images import DICOM_SUFFIXES, VOLUME_SUFFIXES
from .names import PROBABILITY, stem

log = logging.getLogger(__name__)


def images_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the volumes in a folder, by name: image files, and folders of DICOM files, itself being one of them.

    Segmentations (.seg.nrrd) and probability maps are left out. `InputError` where there is nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist; check the path.")
    entries = sorted(folder.iterdir())
    found = [entry for entry in entries if _is_volume_file(entry) or (entry.is_dir() and _holds_dicom(entry))]
    if not found and _holds_dicom(folder):
        found = [folder]
    if not found:
        raise InputError(f"{folder} holds no volume; files are {' '.join(VOLUME_SUFFIXES)} or folders of DICOM files.")
    return [str(path) for path in found]


def _is_volume_file(path: Path) -> bool:
    is_output = stem(path).endswith((PROBABILITY, ".part"))  # .part: what earlier versions left when they were killed
    return path.is_file() and known_suffix(path).lower() in VOLUME_SUFFIXES and not is_output and path.name[0] != "."


def _holds_dicom(folder: Path) -> bool:
    """Whether the first file is one: named so, or, as on discs from a hospital, without a suffix and marked inside."""
    try:
        file = next((entry for entry in sorted(folder.iterdir()) if entry.is_file() and entry.name[0] != "."), None)
        if file is None:
            return False
        if file.suffix.lower() in DICOM_SUFFIXES:
            return True
        with file.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except PermissionError as error:
        log.warning("%s is left out: %s.", folder, error.strerror)
        return False
