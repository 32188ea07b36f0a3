"""Jobs: the description of one run, by paths, names and numbers only. The unit of reproducibility and of the worker.

A job is JSON with a "kind"; omitted entries have their defaults:

    {"kind": "segment", "images": ["patient 7.nrrd"], "adapter": "liver.safetensors", "out": "segmented"}

Relative paths in a job file are relative to its folder, so a folder with its jobs can be moved as a whole.

Existing output files are replaced if the record next to them shows that they were written by this program and have not
been changed since; other files only with `overwrite`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from FewShotSegLib.errors import InputError

from .intensity import IntensitySpec
from .schema import coerce, construct, shown, to_json

Device = Literal["auto", "cpu", "cuda"]
SegmentationFormat = Literal["seg.nrrd", "dicom-seg", "dicom-rtstruct"]
Axis = Literal["k", "j", "i"]  # the IJK axis along which slices are stacked

MOST_SMOOTHING_MM = 20.0
_NOUN = "job entry"


def _path(default: Any = MISSING) -> Any:
    """Return a field for a path or paths, marked for `with_paths_from`."""
    return field(default=default, metadata={"path": True})


@dataclass(frozen=True)
class ExemplarFiles:
    """An annotated case on disk: the arguments of `load_exemplar`, with the axis as a letter."""

    image: str = _path()
    labelmap: str = _path()
    axis: Axis | None = None
    slices: tuple[int, ...] | Literal["all"] | None = None
    structures: dict[int, str] | None = None
    resample: bool = False
    same_voxels: bool = False
    ignore: int | None = None
    channel: int | None = None
    time_index: int | None = None

    def __post_init__(self) -> None:
        coerce(self, _NOUN)
        _check_paths(self)
        _check_not_empty(self, "image", "labelmap")


@dataclass(frozen=True)
class AuxiliaryFiles:
    """An auxiliary labelled data set on disk: a name and its annotated cases."""

    name: str
    cases: tuple[ExemplarFiles, ...]

    def __post_init__(self) -> None:
        coerce(self, _NOUN)
        _check_paths(self)
        _check_not_empty(self, "name", "cases")


@dataclass(frozen=True)
class AdaptJob:
    """Train an adapter, saved to the file `out`, from exemplars, unlabelled targets and auxiliary data.

    Auxiliary data are the `auxiliary` data sets and those in `auxiliary_folder`. `source_folder` and `target_folder`
    contain the labelled and the unlabelled images for domain adaptation.

    `base` is the name of a base model or a file; "auto": that of `warm_start`, or the method's preferred one. `recipe`
    holds the options that differ from the method's defaults.
    `warm_start` is an adapter to continue from. After `max_seconds` training stops and keeps the best state so far.
    `intensity` is an `IntensitySpec` as a table; None is the one of `warm_start`, or chosen from the first exemplar.
    `channel` and `time_index` are those of the targets; exemplars have their own. With `keep_names` the adapter stores
    the names of its training files.
    """

    kind: ClassVar[str] = "adapt"
    out: str = _path()
    method: str = "lora"
    exemplars: tuple[ExemplarFiles, ...] = ()
    targets: tuple[str, ...] = _path(())
    auxiliary: tuple[AuxiliaryFiles, ...] = ()
    auxiliary_folder: str | None = _path(None)
    source_folder: str | None = _path(None)
    target_folder: str | None = _path(None)
    base: str = _path("auto")
    recipe: dict[str, Any] = field(default_factory=dict)
    warm_start: str | None = _path(None)
    max_seconds: float | None = None
    intensity: dict[str, Any] | None = None
    seed: int = 0
    device: Device = "auto"
    overwrite: bool = False
    channel: int | None = None
    time_index: int | None = None
    keep_names: bool = False

    def __post_init__(self) -> None:
        coerce(self, _NOUN)
        _check_paths(self)
        _check_not_empty(self, "out", "method", "base")
        _check_suffix(self.out, ".safetensors")
        _check_seed(self.seed)
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise InputError(f'Job entry "max_seconds" must be above 0 or left out, got {self.max_seconds}.')
        if self.intensity is not None:
            IntensitySpec.from_dict(self.intensity)


@dataclass(frozen=True)
class SegmentJob:
    """Segment `images` into the folder `out`, with an adapter or a support set, with prompts, or with both.

    `support` are annotated cases used as a support set, not for training; an adapter combined with them must not have
    structures of its own. `support_recipe` holds the options of `SupportRecipe` that differ from its defaults,
    `intensity` is an `IntensitySpec` as a table for the support set and the images; None: that of the adapter, or by
    the kind of image.

    `base` None is the base model that the adapter was made for, or "bundled". `axis` None is that of the adapter or the
    support set, or the acquisition axis. Islands smaller than `min_island_ml` millilitres are removed. For a structure
    with one component in its exemplars, minor components are removed unless `all_pieces`.
    `format` dicom-seg writes DICOM segmentations and dicom-rtstruct RT structure sets; both refer to their series and
    require images that are DICOM series.
    `channel` and `time_index` select one volume of images with several. `smoothing_mm` is the standard deviation of
    Gaussian smoothing of the final labels, 0 for none.
    """

    kind: ClassVar[str] = "segment"
    images: tuple[str, ...] = _path()
    out: str = _path()
    adapter: str | None = _path(None)
    prompts: str | None = _path(None)
    base: str | None = _path(None)
    axis: Axis | None = None
    probabilities: bool = False
    largest_component: bool = False
    min_island_ml: float = 0.0
    seed: int = 0
    device: Device = "auto"
    support: tuple[ExemplarFiles, ...] = ()
    support_recipe: dict[str, Any] = field(default_factory=dict)
    intensity: dict[str, Any] | None = None
    format: SegmentationFormat = "seg.nrrd"
    all_pieces: bool = False
    overwrite: bool = False
    channel: int | None = None
    time_index: int | None = None
    smoothing_mm: float = 0.0

    def __post_init__(self) -> None:
        coerce(self, _NOUN)
        _check_paths(self)
        _check_not_empty(self, "images", "out")
        _check_seed(self.seed)
        if self.adapter is None and self.prompts is None and not self.support:
            raise InputError("A segment job needs an adapter, a support set or prompts, and has none; add one.")
        if self.support_recipe and not self.support:
            raise InputError('Job entry "support_recipe" has no meaning without "support"; add it, or leave both out.')
        if self.intensity is not None:
            IntensitySpec.from_dict(self.intensity)
        if self.prompts is not None and len(self.images) > 1:
            raise InputError(
                f"Prompts belong to one image, got {len(self.images)} images with one prompt file; use a job per image."
            )
        if self.min_island_ml < 0:
            raise InputError(f'Job entry "min_island_ml" must be at least 0, got {self.min_island_ml}.')
        if not 0 <= self.smoothing_mm <= MOST_SMOOTHING_MM:
            raise InputError(
                f'Job entry "smoothing_mm" must be between 0 and {MOST_SMOOTHING_MM:g}, got {self.smoothing_mm}.'
            )


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a batch job, to distribute it over machines; `number` is 1-based."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"A part is written i/n with i from 1 to n, got {self.number}/{self.count}.")

    def of(self, images: Sequence[str]) -> tuple[str, ...]:
        """Return the images of this part: every n-th one, so that the parts are a partition.

        >>> Part(2, 3).of(["a", "b", "c", "d", "e"])
        ('b', 'e')
        """
        return tuple(images[self.number - 1 :: self.count])

    @property
    def table(self) -> str:
        """File name of this part's table."""
        return "volumes.csv" if self.count == 1 else f"volumes.{self.number}-of-{self.count}.csv"


