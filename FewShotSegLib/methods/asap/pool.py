"""The pool of auxiliary data: labelled data sets as arms of a bandit, each one structure versus rest.

Cases are resampled to one orientation and spacing and rescaled when they are first needed, and cached on disk under a
digest of all that this depends on; later runs only read the patches they draw.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.intensity import IntensitySpec, looks_like_hounsfield
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid, onto_grid
from FewShotSegLib.io.cache import is_sealed, sealed
from FewShotSegLib.io.datasets import CaseFiles, DataSet, complete_exemplar
from FewShotSegLib.io.files import sha256_of_file, write_text_whole
from FewShotSegLib.io.volumes import load_structures
from FewShotSegLib.progress import Progress, Report
from FewShotSegLib.training.patches import Case, Change, Patch, corner_of, cut

log = logging.getLogger(__name__)

_VERSION = 2  # of the cache format
_MOST_PLACES = 2000  # candidate centre voxels of a structure, evenly spread


class UnusableArm(InputError):  # noqa: N818 - the caller skips the arm and continues
    """The arm of this index can no longer provide samples; the message says why."""

    def __init__(self, arm: int, reason: str) -> None:
        super().__init__(reason)
        self.arm = arm


# ---------------------------------------------------------------------------------------------------------------- pool


@dataclass(frozen=True)
class AuxiliaryArm:
    """One structure of one data set. `labels` are the names of its labels."""

    name: str
    structure: str
    data_set: DataSet
    labels: tuple[str, ...]


class _Prepared(NamedTuple):
    """A case on the grid: image (D, H, W) in 0..65535, label index (D, H, W), the labels present, and the digest of the
    image's own voxels.
    """

    image: NDArray[np.uint16]
    labels: NDArray[np.uint8 | np.uint16]
    shown: frozenset[str]
    digest: str


@dataclass(eq=False)
class Pool:
    """Arms from data sets, and sampling from them.

    At most `max_cases` of a data set are used, chosen by `seed`; its structures share them. `intensity` is the
    target's, used for images of the same kind (CT or not); the others use `IntensitySpec.auto`. `foreground` is the
    fraction of patches drawn around a voxel of the structure. `exclude` names arms to leave out, such as the target
    itself. Images whose voxels have a digest in `of_target` are left out: those of the exemplars, which would otherwise
    occur with different labels. `cache` is a folder that may be deleted between runs.

    A file that cannot be used quarantines the arms of its data set: from then on `sample` raises `UnusableArm` for
    them, and they are in `quarantined` {arm: reason}.
    """

    data_sets: Sequence[DataSet]
    grid: Grid
    cache: Path
    max_cases: int = 30
    seed: int = 0
    intensity: IntensitySpec | None = None
    foreground: float = 0.7
    exclude: Collection[str] = ()
    of_target: Collection[str] = ()
    arms: tuple[AuxiliaryArm, ...] = field(init=False)
    quarantined: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_cases < 1:
            raise InputError(f"An auxiliary data set gives at least 1 case, got max_cases={self.max_cases}.")
        names = [data_set.name for data_set in self.data_sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f'Two auxiliary data sets are called "{twice[0]}"; rename one.')
        arms = [arm for data_set in self.data_sets for arm in self._arms_of(self._chosen(data_set))]
        unknown = sorted(set(self.exclude) - {arm.name for arm in arms})
        if unknown:
            known = ", ".join(arm.name for arm in arms)
            raise InputError(
                f'No auxiliary data is called "{unknown[0]}", so it cannot be left out; there are {known}.'
            )
        self.arms = tuple(arm for arm in arms if arm.name not in self.exclude)
        self._labels = {arm.data_set.name: set[str]() for arm in arms}
        for arm in arms:
            self._labels[arm.data_set.name].update(arm.labels)
        self._prepared: dict[CaseFiles, _Prepared] = {}
        self._contents: dict[Path, str] = {}
        self._places: dict[tuple[CaseFiles, int], NDArray[np.int64]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The arms' names, "data set: structure"."""
        return tuple(arm.name for arm in self.arms)

    def digest(self) -> str:
        """Equal for equivalent pools: arms, contents of their files, and preprocessing."""
        keys = []
        for arm in self.arms:
            labels = sorted(self._labels[arm.data_set.name])
            keys.append([arm.name, arm.labels, [self._key_or_none(case, labels) for case in arm.data_set.cases]])
        return sha256_of_json(keys)

    def _key_or_none(self, case: CaseFiles, labels: list[str]) -> str | None:
        """The key of a case, None if its files cannot be read, which is reported when it is drawn."""
        try:
            return self._key(case, labels)
        except (InputError, OSError):
            return None

    def _chosen(self, data_set: DataSet) -> DataSet:
        # The name is part of the seed, so that adding another data set changes nothing.
        rng = np.random.default_rng([self.seed, zlib.crc32(data_set.name.encode())])
        count = min(self.max_cases, len(data_set.cases))
        chosen = sorted(rng.choice(len(data_set.cases), count, replace=False).tolist())
        return replace(data_set, cases=tuple(data_set.cases[at] for at in chosen))

    @staticmethod
    def _arms_of(data_set: DataSet) -> list[AuxiliaryArm]:
        structures = data_set.structures
        if structures is None:
            structures = {name: (name,) for name in _names_in(data_set)}
        return [
            AuxiliaryArm(f"{data_set.name}: {structure}", structure, data_set, labels)
            for structure, labels in structures.items()
        ]

    def describe(self) -> list[dict[str, Any]]:
        """A row per arm as JSON types: arm, name, structure, data_set, modality, licence, cases, megabytes (of the
        files of those cases) and quarantined (the reason, or "")."""
        sizes = {arm.data_set.name: _megabytes(arm.data_set) for arm in self.arms}
        return [
            {
                "arm": index,
                "name": arm.name,
                "structure": arm.structure,
                "data_set": arm.data_set.name,
                "modality": arm.data_set.modality,
                "licence": arm.data_set.licence,
                "cases": len(arm.data_set.cases),
                "megabytes": sizes[arm.data_set.name],
                "quarantined": self.quarantined.get(index, ""),
            }
            for index, arm in enumerate(self.arms)
        ]

    # ------------------------------------------------------------------------------------------------------- samples

    def sample(self, arm: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return a patch of the image, in [0, 1], and the mask of the structure in it, both (D, H, W), not augmented.

        What is drawn depends on the generator and the files only, not on earlier samples. Where a case is smaller than
        the patch it is centred and padded with zeros and background.
        """
        patch = self.draw(arm, rng)
        return patch.image.numpy(), patch.mask.numpy()

    def draw(
        self, arm: int, rng: np.random.Generator, change: Change | None = None, device: torch.device | str = "cpu"
    ) -> Patch:
        """Return a patch, rotated and scaled before cropping, like those of the target, so that no corner is left
        black.
        """
        return self.cut(arm, *self.place(arm, rng), change, device)

    def place(self, arm: int, rng: np.random.Generator) -> tuple[Case, NDArray[Any]]:
        """Return a case that contains the structure, and the centre (3,) of a patch in it, in voxels."""
        if arm in self.quarantined:
            raise UnusableArm(arm, f"{self.names[arm]}: {self.quarantined[arm]}")
        files, prepared = self._case_showing(arm, rng)
        shares, places = rng.random(3), self._places_of(files, arm, prepared)
        voxel = places[int(rng.integers(len(places)))] if rng.random() < self.foreground else None
        corner = corner_of(voxel, shares, prepared.image.shape, self.grid.patch)
        case = Case(prepared.image, prepared.labels, None, self.grid.spacing_mm, self.names[arm])
        return case, corner + (np.array(self.grid.patch) - 1) / 2

    def cut(
        self,
        arm: int,
        case: Case,
        centre: NDArray[Any],
        change: Change | None = None,
        device: torch.device | str = "cpu",
    ) -> Patch:
        """Return the patch of a case around `centre`, with the mask of the arm's structure."""
        patch = cut(case, centre, self.grid.patch, change, device)
        numbers = torch.tensor(self._numbers(arm), device=patch.mask.device)
        return replace(patch, mask=torch.isin(patch.mask, numbers))

    def prepare(self, report: Report) -> None:
        """Preprocess all cases now instead of on demand, with a report before each, and quarantine."""
        cases = {case: index for index, arm in enumerate(self.arms) for case in arm.data_set.cases}
        for number, (case, arm) in enumerate(cases.items()):
            report(Progress(number, len(cases), f"preparing auxiliary data: {self.arms[arm].data_set.name}"))
            if arm not in self.quarantined:
                try:
                    self._prepare(case, arm)
                except UnusableArm:
                    continue  # reported, and recorded in `quarantined`

    def _case_showing(self, arm: int, rng: np.random.Generator) -> tuple[CaseFiles, _Prepared]:
        """A case that contains the structure, drawn uniformly."""
        chosen = self.arms[arm]
        cases = chosen.data_set.cases
        for at in rng.permutation(len(cases)):
            prepared = self._prepare(cases[at], arm)
            if prepared.digest in self.of_target:
                continue
            if prepared.shown.intersection(chosen.labels):
                return cases[at], prepared
        others = " but those of the exemplars" if self.of_target else ""
        self._quarantine([arm], f"none of its {len(cases)} cases{others} shows it")
        raise UnusableArm(arm, f"{chosen.name}: {self.quarantined[arm]}")

    def _numbers(self, arm: int) -> list[int]:
        """The indices under which the labels of an arm are stored."""
        labels = self._ordered_labels(self.arms[arm].data_set)
        return [labels.index(name) + 1 for name in self.arms[arm].labels]

    def _ordered_labels(self, data_set: DataSet) -> list[str]:
        return sorted(self._labels[data_set.name])

    def _places_of(self, case: CaseFiles, arm: int, prepared: _Prepared) -> NDArray[np.int64]:
        """Voxels (N, 3) of the structure."""
        if (case, arm) not in self._places:
            found = np.flatnonzero(np.isin(prepared.labels, self._numbers(arm)))
            found = found[:: math.ceil(found.size / _MOST_PLACES)]
            self._places[case, arm] = np.stack(np.unravel_index(found, prepared.labels.shape), axis=1)
        return self._places[case, arm]

    def _quarantine(self, arms: Sequence[int], reason: str) -> None:
        for arm in arms:
            self.quarantined.setdefault(arm, reason)
        log.warning("Auxiliary data %s left out: %s", ", ".join(self.names[arm] for arm in arms), reason)

    # ---------------------------------------------------------------------------------------------------- on the grid

    def _prepare(self, case: CaseFiles, arm: int) -> _Prepared:
        if case in self._prepared:
            return self._prepared[case]
        data_set = self.arms[arm].data_set
        labels = self._ordered_labels(data_set)
        try:
            stem, prepared, is_new = self._kept_or_made(case, labels)
        except (InputError, OSError) as error:
            same = [index for index, other in enumerate(self.arms) if other.data_set.name == data_set.name]
            self._quarantine([index for index in same if index not in self.quarantined], str(error))
            raise UnusableArm(arm, str(error)) from error
        if is_new:  # a cache write error is not the fault of the data, and stops the run
            _keep(prepared, stem)
            prepared = _read_kept(stem) or prepared
        self._prepared[case] = prepared
        return prepared

    def _kept_or_made(self, case: CaseFiles, labels: list[str]) -> tuple[Path, _Prepared, bool]:
        stem = self.cache / self._key(case, labels)
        kept = _read_kept(stem)
        return (stem, kept, False) if kept is not None else (stem, self._made(case, labels), True)

    def _made(self, case: CaseFiles, labels: list[str]) -> _Prepared:
        exemplar = complete_exemplar(case, axis=0)
        number_of = np.zeros(max(exemplar.structures, default=0) + 1, np.uint8 if len(labels) < 256 else np.uint16)
        for value, name in exemplar.structures.items():
            number_of[value] = labels.index(name) + 1 if name in labels else 0
        volume, spec = exemplar.volume, self._intensity_of(exemplar.volume)
        values = spec.apply(volume.array, spec.range_of(volume.array))
        image, numbers = onto_grid(values, number_of[exemplar.labelmap], volume.affine, self.grid)
        shown = frozenset(labels[number - 1] for number in np.unique(numbers).tolist() if number)
        digest = sha256_of_array(volume.array)
        return _Prepared(np.rint(image * 65535).astype(np.uint16), numbers, shown, digest)

    def _intensity_of(self, volume: Volume) -> IntensitySpec:
        """The target's rule for images of its kind: a Hounsfield window is meaningless for MR."""
        given = self.intensity
        if given is not None and (given.kind == "window") == looks_like_hounsfield(volume.array):
            return given
        return IntensitySpec.auto(volume)

    def _content(self, path: Path) -> str:
        """The digest of a file, read once: all arms of a data set share its files."""
        if path not in self._contents:
            self._contents[path] = _digest(path)
        return self._contents[path]

    def _key(self, case: CaseFiles, labels: list[str]) -> str:
        """Digest of all that a preprocessed case depends on, including file contents."""
        given: dict[str, Any] = {
            "version": _VERSION,
            "files": [self._content(case.image), self._content(case.labelmap)],
            "structures": {str(value): name for value, name in (case.structures or {}).items()},
            "time_index": case.time_index,
            "resample": case.resample,
            "labels": labels,
            "spacing_mm": self.grid.spacing_mm,
            "orientation": self.grid.orientation,
            "intensity": self.intensity.to_dict() if self.intensity else None,
        }
        if case.ignore is not None:  # keeps keys of earlier versions valid
            given["ignore"] = case.ignore
        return sha256_of_json(given)[:32]


def _names_in(data_set: DataSet) -> list[str]:
    """The labels of all cases, sorted by name; unreadable files are reported when they are drawn."""
    names: set[str] = set()
    for case in data_set.cases:
        if case.structures is not None:
            names.update(case.structures.values())
            continue
        try:
            names.update(load_structures(case.labelmap).values())
        except InputError as error:
            log.info("%s", error)
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _megabytes(data_set: DataSet) -> float:
    paths = {path for case in data_set.cases for path in (case.image, case.labelmap)}
    return round(sum(_size(path) for path in paths) / 1e6, 3)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    if not path.is_dir():
        return sha256_of_file(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("".join(sha256_of_file(file) for file in files).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- cache


def _keep(prepared: _Prepared, stem: Path) -> None:
    """Write three files; the last one marks the others as complete."""
    for name, array in (("image", prepared.image), ("labels", prepared.labels)):
        with sealed(stem.with_name(f"{stem.name}.{name}.npy")) as part:
            np.save(part, array, allow_pickle=False)
    card = {"shape": list(prepared.image.shape), "shown": sorted(prepared.shown), "digest": prepared.digest}
    write_text_whole(stem.with_name(f"{stem.name}.json"), json.dumps(card), private=True)


def _read_kept(stem: Path) -> _Prepared | None:
    """What `_keep` wrote, with memory-mapped arrays; None if missing or corrupt."""
    try:
        card = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        if not all(is_sealed(stem.with_name(f"{stem.name}.{name}.npy")) for name in ("image", "labels")):
            return None
        image, labels = (
            np.load(stem.with_name(f"{stem.name}.{name}.npy"), mmap_mode="r", allow_pickle=False)
            for name in ("image", "labels")
        )
        whole = list(image.shape) == list(labels.shape) == card["shape"]
        return _Prepared(image, labels, frozenset(card["shown"]), card["digest"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
