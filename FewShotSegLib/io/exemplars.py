"""Annotated cases from an image, a labelmap, and a specification of the complete slices."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from FewShotSegLib.data.exemplar import Array, Exemplar, Slices, listed
from FewShotSegLib.data.volume import (
    AXES,
    AXIS_LETTERS,
    Labelmap,
    Volume,
    axis_index,
    checked_structures,
    label_values,
)
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed, resample_labelmap

from .files import known_suffix
from .volumes import load_labelmap, load_volume

# Default names of unnamed segments; such a name does not conflict with the one the user gives.
_UNNAMED = re.compile(r"((segment|label)[ _]?)?\d+", re.IGNORECASE)


def load_exemplar(
    image: str | os.PathLike[str],
    labelmap: str | os.PathLike[str],
    *,
    axis: int | str | None = None,
    slices: Slices = None,
    structures: Mapping[int, str] | None = None,
    resample: bool = False,
    same_voxels: bool = False,
    ignore: int | None = None,
    channel: int | None = None,
    time_index: int | None = None,
) -> Exemplar:
    """Load an image and its labelmap as an exemplar.

    `axis` is the array axis across the annotated slices, or its letter (default: acquisition axis). `slices` None:
    every slice with a label is annotated. A tuple: those slices; the ones among them without a label are known to be
    empty. "all": every slice is known. Labels on other slices are ignored.

    `structures` {value: name} keeps the listed structures; voxels of others become background. In a segmentation file
    with names the name decides, and the voxels get the listed value; otherwise the value decides.

    Image and labelmap must cover the same voxels; the axis order may differ, and a segmentation file may cover only a
    part. Anything else requires `same_voxels`, by which a labelmap of equal size takes its image's geometry, or
    `resample`, nearest neighbour by the headers' geometry. Slices that contain the label `ignore` are unknown.
    `channel` and `time_index` select one volume of an image with several.
    """
    volume = load_volume(image, channel=channel, time_index=time_index)
    source = load_labelmap(labelmap, image=None if same_voxels else image, grid=volume)
    placed = _on_grid_of(volume, source, Path(image), Path(labelmap), resample=resample, same_voxels=same_voxels)
    exemplar = exemplar_from(
        volume,
        placed,
        axis=volume.acquisition_axis if axis is None else axis_index(axis),
        slices=slices,
        structures=structures,
        ignore=ignore,
        name=Path(image).name,
        labels_name=str(labelmap),
    )
    return replace(exemplar, channel=channel)


def exemplar_from(
    volume: Volume,
    labelmap: Labelmap,
    *,
    axis: int,
    slices: Slices = None,
    structures: Mapping[int, str] | None = None,
    ignore: int | None = None,
    name: str = "exemplar",
    labels_name: str = "The labelmap",
) -> Exemplar:
    """Return the exemplar from an in-memory volume and labelmap; other arguments as in `load_exemplar`."""
    if not volume.same_geometry(labelmap.volume):
        raise InputError(
            f"{name} and its labelmap do not cover the same voxels: {_difference(volume, labelmap.volume)}. Choose the "
            "labelmap of this image."
        )
    labels, kept, overlapping = _select(labelmap, structures, labels_name, ignore)
    unknown = _unknown_slices(labelmap, ignore, axis)
    if not labels.any() and slices is None:
        raise InputError(
            f"{labels_name} holds no label of {listed(kept)}; annotate a slice or choose other structures."
        )
    annotated, empty = _known_slices(labels, axis, slices, unknown, name)
    labels = _only_on(labels, axis, annotated)
    return Exemplar(volume, labels, kept, axis, annotated, empty, name, overlapping)


def parse_exemplar(text: str) -> tuple[Path, Path, int | None, Slices]:
    """Return image, labelmap, axis and slices of `IMAGE=LABELMAP`, `...@k:12,14` or `...@k:all`.

    >>> parse_exemplar("ct.nrrd=organs.seg.nrrd@k:12,14")[2:]
    (0, (12, 14))
    """
    pair, axis, slices = _split_slices(text)
    image, labelmap = _split_pair(pair, text)
    return image, labelmap, axis, slices


def _split_slices(text: str) -> tuple[str, int | None, Slices]:
    pair, at, choice = text.rpartition("@")
    if not at or ":" not in choice or "/" in choice or "\\" in choice:  # an @ in a file name
        return text, None, None
    match = re.fullmatch(r"\s*([kji])\s*:\s*(all|\d+(?:\s*,\s*\d+)*)\s*", choice)
    if match is None:
        raise InputError(f'The slices of an exemplar are written like "@k:12,14" or "@k:all", got "@{choice}".')
    axis = AXES[match[1]]
    return pair, axis, "all" if match[2] == "all" else tuple(int(word) for word in match[2].split(","))


def _split_pair(pair: str, text: str) -> tuple[Path, Path]:
    splits = [
        (Path(pair[:at].strip()), Path(pair[at + 1 :].strip())) for at, letter in enumerate(pair) if letter == "="
    ]
    splits = [(image, labelmap) for image, labelmap in splits if image.name and labelmap.name]
    if not splits:
        raise InputError(f'An exemplar is written IMAGE=LABELMAP, with "@k:12,14" behind it if needed, got "{text}".')
    existing = [split for split in splits if split[0].exists() and split[1].exists()]
    if len(splits) > 1 and len(existing) != 1:
        raise InputError(f'"{text}" can be split at several "="; no single one gives two existing files. Rename them.')
    return existing[0] if existing else splits[0]


def _on_grid_of(
    volume: Volume, labelmap: Labelmap, image: Path, path: Path, *, resample: bool, same_voxels: bool
) -> Labelmap:
    """Return the labelmap on the grid of the volume, including the hidden voxels of its structures."""
    place = _placing(volume, labelmap.volume, image, path, resample=resample, same_voxels=same_voxels)
    hidden = {
        value: place(labelmap.volume.like(mask.astype(np.uint8))).array > 0 for value, mask in labelmap.hidden.items()
    }
    return Labelmap(place(labelmap.volume), labelmap.structures, hidden)


def _placing(
    volume: Volume, labelmap: Volume, image: Path, path: Path, *, resample: bool, same_voxels: bool
) -> Callable[[Volume], Volume]:
    """Return the function that maps labels onto the grid of the volume."""
    if volume.same_geometry(labelmap) or (same_voxels and labelmap.shape == volume.shape):
        return lambda labels: volume.like(labels.array)
    # Slicer may store only the part of the grid with segments; a plain file of another size is a mistake.
    crop = known_suffix(path).lower() == ".seg.nrrd"
    if reindexed(labelmap, volume, crop=crop) is not None:

        def place(labels: Volume) -> Volume:
            found = reindexed(labels, volume, crop=crop)
            if found is None:
                raise TypeError("labels of one labelmap lie on different grids")
            return found

        return place
    if resample and not same_voxels:
        return lambda labels: resample_labelmap(labels, volume)
    advice = "Choose the labelmap of this image, or ask for resampling (--resample, resample=True)."
    if labelmap.shape == volume.shape:
        advice = (
            "They have the same size. Look at both on top of each other: where the mask fits, ask for resampling "
            "(--resample, resample=True); where it is shifted or mirrored by a wrong header only, take the image's "
            "geometry (--same-voxels, same_voxels=True), and check left and right afterwards."
        )
    elif same_voxels:
        advice = "Voxels of different sizes cannot belong together; choose the labelmap of this image."
    raise InputError(f"{image} and {path} do not cover the same voxels: {_difference(volume, labelmap)}. {advice}")


def _difference(image: Volume, labelmap: Volume) -> str:
    """Return which parts of the geometry differ, image first."""
    directions = [volume.affine[:3, :3] / volume.spacing_mm for volume in (image, labelmap)]
    pairs = {
        "size (i, j, k)": (np.array(image.shape[::-1]), np.array(labelmap.shape[::-1]), 0.0),
        "spacing in mm": (image.spacing_mm, labelmap.spacing_mm, 1e-4),
        "origin in RAS mm": (image.affine[:3, 3], labelmap.affine[:3, 3], 1e-3),
        "direction": (directions[0].ravel(), directions[1].ravel(), 1e-4),
    }
    different = [
        f"{what} {_numbers(first)} and {_numbers(second)}"
        for what, (first, second, tolerance) in pairs.items()
        if np.abs(first - second).max() > tolerance
    ]
    return "; ".join(different) or "the position of the last voxels"


def _numbers(values: Array) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _select(
    source: Labelmap, structures: Mapping[int, str] | None, path: str, ignore: int | None
) -> tuple[Array, dict[int, str], int]:
    """Return the labels of the selected structures, with the selected values; the structures; and the number of voxels
    that belong to several of them."""
    kept = {v: n for v, n in source.structures.items() if v != ignore} if structures is None else dict(structures)
    if not kept:
        raise InputError(f"{path} holds no label; annotate at least one slice.")
    kept = checked_structures(kept)
    if structures is None:
        stored: dict[int, int | None] = {value: value for value in kept}
    else:
        stored = {v: _stored_value(v, name, source, set(kept.values()), path) for v, name in kept.items()}
    order = {value: number for number, value in enumerate(_from_below(source))}
    selected = np.zeros(source.volume.shape, dtype=np.uint8 if max(kept, default=0) <= 255 else np.uint16)
    overlapping = 0
    for value, own in sorted(stored.items(), key=lambda pair: order.get(pair[1] or 0, 0)):
        if own is not None:
            mask = source.mask(own)
            overlapping += int(np.count_nonzero(selected[mask]))
            selected[mask] = value
    return selected, kept, overlapping


def _from_below(source: Labelmap) -> list[int]:
    """The values of a labelmap, bottom layers first: the top one is the labelmap's value."""
    under = {
        value: set(label_values(source.volume.array[mask].reshape(1, -1))) for value, mask in source.hidden.items()
    }
    ordered: list[int] = []
    left = list(source.structures)
    while left:
        free = [value for value in left if not any(value in under.get(other, ()) for other in left if other != value)]
        ordered += free or left
        left = [value for value in left if value not in ordered]
    return ordered


