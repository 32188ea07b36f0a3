"""Folders of labelled data sets, in common layouts.

    NAME/dataset.json, imagesTr/, labelsTr/     nnU-Net and the Medical Segmentation Decathlon
    NAME/images/, labels/                       the same file name in both
    NAME/patient.nrrd, patient.seg.nrrd         pairs side by side; also patient_img.nii.gz and patient_lab.nii.gz

The last two may have a card.json: {"modality": "MR", "licence": "CC BY 4.0", "structures": {"1": "liver"}}.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import AuxiliaryFiles, ExemplarFiles
from FewShotSegLib.data.volume import checked_structures
from FewShotSegLib.errors import InputError

from .exemplars import load_exemplar
from .files import known_suffix
from .images import PICTURE_SUFFIXES, VOLUME_SUFFIXES
from .json_files import read_table
from .names import belonging, parsed, stem

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CaseFiles:
    """An image and its labelmap on disk. `structures` {value: name} None: taken from the labelmap."""

    image: Path
    labelmap: Path
    structures: Mapping[int, str] | None = None
    time_index: int | None = None
    resample: bool = False
    ignore: int | None = None


@dataclass(frozen=True, eq=False)
class DataSet:
    """A labelled data set. Its labels are complete: unlabelled voxels are background.

    `structures` maps each structure to the names of its labels; usually just its own. None: each label that is found is
    a structure.
    """

    name: str
    cases: tuple[CaseFiles, ...]
    structures: Mapping[str, tuple[str, ...]] | None = None
    modality: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()


def data_sets_in(folder: Path) -> list[DataSet]:
    """Return the data sets that a folder is or contains, sorted by name. Unusable ones are logged.

    A data set with several channels becomes one for each, named "NAME CHANNEL".
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"The folder of auxiliary data {folder} does not exist; check the path.")
    found = _data_sets_at(folder)
    if not found:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        for path in inside:
            try:
                found += _data_sets_at(path)
            except InputError as error:
                log.warning("%s is left out: %s", path, error)
    if not found:
        raise InputError(
            f"{folder} holds no data set; expected are folders with dataset.json, imagesTr and labelsTr (nnU-Net), "
            "with images and labels, or with images and labelmaps side by side (patient.nrrd, patient.seg.nrrd)."
        )
    for note in (note for data_set in found for note in data_set.notes):
        log.warning("%s", note)
    return found


def data_set_of(files: AuxiliaryFiles) -> DataSet:
    """Return the data set described in a job."""
    return DataSet(files.name, tuple(_case_of(case, files.name) for case in files.cases))


def complete_exemplar(case: CaseFiles, axis: int | None = None) -> Exemplar:
    """Load a case, whose labels are complete, as an exemplar; `axis` as for `load_exemplar`."""
    return load_exemplar(
        case.image,
        case.labelmap,
        axis=axis,
        slices="all",
        structures=case.structures,
        resample=case.resample,
        time_index=case.time_index,
        ignore=case.ignore,
    )


def files_of(data_set: DataSet) -> AuxiliaryFiles:
    """Return the description of a data set for a job."""
    return AuxiliaryFiles(
        data_set.name,
        tuple(
            ExemplarFiles(
                str(case.image),
                str(case.labelmap),
                slices="all",
                structures=_dict(case),
                resample=case.resample,
                ignore=case.ignore,
                time_index=case.time_index,
            )
            for case in data_set.cases
        ),
    )


def _dict(case: CaseFiles) -> dict[int, str] | None:
    return dict(case.structures) if case.structures else None


def _case_of(files: ExemplarFiles, name: str) -> CaseFiles:
    if files.slices not in (None, "all"):
        raise InputError(
            f'Auxiliary data "{name}": {files.image} is annotated on single slices only; auxiliary cases must be '
            "annotated on all. Leave the slices out, or use the case as an exemplar."
        )
    return CaseFiles(
        Path(files.image), Path(files.labelmap), files.structures, files.time_index, files.resample, files.ignore
    )


def _data_sets_at(folder: Path) -> list[DataSet]:
    """The data sets of one folder, not recursive; none if it is not one."""
    if (folder / "dataset.json").is_file() and (folder / "labelsTr").is_dir():
        return _nnunet(folder)
    card = read_table(folder / "card.json", str(folder / "card.json")) if (folder / "card.json").is_file() else {}
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        pairs, notes = _same_names(folder / "images", folder / "labels")
    else:
        pairs, notes = _side_by_side(folder)
    if not pairs:
        return []
    labels = _label_values(card["structures"], folder / "card.json") if card.get("structures") else None
    cases = tuple(CaseFiles(image, labelmap, labels) for image, labelmap in pairs)
    structures = {name: (name,) for name in labels.values()} if labels else None
    return [DataSet(folder.name, cases, structures, str(card.get("modality", "")), _licence(card), tuple(notes))]


def _files_in(folder: Path) -> list[Path]:
    suffixes = {*VOLUME_SUFFIXES, ".seg.nrrd", *PICTURE_SUFFIXES}
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if known_suffix(path).lower() in suffixes)


# --------------------------------------------------------------------------------------------------- images and labels


