"""Public labelled data sets as used by the benchmarks. The files are the user's own copies; none ship with this
project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap, load_volume


@dataclass(frozen=True)
class PublicDataSet:
    """The location of the cases and the structures to segment.

    `images` is a glob relative to the data folder, `labels` the replacement that turns an image name into the path of
    its labelmap relative to the image's folder.
    `merged`: all labels count as structure 1. `scattered`: a slice contains many components of a structure, and each of
    them gets its own click. The first `train` cases provide exemplars, the others are for testing.
    """

    name: str
    images: str
    labels: tuple[str, str]
    structures: dict[int, str]
    intensity: IntensitySpec
    train: int = 3
    merged: bool = False
    scattered: bool = False
    plane: int = 0
    """The axis of the arrays (K, J, I) across which slices are taken; volumes are loaded with it first."""

    def cases(self, data: Path) -> list[Path]:
        """Image files, sorted by name."""
        found = sorted(data.glob(self.images))
        if len(found) <= self.train:
            raise InputError(
                f"{self.name} needs more than {self.train} cases {self.images} in {data}, found {len(found)}."
            )
        return found

    def labelmap_of(self, image: Path) -> Path:
        """Path of the reference of an image."""
        return image.parent / re.sub(*self.labels, image.name)

    def load(self, image: Path) -> tuple[Volume, Labelmap]:
        """Volume and reference labelmap of one case, with this data set's structures only."""
        volume = load_volume(image)
        labelmap = load_labelmap(self.labelmap_of(image))
        labels = labelmap.volume.array
        kept = (labels > 0) if self.merged else np.where(np.isin(labels, list(self.structures)), labels, 0)
        kept_volume = volume.like(kept.astype(np.uint8))
        return in_plane(volume, self.plane), Labelmap(in_plane(kept_volume, self.plane), self.structures)


CT_WINDOW = IntensitySpec("window", -125, 275)
MR = IntensitySpec("percentile", 0.5, 99.5)