def _unknown_slices(source: Labelmap, ignore: int | None, axis: int) -> set[int]:
    """The slices that contain the ignore label."""
    if ignore is None:
        return set()
    held = source.mask(ignore).any(axis=tuple({0, 1, 2} - {axis}))
    return {int(index) for index in np.flatnonzero(held)}


def _stored_value(value: int, name: str, source: Labelmap, wanted: set[str], path: str) -> int | None:
    """Return the value of the structure in the labelmap, None if it is missing."""
    for stored, stored_name in source.structures.items():
        if stored_name == name:
            return stored
    stored_name = source.structures.get(value, "")
    if not stored_name or stored_name in wanted:
        return None
    if not _UNNAMED.fullmatch(stored_name):
        raise InputError(f'{path} calls label {value} "{stored_name}", you call it "{name}"; use the name in the file.')
    return value


def _known_slices(
    labels: Array, axis: int, slices: Slices, unknown: set[int], name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (annotated, empty) slices, without the unknown ones."""
    contradiction = sorted(unknown & set(slices or ())) if slices != "all" else []
    if contradiction:
        raise InputError(
            f"{name}: slice {AXIS_LETTERS[axis]}={contradiction[0]} is listed as complete and holds the label for "
            "unknown voxels; leave it out."
        )
    if len(unknown) == labels.shape[axis]:
        raise InputError(f"{name}: every slice holds the label for unknown voxels; complete at least one slice.")
    labelled = set(np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))).tolist())
    if slices is None:
        return tuple(sorted(labelled - unknown)), ()
    count = labels.shape[axis]
    known = set(range(count)) if slices == "all" else set(slices)
    missing = sorted(index for index in known if not 0 <= index < count)
    if missing:
        letter = AXIS_LETTERS[axis]
        raise InputError(f"{name}: slice {letter}={missing[0]} does not exist, allowed are 0 to {count - 1}.")
    return tuple(sorted((known & labelled) - unknown)), tuple(sorted(known - labelled - unknown))


def _only_on(labels: Array, axis: int, slices: tuple[int, ...]) -> Array:
    """Return the labels of the given slices, 0 elsewhere: other labels cannot leak into training."""
    kept = np.zeros_like(labels)
    at = tuple(list(slices) if array_axis == axis else slice(None) for array_axis in range(3))
    kept[at] = labels[at]
    return kept
