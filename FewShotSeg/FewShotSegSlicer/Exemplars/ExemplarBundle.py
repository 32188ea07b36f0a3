"""Exemplars as one zip: volumes and labels without loss, their cards, and a job that the command line understands.

CT.nrrd, CT labels.seg.nrrd, ...    as a job reads them
job.json                            `fewshotseg job job.json` adapts to them
exemplars.json                      names, dates and notes, and in which of the job's exemplars the slices are
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, from_dict, to_dict
from FewShotSegLib.data.json_text import MOST_BYTES, parsed_table
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.io.headers import is_detached
from FewShotSegLib.worker import scratch
from FewShotSegSlicer.Scene import Volumes
from FewShotSegSlicer.Workers.JobFiles import JobFiles

from .ExemplarGroup import ExemplarGroup
from .ExemplarNode import DrawnSlices

_FORMAT = 1
_CARDS, _JOB = "exemplars.json", "job.json"
_MOST_UNPACKED = 100  # times the size of the bundle
_SPARE = 64 << 20  # bytes
_LEVEL = 1  # the window waits; the best level takes five times as long for a tenth of the size


@dataclass(frozen=True, eq=False)
class BundledExemplar:
    """An exemplar of a bundle, its volume being in the scene."""

    volumeNode: Any
    drawn: DrawnSlices
    card: Mapping[str, str]
    """Its "name", "date" and "note"."""


def write(groups: Sequence[ExemplarGroup], names: Mapping[int, str], path: Path) -> None:
    """Write a bundle, whole or not at all."""
    cards: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=scratch.process_folder()) as folder:
        files = JobFiles(Path(folder))
        exemplars = [group.written(names, files) for group in groups]
        for number, group in enumerate(groups):
            for one in group.members:
                cards[one.exemplar.id] = {**asdict(one.exemplar), "exemplar": number}
        job = AdaptJob("adapter.safetensors", exemplars=tuple(_withoutFolder(files) for files in exemplars))
        _writeJson(files.folder / _JOB, to_dict(job))
        _writeJson(files.folder / _CARDS, {"format": _FORMAT, "exemplars": list(cards.values())})
        with (
            written_whole(path) as part,
            zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as bundle,
        ):
            for file in sorted(files.folder.iterdir()):
                bundle.write(file, file.name)


def read(path: Path) -> list[BundledExemplar]:
    """Return the exemplars of a bundle; volumes that are not in the scene yet are added to it.

    All of it is looked at first: a bundle that cannot be used as a whole changes nothing.
    """
    with tempfile.TemporaryDirectory(dir=scratch.process_folder()) as name:
        folder = Path(name)
        job, cards = _contents(path, folder)
        exemplars = [_loaded(files, folder) for files in job.exemplars]
        for number, card in enumerate(cards, start=1):
            _checkCard(card, exemplars, f"{path}, exemplar {number}")
        volumeNodes: dict[str, Any] = {}
        found = []
        for card in cards:
            exemplar, files = exemplars[card["exemplar"]], job.exemplars[card["exemplar"]]
            if files.image not in volumeNodes:
                volumeNodes[files.image] = _inScene(exemplar.volume, card["volumeName"])
            found.append(_bundled(card, exemplar, volumeNodes[files.image]))
        return found


def _bundled(card: Mapping[str, Any], exemplar: Exemplar, volumeNode: Any) -> BundledExemplar:
    slices = tuple(card["slices"])
    drawn = DrawnSlices(
        axis=exemplar.axis,
        slices=slices,
        emptySlices=tuple(card["emptySlices"]),
        structures=exemplar.structures if slices else {},
        labels=np.moveaxis(exemplar.labelmap, exemplar.axis, 0)[list(slices)],
    )
    return BundledExemplar(volumeNode, drawn, {name: card.get(name, "") for name in ("name", "date", "note")})


def _checkCard(card: Any, exemplars: Sequence[Exemplar], where: str) -> None:
    """Raise `InputError` for a card that does not describe one of the exemplars."""
    wrong = InputError(f"{where}: the card does not describe an exemplar of the bundle; export it again.")
    if not isinstance(card, Mapping):
        raise wrong
    number = card.get("exemplar")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(exemplars):
        raise wrong
    exemplar = exemplars[number]
    for name, known in (("slices", exemplar.annotated_slices), ("emptySlices", exemplar.empty_slices)):
        given = card.get(name)
        if not isinstance(given, list) or not all(type(index) is int and index in known for index in given):
            raise wrong
    if not card["slices"] and not card["emptySlices"]:
        raise wrong
    if not all(isinstance(card.get(name, ""), str) for name in ("name", "date", "note", "volumeName")):
        raise wrong
    if not card.get("name") or not card.get("volumeName"):
        raise wrong


def _contents(path: Path, folder: Path) -> tuple[AdaptJob, list[Any]]:
    """Unpack what a bundle needs into a folder, and return its job and its cards."""
    try:
        with zipfile.ZipFile(path) as bundle:
            values = parsed_table(_unpacked(bundle, _CARDS, MOST_BYTES), f"{path}: {_CARDS}")
            job = from_dict(parsed_table(_unpacked(bundle, _JOB, MOST_BYTES), f"{path}: {_JOB}"))
            if values.get("format") != _FORMAT or not isinstance(job, AdaptJob):
                raise InputError(f"{path} was written by another version of this program; update, or export it again.")
            most = _MOST_UNPACKED * path.stat().st_size + _SPARE
            for name in {name for files in job.exemplars for name in (files.image, files.labelmap)}:
                content = _unpacked(bundle, Path(name).name, most)
                most -= len(content)
                (folder / Path(name).name).write_bytes(content)
    except InputError:
        raise
    except Exception as error:  # of as many kinds as there are ways to damage a zip
        raise InputError(f"{path} is no bundle of exemplars, or only a part of one ({error}).") from None
    cards = values.get("exemplars")
    if not isinstance(cards, list):
        raise InputError(f"{path} holds no list of exemplars; export it again.")
    return job, cards


def _unpacked(bundle: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of the bundle, of at most so many bytes; whatever else is in it stays packed."""
    with bundle.open(name) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{bundle.filename}: {name} unpacks to more than a bundle of its size holds; export it again.")
    return content


def _loaded(files: ExemplarFiles, folder: Path) -> Exemplar:
    # Names only, and no voxels in other files: a bundle has no say in which files of this computer are read.
    image, labelmap = (folder / Path(name).name for name in (files.image, files.labelmap))
    for file in (image, labelmap):
        if file.suffix.lower() != ".nrrd" or is_detached(file):
            raise InputError(f"{file.name} of the bundle is no NRRD file with its voxels in it; export it again.")
    return load_exemplar(
        image, labelmap, axis=AXES[files.axis or "k"], slices=files.slices, structures=files.structures
    )


def _withoutFolder(files: ExemplarFiles) -> ExemplarFiles:
    return replace(files, image=Path(files.image).name, labelmap=Path(files.labelmap).name)


def _inScene(volume: Volume, name: str) -> Any:
    """The node with these voxels, added if there is none. Where it lies now does not matter: labels go by voxels."""
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if not node.IsA("vtkMRMLLabelMapVolumeNode") and node.GetImageData() is not None:
            array = Volumes.volumeFromNode(node).array
            if array.shape == volume.shape and sha256_of_array(array) == sha256_of_array(volume.array):
                return node
    return slicer.util.addVolumeFromArray(volume.array, volume.affine, name)


def _writeJson(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
