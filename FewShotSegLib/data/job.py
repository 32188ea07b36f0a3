"""Jobs: one run each, in paths, names and numbers only. The unit of reproducibility, of the worker and of batch.

A job is JSON with a "kind"; what is left out has its default:

    {"kind": "segment", "images": ["patient 7.nrrd"], "adapter": "liver.safetensors", "out": "segmented"}

Relative paths in a job file start at the folder of that file, so a folder with its jobs can be moved as a whole.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar

from FewShotSegLib.errors import InputError

from .intensity import IntensitySpec

Device = Literal["auto", "cpu", "cuda"]
Axis = Literal["k", "j", "i"]  # the IJK axis that the slices are stacked along

T = TypeVar("T")


def _path(default: Any = MISSING) -> Any:
    """Return a field that holds a path or paths; `with_paths_from` reads the mark."""
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

    def __post_init__(self) -> None:
        _check_types(self)
        _check_not_empty(self, "image", "labelmap")


@dataclass(frozen=True)
class AuxiliaryFiles:
    """An auxiliary labelled data set on disk: a name and its annotated cases."""

    name: str
    cases: tuple[ExemplarFiles, ...]

    def __post_init__(self) -> None:
        _check_types(self)
        _check_not_empty(self, "name", "cases")


@dataclass(frozen=True)
class AdaptJob:
    """Make an adapter, the file `out`, from exemplars, unlabelled targets and auxiliary data.

    Auxiliary data are the `auxiliary` data sets and those in `auxiliary_folder`. `source_folder` and `target_folder`
    hold the labelled and the unlabelled images of an adaptation from one kind of image to another.

    `base` is the name of a base model or a file. `recipe` holds the options that differ from the method's defaults.
    `warm_start` is an adapter to go on from. After `max_seconds` training stops and keeps the best so far. `intensity`
    is an `IntensitySpec` as a table; None is the one of `warm_start`, or what suits the first exemplar.
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
    base: str = _path("bundled")
    recipe: dict[str, Any] = field(default_factory=dict)
    warm_start: str | None = _path(None)
    max_seconds: float | None = None
    intensity: dict[str, Any] | None = None
    seed: int = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        _check_types(self)
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

    `support` are annotated cases that are looked at and not trained on; an adapter that comes with them has no
    structures of its own. `support_recipe` holds the options of `SupportRecipe` that differ from its defaults,
    `intensity` is an `IntensitySpec` as a table for the support set and the images; None: by the kind of image.

    `base` None is the base model that the adapter was made for, or the bundled one. `axis` None is that of the adapter
    or the support set, or the acquisition axis. Islands smaller than `min_island_ml` millilitres are removed.
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

    def __post_init__(self) -> None:
        _check_types(self)
        _check_not_empty(self, "images", "out")
        _check_seed(self.seed)
        if self.adapter is None and self.prompts is None and not self.support:
            raise InputError("A segment job needs an adapter, a support set or prompts, and has none; add one.")
        for name in ("support_recipe", "intensity"):
            if getattr(self, name) and not self.support:
                raise InputError(f'Job entry "{name}" has no meaning without "support"; add it, or leave both out.')
        if self.intensity is not None:
            IntensitySpec.from_dict(self.intensity)
        if self.prompts is not None and len(self.images) > 1:
            raise InputError(
                f"Prompts belong to one image, got {len(self.images)} images with one prompt file; use a job per image."
            )
        if self.min_island_ml < 0:
            raise InputError(f'Job entry "min_island_ml" must be at least 0, got {self.min_island_ml}.')


@dataclass(frozen=True)
class EvaluateJob:
    """Compare segmentations `pred` to references `ref`, each a file or a folder; the table goes to the file `out`.

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

    def __post_init__(self) -> None:
        _check_types(self)
        _check_not_empty(self, "pred", "ref", "out")
        _check_suffix(self.out, ".csv")
        _check_seed(self.seed)
        if self.tolerance_mm <= 0:
            raise InputError(f'Job entry "tolerance_mm" must be above 0, got {self.tolerance_mm}.')


Job = AdaptJob | SegmentJob | EvaluateJob
JOBS: dict[str, type[Job]] = {cls.kind: cls for cls in (AdaptJob, SegmentJob, EvaluateJob)}


# -------------------------------------------------------------------------------------------------------------- JSON


def from_dict(values: Mapping[str, Any]) -> Job:
    """Return the job that `to_dict` described; unknown entries are refused.

    >>> from_dict({"kind": "evaluate", "pred": "a", "ref": "b", "out": "c.csv"}).tolerance_mm
    2.0
    """
    if not isinstance(values, Mapping):
        raise InputError(f"A job must be a table of names and values, got {_shown(values)}.")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in JOBS:
        raise InputError(f'The "kind" of a job must be one of {", ".join(JOBS)}, got {_shown(kind)}.')
    return _construct(JOBS[kind], {key: value for key, value in values.items() if key != "kind"})


def to_dict(job: Job) -> dict[str, Any]:
    """Return the job as JSON types, every entry written out."""
    return {"kind": job.kind, **_to_json(job)}


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        return {entry.name: _to_json(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {str(key): _to_json(element) for key, element in value.items()}
    return [_to_json(element) for element in value] if isinstance(value, tuple | list) else value


# ------------------------------------------------------------------------------------------------------------- checks


def _construct(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return `cls(**values)` after a look at the names, so that a wrong or missing one is the user's mistake."""
    entries = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in entries:
            near = difflib.get_close_matches(str(key), entries, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else "."
            raise InputError(f'Unknown job entry "{key}"{hint} Allowed: {", ".join(sorted(entries))}.')
    for name, entry in entries.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f'The job entry "{name}" is missing; add it.')
    return cls(**values)


