"""Argument conversion of the API: volumes, labelmaps and adapters, from objects, files or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar, Slices
from FewShotSegLib.data.volume import Labelmap, Volume, as_labels, axis_index, label_values
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.exemplars import exemplar_from
from FewShotSegLib.io.volumes import load_labelmap, load_volume

PathLike = str | os.PathLike[str]
VolumeLike = Volume | PathLike | np.ndarray[Any, Any]
LabelmapLike = Labelmap | Volume | PathLike | np.ndarray[Any, Any]
AdapterLike = Adapter | PathLike
Axis = int | str


def as_volume(image: VolumeLike, spacing_mm: Any = None) -> Volume:
    """Convert to a volume: a `Volume`, a file, or an array (K, J, I) with its voxel spacing.

    `spacing_mm` (3,) is the voxel spacing in I, J, K order; for arrays only.

    >>> as_volume(np.zeros((4, 3, 2)), spacing_mm=(1, 1, 5)).spacing_mm.tolist()
    [1.0, 1.0, 5.0]
    """
    if isinstance(image, np.ndarray):
        if spacing_mm is None:
            raise InputError("An array has no voxel size: give spacing_mm=(x, y, z) in millimetres (I, J, K order).")
        return Volume.from_array(image, spacing_mm)
    if spacing_mm is not None:
        raise InputError("spacing_mm goes with an array; a volume and a file know their voxel size. Leave it out.")
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | os.PathLike):
        return load_volume(image)
    raise InputError(f"An image is a Volume, a file or an array (K, J, I), got {type(image).__name__}.")


def as_labelmap(
    labelmap: LabelmapLike,
    spacing_mm: Any = None,
    structures: Mapping[int, str] | None = None,
    *,
    image: PathLike | None = None,
    grid: Volume | None = None,
) -> Labelmap:
    """Convert to a labelmap: a `Labelmap`, a volume of labels, a file, or an array (K, J, I).

    Labels without a name in `structures` are named by their number. `image` and `grid` are for an RT structure set,
    as in `load_labelmap`.

    >>> as_labelmap(np.ones((1, 2, 2), int), (1, 1, 1), {1: "liver"}).structures
    {1: 'liver'}
    """
    if isinstance(labelmap, Labelmap):
        return labelmap
    if isinstance(labelmap, str | os.PathLike):
        return load_labelmap(labelmap, image=image, grid=grid)
    volume = as_volume(labelmap, spacing_mm)
    labels = as_labels(volume.array, "The labelmap")
    names = {value: str(value) for value in label_values(labels)} | dict(structures or {})
    return Labelmap(volume.like(labels), names)


def as_adapter(adapter: AdapterLike | None) -> Adapter | None:
    """Convert to an adapter: an `Adapter`, its file, or None."""
    if adapter is None or isinstance(adapter, Adapter):
        return adapter
    return load_adapter(adapter)


def make_exemplar(
    image: VolumeLike,
    labelmap: LabelmapLike,
    *,
    spacing_mm: Any = None,
    axis: Axis | None = None,
    slices: Slices = None,
    structures: Mapping[int, str] | None = None,
    name: str = "exemplar",
) -> Exemplar:
    """Return an annotated case for `adapt` from in-memory data; `load_exemplar` reads one from files.

    Parameters
    ----------
    image
        Volume, file or array (K, J, I).
    labelmap
        Labelmap, file or array (K, J, I) of integers, 0 is background, on the grid of the image.
    spacing_mm
        Voxel spacing (3,) in mm, I, J, K order, if `image` is an array.
    axis
        Axis across the annotated slices: "k", "j", "i" or 0, 1, 2. Default: the acquisition axis.
    slices
        The slices whose labels are complete; a listed one without a label is known to be empty. None: every slice with
        a label. "all": every slice.
    structures
        {label: name} of the structures to use. Default: all.

    Raises
    ------
    InputError
        Image and labelmap do not cover the same voxels, a slice does not exist, there are no labels.

    Examples
    --------
    >>> labels = np.zeros((5, 32, 32), np.uint8)
    >>> labels[2, 8:20, 8:20] = 1
    >>> make_exemplar(labels * 50.0, labels, spacing_mm=(1, 1, 4), structures={1: "liver"}).annotated_slices
    (2,)
    """
    volume = as_volume(image, spacing_mm)
    labels = volume.like(labelmap) if isinstance(labelmap, np.ndarray) else labelmap
    file = image if isinstance(image, str | os.PathLike) else None
    return exemplar_from(
        volume,
        as_labelmap(labels, structures=structures, image=file, grid=volume),
        axis=volume.acquisition_axis if axis is None else axis_index(axis),
        slices=slices,
        structures=structures,
        name=Path(file).name if file is not None else name,
    )