WHOLE = Part()


@dataclass(frozen=True)
class EvaluateJob:
    """Compare segmentations `pred` to references `ref`, each a file or a folder; the table is written to `out`.

    `structures` {value: name} None compares all of them. `tolerance_mm` is that of the normalized surface distance.
    """

    kind: ClassVar[str] = "evaluate"
    pred: str = _path()
    ref: str = _path()
    out: str = _path()
    structures: dict[int, str] | None = None
    tolerance_mm: float = 2.0
    seed: int = 0
    device: Device = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        coerce(self, _NOUN)
        _check_paths(self)
        _check_not_empty(self, "pred", "ref", "out")
        _check_suffix(self.out, ".csv")
        _check_seed(self.seed)
        if self.tolerance_mm <= 0:
            raise InputError(f'Job entry "tolerance_mm" must be above 0, got {self.tolerance_mm}.')


Job = AdaptJob | SegmentJob | EvaluateJob
JOBS: dict[str, type[Job]] = {cls.kind: cls for cls in (AdaptJob, SegmentJob, EvaluateJob)}


# -------------------------------------------------------------------------------------------------------------- JSON


def from_dict(values: Mapping[str, Any]) -> Job:
    """Return the job from the output of `to_dict`; unknown entries are rejected.

    >>> from_dict({"kind": "evaluate", "pred": "a", "ref": "b", "out": "c.csv"}).tolerance_mm
    2.0
    """
    if not isinstance(values, Mapping):
        raise InputError(f"A job must be a table of names and values, got {shown(values)}.")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in JOBS:
        raise InputError(f'The "kind" of a job must be one of {", ".join(JOBS)}, got {shown(kind)}.')
    return construct(JOBS[kind], {key: value for key, value in values.items() if key != "kind"}, _NOUN)


def to_dict(job: Job) -> dict[str, Any]:
    """Return the job as JSON types, every entry written out."""
    return {"kind": job.kind, **to_json(job)}


# ------------------------------------------------------------------------------------------------------------- checks


def _check_not_empty(job: Any, *names: str) -> None:
    for name in names:
        if not getattr(job, name):
            raise InputError(f'Job entry "{name}" must not be empty.')


def _check_suffix(out: str, suffix: str) -> None:
    if not out.lower().endswith(suffix):
        raise InputError(f'Job entry "out" must be a file name that ends in {suffix}, got "{out}".')


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        allowed = "at least 0" if seed < 0 else "below 2^63"
        raise InputError(f'Job entry "seed" must be {allowed}, got {shown(seed)}.')


_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes; limits of file systems


def _check_paths(job: Any) -> None:
    """Raise `InputError` for an impossible path, which would otherwise fail late and obscurely."""
    for entry in fields(job):
        value = getattr(job, entry.name)
        for path in (value if isinstance(value, tuple) else (value,)) if entry.metadata.get("path") else ():
            if not isinstance(path, str):
                continue
            long = len(path) > _LONGEST_PATH or any(len(os.fsencode(p)) > _LONGEST_NAME for p in PurePath(path).parts)
            if long or "\0" in path:
                what = "longer than any file name" if long else "with a zero byte"
                raise InputError(f'Job entry "{entry.name}" holds a path {what}: {shown(path)}.')