def _same_names(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    cases = {path: parsed(path).case for path in _files_in(images)}
    labelmaps = {path: parsed(path).case for path in _files_in(labels)}
    return _pairs(cases, labelmaps, f"{images} has no image of that name")


def _side_by_side(folder: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    names = {path: parsed(path) for path in _files_in(folder)}
    cases = {path: name.case for path, name in names.items() if name.role in ("image", "unknown")}
    labelmaps = {path: name.case for path, name in names.items() if name.role == "labelmap"}
    return _pairs(cases, labelmaps, "there is no image of the same name")


def _pairs(
    images: Mapping[Path, str], labelmaps: Mapping[Path, str], missing: str
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pairs of image and labelmap by case, and a message for each labelmap without image."""
    pairs, notes = [], []
    for labelmap, case in labelmaps.items():
        same = belonging(case, images.values())
        fitting = [image for image, other in images.items() if other in same]
        if len(fitting) == 1:
            pairs.append((fitting[0], labelmap))
        elif fitting:
            notes.append(f"{labelmap} is left out: it may belong to {' and '.join(image.name for image in fitting)}.")
        else:
            notes.append(f"{labelmap} is left out: {missing}.")
    return pairs, notes


# -------------------------------------------------------------------------------------------------------------- nnU-Net


def _nnunet(folder: Path) -> list[DataSet]:
    path = folder / "dataset.json"
    values = read_table(path, str(path))
    channels = _channels(values, path)
    labels, structures = _labels(values, path)
    ignore = _ignored(values)
    pairs = _listed_pairs(folder, values) or [
        (folder / "imagesTr" / labelmap.name, labelmap) for labelmap in _files_in(folder / "labelsTr")
    ]
    found = []
    for number, channel in enumerate(channels):
        cases, notes = [], []
        for image, labelmap in pairs:
            own = image.with_name(f"{stem(image)}_{number:04d}{known_suffix(image)}")
            if own.is_file():
                cases.append(CaseFiles(own, labelmap, labels, ignore=ignore))
            elif image.is_file():  # the channels of a decathlon image are its fourth dimension
                time_index = number if len(channels) > 1 else None
                cases.append(CaseFiles(image, labelmap, labels, time_index, ignore=ignore))
            else:
                notes.append(f"{labelmap} is left out: neither {own.name} nor {image.name} is in {image.parent}.")
        name = folder.name if len(channels) == 1 else f"{folder.name} {channel}"
        found.append(DataSet(name, tuple(cases), structures, channel, _licence(values), tuple(notes)))
    if not any(data_set.cases for data_set in found):
        raise InputError(f"{folder} has a dataset.json and no image that fits a labelmap; check imagesTr and labelsTr.")
    return found


def _channels(values: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the channels, in order: `channel_names` of nnU-Net, `modality` of the decathlon."""
    named = values.get("channel_names") or values.get("modality") or {"0": ""}
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        raise InputError(f'{path}: the channels must be a table like {{"0": "CT"}}, got {named!r}.')
    return [str(named[key]) for key in sorted(named, key=int)]


def _labels(values: Mapping[str, Any], path: Path) -> tuple[dict[int, str], dict[str, tuple[str, ...]]]:
    """{value: name of label} and {structure: names of its labels}: a region of nnU-Net has several."""
    given = values.get("labels")
    if not isinstance(given, Mapping) or not given:
        raise InputError(f'{path} has no "labels"; they look like {{"background": 0, "liver": 1}}.')
    if all(str(key).isdecimal() for key in given):  # the decathlon writes {"1": "liver"}
        labels = _label_values({key: name for key, name in given.items() if int(key)}, path)
        return labels, {name: (name,) for name in labels.values()}
    members = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    for name, value in members.items():
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise InputError(
                f'{path}: the label "{name}" must be a whole number or a list of them, got {given[name]!r}.'
            )
    members = {name: [v for v in value if v] for name, value in members.items() if name not in ("background", "ignore")}
    single = {value[0]: name for name, value in members.items() if len(value) == 1}
    every = {v: single.get(v, f"label {v}") for value in members.values() for v in value}
    labels = _label_values(every, path)
    return labels, {name: tuple(labels[v] for v in value) for name, value in members.items() if value}


def _ignored(values: Mapping[str, Any]) -> int | None:
    """The ignore label of nnU-Net."""
    given = values.get("labels")
    label = given.get("ignore") if isinstance(given, Mapping) else None
    return label if isinstance(label, int) and not isinstance(label, bool) and label > 0 else None


def _listed_pairs(folder: Path, values: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """The decathlon lists its cases: {"image": "./imagesTr/la_007.nii.gz", "label": "./labelsTr/la_007.nii.gz"}."""
    training = values.get("training")
    if not isinstance(training, list):
        return []
    listed = [case for case in training if isinstance(case, Mapping) and {"image", "label"} <= set(case)]
    return [(folder / str(case["image"]), folder / str(case["label"])) for case in listed]


def _label_values(structures: Any, path: Path) -> dict[int, str]:
    wrong = not isinstance(structures, Mapping) or not all(str(key).isdecimal() for key in structures)
    if wrong:
        raise InputError(f'{path}: the structures must be a table like {{"1": "liver"}}, got {structures!r}.')
    try:
        return checked_structures({int(key): name for key, name in structures.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _licence(values: Mapping[str, Any]) -> str:
    return str(values.get("licence") or values.get("license") or "")
