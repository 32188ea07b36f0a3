"""Adaptation and segmentation from Python, with in-memory objects."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from FewShotSegLib.data.adapter import Adapter as PlainAdapter
from FewShotSegLib.data.exemplar import Exemplar, preflight
from FewShotSegLib.data.job import AdaptJob, Part, SegmentJob
from FewShotSegLib.data.launch import launch_of
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Labelmap, axis_index
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.load import load_support_predictor, predictor_for
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.adapters import save_adapter
from FewShotSegLib.io.folders import images_in
from FewShotSegLib.jobs.adapt import fitting_adapter, recipe_of
from FewShotSegLib.jobs.inputs import inputs_of
from FewShotSegLib.jobs.notes import Notes
from FewShotSegLib.jobs.privacy import without_names
from FewShotSegLib.jobs.seeding import own_randomness
from FewShotSegLib.jobs.segment import segmentation_of
from FewShotSegLib.methods import method as method_of
from FewShotSegLib.progress import Report
from FewShotSegLib.training.data_parallel import joined
from FewShotSegLib.visualization.progress_bar import reporting
from FewShotSegLib.worker.batch import segment_images

from .adapter import Adapter
from .inputs import AdapterLike, Axis, PathLike, VolumeLike, as_adapter, as_volume


def adapt(
    exemplars: Sequence[Exemplar] = (),
    *,
    method: str = "lora",
    base: str = "auto",
    recipe: Mapping[str, Any] | None = None,
    max_seconds: float | None = None,
    auxiliary: PathLike | None = None,
    source: PathLike | None = None,
    target: PathLike | None = None,
    keep_names: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool | Report | None = None,
) -> Adapter:
    """Train an adapter for the structures of annotated cases and return it; `Adapter.save` writes it to a file.

    Parameters
    ----------
    exemplars
        Annotated cases, from `load_exemplar` (files) or `make_exemplar` (arrays); one slice is enough.
    method
        "lora" (Feng et al. 2023), "asap" (Yang et al.; also needs `auxiliary`), "uda" (Zhu et al. 2024; needs `source`
        and `target` and no exemplars), "gmiseg" (Xu).
    base
        Base model: "bundled", "bundled-small", "vit_b", ... or a file. "auto": the method's preferred one.
    recipe
        Options that differ from the defaults of the method, for example `{"rank": 8, "steps": 800}`; nested ones as
        mappings.
    max_seconds
        Time limit, at which training stops and keeps the best state so far. Default: that of the recipe.
    auxiliary, source, target
        Folders of labelled data sets, of labelled source-domain images, and of unlabelled target images.
    keep_names
        Store the names of exemplars and files in the adapter. Default: replaced by "exemplar 1", "image 1", ...
    seed
        The same seed, inputs and device give the same adapter on a CPU, unless `max_seconds` ended training.
    device
        "auto" (a GPU if available), "cpu" or "cuda".
    progress
        None: a bar in a terminal or notebook. True, False: a bar or none. A function gets every `Progress`; it may
        raise `Cancelled`, or `StopAndKeepBest` once `can_stop` is set.

    Raises
    ------
    InputError
        Something that you can fix, such as a structure missing from all exemplars; the message says how.
    Cancelled
        Raised by `progress`.

    Examples
    --------
    >>> import numpy as np
    >>> import FewShotSegLib as fs
    >>> labels = np.zeros((4, 64, 64), np.uint8)
    >>> labels[1:3, 16:40, 16:40] = 1
    >>> image = np.where(labels, 120.0, 20.0)
    >>> exemplar = fs.make_exemplar(image, labels, spacing_mm=(1, 1, 5), structures={1: "liver"}, slices=(1,))
    >>> quick = {"steps": 1, "image_size": 64, "validate_every": 0, "guard": "off"}
    >>> fs.adapt([exemplar], base="bundled-small", recipe=quick).structures
    {1: 'liver'}
    """
    chosen = method_of(method)
    shown = progress if progress is not None or launch_of().is_first else False
    with reporting(shown) as report, tempfile.TemporaryDirectory(prefix="fewshotseg-") as scratch:
        notes = Notes(report)
        job = AdaptJob(
            out=str(Path(scratch) / "adapter.safetensors"),  # for checkpoints, which contain weights and no images
            method=method,
            base=base,
            recipe=dict(recipe or {}),
            max_seconds=max_seconds,
            auxiliary_folder=_text(auxiliary),
            source_folder=_text(source),
            target_folder=_text(target),
            seed=seed,
            device=device,  # type: ignore[arg-type]
        )
        torch_device = choose_device(device, notes.say)
        inputs = inputs_of(job, chosen, _checked(exemplars))
        with joined(torch_device) as own_device, own_randomness(seed, own_device):
            adapter = fitting_adapter(job, inputs, recipe_of(job), own_device, notes)
        return Adapter.of(adapter if keep_names else without_names(adapter, job))


def segment(
    image: VolumeLike,
    adapter: AdapterLike | None = None,
    *,
    support: Sequence[Exemplar] = (),
    prompts: Sequence[Prompt] = (),
    base: str | None = None,
    spacing_mm: Any = None,
    axis: Axis | None = None,
    largest_component: bool = False,
    min_island_ml: float = 0.0,
    all_pieces: bool = False,
    smoothing_mm: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    progress: bool | Report | None = None,
) -> Labelmap:
    """Segment a whole volume with an adapter, a support set, or prompts, and return a labelmap on its grid.

    Parameters
    ----------
    image
        Volume, file or array (K, J, I); an array requires `spacing_mm` (3,), in mm, I, J, K order.
    adapter
        Adapter or file.
    support
        Annotated cases used as a support set, without training; see `load_exemplar` and `make_exemplar`.
    prompts
        Points, boxes and masks on slices of the image, propagated to the neighbouring slices.
    base
        Base model: "bundled", "bundled-small", "vit_b", ... or a file. Default: the one the adapter was made for, or
        "bundled".
    axis
        Axis across the slices: "k", "j", "i" or 0, 1, 2. Default: that of the adapter, or the acquisition axis.
    largest_component, min_island_ml
        Keep only the largest component of each structure; remove components below a volume in millilitres.
    all_pieces
        Keep separate components, also of structures with one component in their exemplars.
    smoothing_mm
        Standard deviation of Gaussian smoothing of the final labels, in mm, against steps between slices. 0: none.
    seed
        Random seed of the augmented copies of a support set.
    device, progress
        As in `adapt`.

    Returns
    -------
    Labelmap
        `volume.array` (K, J, I) unsigned, 0 is background; `structures` {label: name}.

    Raises
    ------
    InputError
        Neither adapter nor support set nor prompts; a file that cannot be read; an adapter of another base model.

    Examples
    --------
    >>> import numpy as np
    >>> import FewShotSegLib as fs
    >>> image = np.full((3, 64, 64), 40.0)
    >>> image[:, 20:40, 20:40] = 120.0
    >>> inside = fs.Prompt(axis=0, index=1, points_ijk=[[30, 30, 1]], point_labels=[1], structure="liver")
    >>> fs.segment(image, prompts=[inside], spacing_mm=(1, 1, 5)).structures
    {1: 'liver'}
    """
    volume = as_volume(image, spacing_mm)
    known = as_adapter(adapter)
    options = SegmentOptions(
        axis=None if axis is None else axis_index(axis),
        largest_component=largest_component,
        min_island_ml=min_island_ml,
        all_pieces=all_pieces,
        smoothing_mm=smoothing_mm,
    )
    with reporting(progress) as report:
        notes = Notes(report)
        torch_device = choose_device(device, notes.say)
        with own_randomness(seed, torch_device):
            predictor = _predictor(known, _checked(support), base, torch_device, seed, notes)
            return segmentation_of(volume, prompts, predictor, options, notes).labelmap


def segment_folder(
    images: PathLike | Sequence[PathLike],
    out: PathLike,
    adapter: AdapterLike,
    *,
    processes: int = 1,
    dask: str | None = None,
    part: tuple[int, int] = (1, 1),
    axis: Axis | None = None,
    probabilities: bool = False,
    largest_component: bool = False,
    min_island_ml: float = 0.0,
    all_pieces: bool = False,
    smoothing_mm: float = 0.0,
    format: str = "seg.nrrd",
    channel: int | None = None,
    time_index: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | Report | None = None,
) -> list[dict[str, Any]]:
    """Segment the volumes of a folder into another one; existing results from the same inputs are not recomputed.

    `NAME.seg.nrrd` and `NAME.result.json` are written for each volume, and `volumes.csv` with a row per structure:
    volume in mL, confidence and quality flags.

    Parameters
    ----------
    images
        Folder of volumes (files, and folders of DICOM files), or a list of them.
    out
        Folder for the segmentations; created if missing.
    adapter
        Adapter or file; an adapter in memory is written to `out/adapter.safetensors`.
    processes
        Number of images in parallel, each in its own process. The cores are divided among them.
    dask
        "local" (a cluster of `processes` workers), or the address of a Dask scheduler (extra `dask`).
    part
        (i, n): only the i-th of n equal parts of the images, for job arrays on a cluster; i is 1-based.
    axis, largest_component, min_island_ml, all_pieces, smoothing_mm, seed, device, progress
        As in `segment`.
    format
        "seg.nrrd"; for images that are DICOM series also "dicom-seg" (extra `dicom-seg`) and "dicom-rtstruct".
    probabilities
        Also write a probability map for each structure.
    channel, time_index
        Channel and time point of images with several, both 0-based. In a folder with nnU-Net's `CASE_0000`,
        `CASE_0001`, ... the files of that channel are segmented.

    Returns
    -------
    list of dict
        A record per image: "image", "outputs" {file: SHA-256}, "metrics", "timings_s" and "warnings"; or "image"
        and "error". An image that cannot be segmented does not stop the others.

    Raises
    ------
    InputError
        The folder contains no volume, two images have the same name, or no image could be segmented.

    Examples
    --------
    >>> import FewShotSegLib as fs
    >>> records = fs.segment_folder("patients", "segmented", "organs.safetensors", processes=4)  # doctest: +SKIP
    >>> [record["image"] for record in records if "error" in record]  # doctest: +SKIP
    []
    """
    if isinstance(images, str | os.PathLike):
        paths = images_in(images, channel)
    else:
        paths = [os.fspath(path) for path in images]
    letter = None if axis is None else "kji"[axis_index(axis)]
    job = SegmentJob(
        images=tuple(paths),
        out=os.fspath(out),
        adapter=_file_of(adapter, Path(out)),
        axis=letter,  # type: ignore[arg-type]
        probabilities=probabilities,
        largest_component=largest_component,
        min_island_ml=min_island_ml,
        all_pieces=all_pieces,
        smoothing_mm=smoothing_mm,
        format=format,  # type: ignore[arg-type]
        channel=channel,
        time_index=time_index,
        seed=seed,
        device=device,  # type: ignore[arg-type]
    )
    with reporting(progress) as report:
        records = segment_images(
            job, processes=processes, dask=dask, part=Part(*part), report=report, raise_failures=False
        )["images"]
    failed = [record for record in records if "error" in record]
    if failed and len(failed) == len(records):
        raise InputError(f"No image could be segmented. {failed[0]['image']}: {failed[0]['error']['message']}")
    return records


def _predictor(
    adapter: PlainAdapter | None,
    support: Sequence[Exemplar],
    base: str | None,
    device: torch.device,
    seed: int,
    notes: Notes,
) -> Predictor | VolumePredictor:
    if not support:
        return predictor_for(adapter, base, device)
    for sentence in preflight(support):
        notes.warn(sentence)
    return load_support_predictor(support, adapter, base, device, {"seed": seed}, report=notes)


def _file_of(adapter: AdapterLike, out: Path) -> str:
    if not isinstance(adapter, PlainAdapter):
        return os.fspath(adapter)
    path = out / "adapter.safetensors"
    save_adapter(adapter, path)
    return str(path)


def _checked(exemplars: Sequence[Exemplar]) -> list[Exemplar]:
    for exemplar in exemplars:
        if not isinstance(exemplar, Exemplar):
            raise InputError(
                f"Exemplars come from load_exemplar (files) or make_exemplar (arrays), got {type(exemplar).__name__}."
            )
    return list(exemplars)


def _text(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)
