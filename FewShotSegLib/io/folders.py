"""The volumes in a folder, and the location of caches."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from FewShotSegLib.errors import InputError

from .files import known_suffix
from .images import DICOM_SUFFIXES, VOLUME_SUFFIXES
from .names import PROBABILITY, channel_number, stem, without_channel

log = logging.getLogger(__name__)


def images_in(folder: str | os.PathLike[str], channel: int | None = None) -> list[str]:
    """Return the volumes in a folder, sorted by name: image files, and folders of DICOM files, possibly itself.

    Segmentations (.seg.nrrd) and probability maps are excluded. Of files numbered by channel as in nnU-Net, those of
    `channel` are returned. `InputError` if there are none, or if such files require a channel.
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
    return [str(path) for path in _of_channel(found, channel, folder)]


def _of_channel(found: Sequence[Path], channel: int | None, folder: Path) -> Sequence[Path]:
    """The files of one channel, where CASE_0000, CASE_0001, ... are the channels of each of several cases."""
    numbers: dict[str, dict[int, Path]] = {}
    for path in found:
        number = channel_number(stem(path))
        if number is None:
            return found
        numbers.setdefault(without_channel(stem(path)), {})[number] = path
    shared = sorted(set.intersection(*(set(case) for case in numbers.values())))
    # Cases may be numbered with four digits themselves: assumed for one name with many numbers.
    if len(shared) < 2 or shared[0] != 0 or len(numbers) == 1:
        return found
    if channel not in shared:
        first = next(iter(numbers.values()))
        got = "" if channel is None else f", got {channel}"
        raise InputError(
            f"{folder} holds the channels {', '.join(map(str, shared))} of each image ({first[0].name}, "
            f"{first[shared[1]].name}, ...); choose one (channel=N; of adapt --channel N)"
            f"{got}, or put its files into a folder of their own."
        )
    log.info("%s: the files of channel %d are taken, %d of %d.", folder, channel, len(numbers), len(found))
    return [case[channel] for case in numbers.values()]


def _is_volume_file(path: Path) -> bool:
    is_output = stem(path).endswith((PROBABILITY, ".part"))  # .part: left by earlier versions when they were killed
    return path.is_file() and known_suffix(path).lower() in VOLUME_SUFFIXES and not is_output and path.name[0] != "."


def _holds_dicom(folder: Path) -> bool:
    """Whether the first file is DICOM: by suffix or, as on hospital discs, without suffix and by its magic bytes."""
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