DATASETS = {
    d.name: d
    for d in (
        PublicDataSet(
            "btcv",
            "btcv_synapse_ct/*_img.nii.gz",
            (r"_img\.", "_lab."),
            {
                1: "spleen",
                2: "right kidney",
                3: "left kidney",
                4: "gallbladder",
                6: "liver",
                7: "stomach",
                8: "aorta",
                11: "pancreas",
            },
            CT_WINDOW,
        ),
        PublicDataSet(
            "acdc",
            "acdc/*_frame01_img.nii.gz",
            (r"_img\.", "_lab."),
            {1: "right ventricle", 2: "myocardium", 3: "left ventricle"},
            MR,
        ),
        PublicDataSet(
            "chaos",
            "chaos_mr_t2/*_img.nii.gz",
            (r"_img\.", "_lab."),
            {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"},
            MR,
        ),
        PublicDataSet(
            "brats",
            "brats2013/*_Flair.nii.gz",
            (r"_Flair\.", "_lab."),
            {1: "whole tumour"},
            MR,
            train=1,
            merged=True,
        ),
        PublicDataSet("la2018", "la2018/*_img.nii.gz", (r"_img\.", "_lab."), {1: "left atrium"}, MR, train=2),
        PublicDataSet(
            "ms",
            "ms_lesions_lesjak/*_FLAIR.nii.gz",
            (r"_FLAIR\.", "_lab."),
            {1: "lesion"},
            MR,
            train=1,
            scattered=True,
        ),
        PublicDataSet(
            "hippocampus",
            "msd_hippocampus/images/*.nii.gz",
            ("^", "../labels/"),
            {1: "anterior", 2: "posterior"},
            MR,
        ),
    )
}

# Separate from the others, which are volumes of organs: fundus photographs, with vessels a few pixels wide.
STARE = PublicDataSet("stare", "stare/*_img.png", (r"_img\.", "_vessel_vk."), {1: "vessel"}, MR, train=4, merged=True)


def in_plane(volume: Volume, axis: int) -> Volume:
    """The same volume and geometry, with slices across `axis` of its array (K, J, I)."""
    if axis == 0:
        return volume
    order = [axis, *(other for other in range(3) if other != axis)]
    affine = volume.affine.copy()
    affine[:, :3] = affine[:, [2 - other for other in reversed(order)]]  # columns are of i, j, k
    return Volume(np.ascontiguousarray(volume.array.transpose(order)), affine)


def random_exemplars(dataset: PublicDataSet, data: Path, count: int, rng: np.random.Generator) -> list[Exemplar]:
    """`count` random annotated slices of the first cases, among the nonempty ones."""
    cases = dataset.cases(data)[: dataset.train]
    loaded = [dataset.load(image) for image in cases]
    places = [(n, k) for n, (_, labels) in enumerate(loaded) for k, one in enumerate(labels.volume.array) if one.any()]
    drawn = [places[at] for at in rng.choice(len(places), min(count, len(places)), replace=False)]
    chosen = []
    for number, (volume, labels) in enumerate(loaded):
        slices = tuple(sorted(k for n, k in drawn if n == number))
        if slices:
            name = cases[number].name
            chosen.append(Exemplar(volume, labels.volume.array, dataset.structures, 0, slices, name=name))
    return _with_shown(dataset, chosen)


def exemplars(dataset: PublicDataSet, data: Path, count: int) -> list[Exemplar]:
    """`count` annotated slices from the first cases: as many structures as possible, then as large as possible.

    The rule of Feng et al. (2023, section 3.2), with at least five slices between two of the same case.
    """
    cases = dataset.cases(data)[: min(dataset.train, count)]
    chosen = []
    for number, image in enumerate(cases):
        volume, labelmap = dataset.load(image)
        share = count // len(cases) + (number < count % len(cases))
        slices = tuple(_richest(labelmap.volume.array, share))
        chosen.append(Exemplar(volume, labelmap.volume.array, dataset.structures, 0, slices, name=image.name))
    return _with_shown(dataset, chosen)


def with_empty_slices(chosen: Sequence[Exemplar]) -> list[Exemplar]:
    """The exemplars with the other slices of their volumes without any label declared empty, to paste on."""
    return [replace(exemplar, empty_slices=_empty_slices(exemplar)) for exemplar in chosen]


def _empty_slices(exemplar: Exemplar) -> tuple[int, ...]:
    empty = (k for k, labels in enumerate(exemplar.labelmap) if not labels.any())
    return tuple(k for k in empty if k not in exemplar.annotated_slices)


def _with_shown(dataset: PublicDataSet, chosen: Sequence[Exemplar]) -> list[Exemplar]:
    """The exemplars restricted to the structures they contain."""
    shown = set().union(*(exemplar.annotated_structures() for exemplar in chosen))
    structures = {value: name for value, name in dataset.structures.items() if value in shown}
    return [replace(exemplar, structures=structures) for exemplar in chosen]


def _richest(labels: np.ndarray, count: int) -> Iterator[int]:
    order = sorted(
        range(len(labels)), key=lambda k: (len(np.unique(labels[k])), int(np.count_nonzero(labels[k]))), reverse=True
    )
    taken: list[int] = []
    for apart in (5, 1):
        for index in order:
            if len(taken) < count and all(abs(index - other) >= apart for other in taken):
                taken.append(index)
    return iter(sorted(taken))


def thinned(volume: Volume, every: int) -> Volume:
    """Every `every`-th slice along K, with matching geometry."""
    affine = volume.affine.copy()
    affine[:3, 2] *= every
    return Volume(volume.array[::every], affine)


def unseen_cases(dataset: PublicDataSet, data: Path, most: int, slices: int) -> Iterator[tuple[str, Volume, Labelmap]]:
    """Name, volume and reference of up to `most` test cases, thinned to about `slices` slices each."""
    for image in _spread(dataset.cases(data)[dataset.train :], most):
        volume, labelmap = dataset.load(image)
        every = max(1, round(volume.shape[0] / slices))
        reference = thinned(labelmap.volume, every)
        yield image.name.split(".")[0], thinned(volume, every), Labelmap(reference, labelmap.structures)


def _spread(cases: Sequence[Path], most: int) -> list[Path]:
    return [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int))]