def _check_types(job: Any) -> None:
    """Bring every entry to its declared type (JSON has no tuples and only text as keys), or raise `InputError`."""
    hints = typing.get_type_hints(type(job))
    for entry in fields(job):
        value = _as_type(entry.name, getattr(job, entry.name), hints[entry.name])
        object.__setattr__(job, entry.name, value)


def _as_type(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(name, value, arguments)
    if origin is tuple:
        return _as_tuple(name, value, arguments[0])
    if origin is dict:
        return _as_structures(name, value) if arguments[0] is int else _as_json(name, value, dict)
    if is_dataclass(hint):
        return _as_part(name, value, hint)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _refuse(name, value, hint)
    return _as_scalar(name, value, hint)


def _as_one_of(name: str, value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    wanted = [hint for hint in hints if hint is not type(None)]
    # Only "slices" has a choice: a text or a list. The kind of value given says which one is meant.
    is_list = isinstance(value, list | tuple)
    fitting = [hint for hint in wanted if (typing.get_origin(hint) is tuple) == is_list]
    return _as_type(name, value, (fitting or wanted)[0])


def _as_tuple(name: str, value: Any, hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _refuse(name, value, tuple[hint, ...])
    return tuple(_as_type(f"{name}[{index}]", element, hint) for index, element in enumerate(value))


def _as_part(name: str, value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        _refuse(name, value, cls)
    try:
        return _construct(cls, value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _as_structures(name: str, value: Any) -> dict[int, str]:
    if not isinstance(value, Mapping) or not value:
        _refuse(name, value, dict[int, str])
    structures: dict[int, str] = {}
    for key, text in value.items():
        label = int(key) if isinstance(key, str) and key.strip().isdecimal() else key
        if not isinstance(label, int) or isinstance(label, bool) or label < 1 or not isinstance(text, str) or not text:
            _refuse(name, {key: text}, dict[int, str])
        if label in structures:
            raise InputError(f'Job entry "{name}" names label {label} twice; keep one of them.')
        structures[label] = text
    return structures


def _as_json(name: str, value: Any, cls: type | None = None) -> Any:
    """Return a deep copy in JSON types, so that a job equals itself after a round trip."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _as_json(f"{name}.{key}", element) for key, element in value.items()}
    if cls is dict:
        _refuse(name, value, dict[str, Any])
    if isinstance(value, list | tuple):
        return [_as_json(f"{name}[{index}]", element) for index, element in enumerate(value)]
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (isinstance(value, str | bool | int | float) and finite):
        return value
    raise InputError(
        f'Job entry "{name}" must be a text, a finite number, true, false, a list or a table, got {value!r}.'
    )


def _as_scalar(name: str, value: Any, hint: Any) -> Any:
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) and hint is not bool:  # bool is an int in Python, but true is not a seed
        _refuse(name, value, hint)
    if hint is float and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return value if isinstance(value, hint) and hint is not float else _refuse(name, value, hint)


def _refuse(name: str, value: Any, hint: Any) -> typing.NoReturn:
    raise InputError(f'Job entry "{name}" must be {_described(hint)}, got {_shown(value)}.')


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a list"
    if typing.get_origin(hint) is dict:
        return 'a table like {"1": "liver"}' if typing.get_args(hint)[0] is int else "a table of names and values"
    words = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(hint, "a table of names and values")


def _shown(value: Any) -> str:
    """Return the value as JSON, as the user wrote it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_not_empty(job: Any, *names: str) -> None:
    for name in names:
        if not getattr(job, name):
            raise InputError(f'Job entry "{name}" must not be empty.')


def _check_suffix(out: str, suffix: str) -> None:
    if not out.lower().endswith(suffix):
        raise InputError(f'Job entry "out" must be a file name that ends in {suffix}, got "{out}".')


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f'Job entry "seed" must be at least 0, got {seed}.')
