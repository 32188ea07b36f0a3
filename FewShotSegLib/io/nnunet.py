"""Export of corrected cases as an nnU-Net data set, for when there are enough of them to train from scratch.

OUT/DatasetNNN_NAME/dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed
from FewShotSegLib.progress import Progress, Report, silent

from .files import known_suffix, write_text_whole
from .folders import images_in
from .names import belonging, parsed, stem
from .volumes import SEGMENTATION_SUFFIXES, load_labelmap, load_structures, load_volume, save_volume

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CASE = re.compile(r"[^A-Za-z0-9_.-]+")  # characters that break nnU-Net and shells


@dataclass(frozen=True)
class Exported:
    """The location of the data set, its number of cases, and its structures {label: name}."""

    folder: Path
    cases: int
    structures: Mapping[int, str]


def export_nnunet(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    number: int,
    name: str,
    channel: str,
    report: Report = silent,
) -> Exported:
    """Write the cases of two folders as the nnU-Net data set `number`, in the folder `out` (nnUNet_raw).

    `labels` contains reviewed and corrected segmentations; each is paired with the image of its name, and images
    without segmentation are skipped. Structures are merged by name and numbered 1, 2, ... by name. `channel` names the
    modality by which nnU-Net normalizes: "CT", or any other word. The data set appears atomically.
    """
    _check(number, name, channel)
    target = Path(out) / f"Dataset{number:03d}_{name}"
    if target.exists():
        raise InputError(f"{target} exists already; choose another number or name, or remove it.")
    pairs = _pairs(images_in(images), Path(labels))
    found = {case: load_structures(label) for case, (_, label) in pairs.items()}
    structures = dict(enumerate(sorted({n for names in found.values() for n in names.values()}), start=1))
    if not structures:
        raise InputError(f"The segmentations in {labels} hold no structure; correct and save at least one.")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for step, (case, (image, label)) in enumerate(pairs.items(), start=1):
            volume = load_volume(image)
            save_volume(volume, part / "imagesTr" / f"{case}_0000.nii.gz")
            joined = _joined(load_labelmap(label, image=image, grid=volume), volume, structures, label)
            save_volume(joined, part / "labelsTr" / f"{case}.nii.gz")
            report(Progress(step, len(pairs), case))
        write_text_whole(part / "dataset.json", _card(channel, structures, len(pairs)))
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Exported(target, len(pairs), structures)


def _check(number: int, name: str, channel: str) -> None:
    if not 1 <= number <= 999:
        raise InputError(f"The number of an nnU-Net data set lies between 1 and 999, got {number}.")
    if not _NAME.fullmatch(name):
        raise InputError(f'The name of an nnU-Net data set has letters, digits, _ and - only, got "{name}".')
    if not channel.strip():
        raise InputError('The channel is named after the modality, such as "CT" or "MR", got nothing.')


def _pairs(images: list[str], labels: Path) -> dict[str, tuple[str, Path]]:
    """{case: (image, segmentation)} sorted by name."""
    if not labels.is_dir():
        raise InputError(f"The folder of segmentations {labels} does not exist; check the path.")
    files = [
        path
        for path in sorted(labels.iterdir())
        if path.is_file() and known_suffix(path).lower() in SEGMENTATION_SUFFIXES
    ]
    known = {parsed(Path(image)).case or stem(Path(image)): image for image in images}
    pairs: dict[str, tuple[str, Path]] = {}
    for label in files:
        if parsed(label).role in ("image", "probability") or label.name.startswith("."):
            continue
        partners = belonging(parsed(label).case or stem(label), known)
        if len(partners) != 1:
            if not partners:
                raise InputError(f"{label} has no image of the same name; rename one of the two.")
            raise InputError(f"{label} fits {len(partners)} images; rename them so that one has its name.")
        case = _CASE.sub("_", partners[0])
        if case in pairs:
            raise InputError(f"{pairs[case][1].name} and {label.name} belong to the same image; keep one of them.")
        pairs[case] = known[partners[0]], label
    if not pairs:
        raise InputError(f"{labels} holds no segmentation; files are {' '.join(sorted(SEGMENTATION_SUFFIXES))}.")
    return pairs


def _joined(labelmap: Labelmap, volume: Volume, structures: Mapping[int, str], path: Path) -> Volume:
    """The labels on the image's grid, with the label values of the data set."""
    placed = labelmap.volume if labelmap.volume.same_geometry(volume) else reindexed(labelmap.volume, volume, crop=True)
    if placed is None:
        raise InputError(f"{path} does not cover the voxels of its image; bring it onto the grid of the image first.")
    number_of = {name: number for number, name in structures.items()}
    joined = np.zeros(volume.shape, np.uint8 if len(structures) < 256 else np.uint16)
    for value, name in labelmap.structures.items():
        joined[placed.array == value] = number_of[name]
    return volume.like(joined)


def _card(channel: str, structures: Mapping[int, str], count: int) -> str:
    content = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, **{name: number for number, name in structures.items()}},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
