"""Intensity normalization from raw voxel values to the network's input range, identical in training and prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from FewShotSegLib.errors import InputError

from .volume import Volume

Kind = Literal["window", "percentile", "minmax"]
Scale = Literal["sam", "unit"]

# Soft tissue window of the abdominal CT work that defined the Synapse splits (Chen et al. 2021, TransUNet).
SOFT_TISSUE_HU = (-125.0, 275.0)
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class IntensitySpec:
    """How raw values are mapped to [0, 1].

    kind `window`: `low`..`high` are raw units (HU for CT). `percentile`: percentiles of all voxels of the volume.
    `minmax`: smallest and largest value of each slice; `low` and `high` are not used.
    scale is the network's input scale: `sam` = 255 x, then SAM's own pixel mean and SD; `unit` = x itself.
    """

    kind: Kind
    low: float
    high: float
    scale: Scale = "sam"

    def __post_init__(self) -> None:
        _check_one_of("kind", self.kind, get_args(Kind))
        _check_one_of("scale", self.scale, get_args(Scale))
        object.__setattr__(self, "low", _finite("low", self.low))
        object.__setattr__(self, "high", _finite("high", self.high))
        if self.kind != "minmax" and not self.low < self.high:
            raise InputError(f"Intensity {self.kind} needs low < high, got low {self.low:g} and high {self.high:g}.")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise InputError(f"Intensity percentiles lie between 0 and 100, got {self.low:g} and {self.high:g}.")

    def range_of(self, volume_array: np.ndarray[Any, Any]) -> tuple[float, float] | None:
        """Return the raw values that map to 0 and 1; None for `minmax`, where each slice has its own."""
        if self.kind == "minmax":
            return None
        if self.kind == "window":
            return self.low, self.high
        values = volume_array.astype(np.uint8) if volume_array.dtype == np.bool_ else volume_array
        kept = _without_padding(values)
        low, high = np.percentile(kept, [self.low, self.high], overwrite_input=kept is not values)
        if not high > low:  # nearly constant: use the voxels that differ
            others = values[values != low]
            if others.size:
                ends = np.percentile(others, [self.low, self.high])
                return float(min(low, ends[0])), float(max(low, ends[1]))
        return float(low), float(high)

    def apply(
        self, image: np.ndarray[Any, Any], value_range: tuple[float, float] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the image (any shape) as float32 in [0, 1]; `value_range` comes from `range_of` of its volume.

        An empty range (constant image) gives zeros.

        >>> IntensitySpec("window", -100, 100).apply(np.array([[-500, 0, 50, 900]]), (-100, 100)).tolist()
        [[0.0, 0.5, 0.75, 1.0]]
        """
        if value_range is None:
            if self.kind == "percentile":
                raise ValueError(
                    "percentile intensity needs the range of the whole volume: pass range_of(volume.array)"
                )
            value_range = (self.low, self.high) if self.kind == "window" else (float(image.min()), float(image.max()))
        low, high = value_range
        if not high > low:
            return np.zeros(image.shape, dtype=np.float32)
        # float32 represents integers up to 2**24 exactly, so int16 and uint16 images are lossless here.
        kind = np.float32 if image.dtype.itemsize <= 2 or image.dtype == np.float32 else np.float64
        with np.errstate(over="ignore"):
            scaled: np.ndarray[Any, Any] = image.astype(kind)  # in place from here on, to save memory on whole volumes
            scaled -= np.asarray(low, kind)
            scaled /= np.asarray(high - low, kind)
        return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON types."""
        return {"kind": self.kind, "low": self.low, "high": self.high, "scale": self.scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensitySpec:
        """Return the spec from the output of `to_dict`; unknown and missing keys are rejected."""
        if not isinstance(values, Mapping) or set(values) - {"scale"} != {"kind", "low", "high"}:
            raise InputError(f"An intensity has the keys kind, low, high and scale, got {values!r}.")
        return cls(**values)

    @classmethod
    def auto(cls, volume: Volume) -> IntensitySpec:
        """Return a soft tissue window for values that look like Hounsfield units, else percentiles 0.5 to 99.5."""
        if looks_like_hounsfield(volume.array):
            return cls("window", *SOFT_TISSUE_HU)
        return cls("percentile", *PERCENTILES)


def intensity_from(text: str) -> IntensitySpec | None:
    """Parse the rule of a command line argument; None for "auto".

    >>> intensity_from("window:-125,275")
    IntensitySpec(kind='window', low=-125.0, high=275.0, scale='sam')
    """
    kind, _, numbers = text.partition(":")
    default = {"auto": (), "percentile": PERCENTILES, "minmax": (0.0, 1.0)}.get(kind)
    try:
        values = [float(word) for word in numbers.split(",")] if numbers else list(default or ())
    except ValueError:
        values = []
    if text == "auto":
        return None
    if kind not in get_args(Kind) or len(values) != 2:
        raise InputError(
            f'An intensity is written auto, window:LOW,HIGH, percentile:LOW,HIGH or minmax, got "{text}"; for CT for '
            "example window:-125,275."
        )
    return IntensitySpec(kind, *values)  # type: ignore[arg-type]


_MOST_LOOKED_AT = 1_000_000  # voxels; a subsample reveals the kind of image
_FAT_HU = (-200.0, -20.0)
_LUNG_HU = (-1100.0, -500.0)  # also the air around the patient, which is never exactly constant
_SOFT_HU = (-20.0, 400.0)
_PADDED = 0.001  # fraction of voxels with the minimum value above which that value is padding
_OUTSIDE = 0.02  # fraction of voxels within a window below which the image is of another kind


def looks_like_hounsfield(array: np.ndarray[Any, Any]) -> bool:
    """Return whether the values look like CT numbers, by fractions of voxels and never by single ones.

    Fat or lung (air) below zero, soft tissue above, next to nothing below air. The minimum value is ignored: it is the
    padding of a resampled or cropped image, -1000 in MR as well. CT that was clipped to a soft tissue window counts.
    MR, ultrasound and photographs contain no fat at -100; standardized images stay within tens.
    """
    values = _some_of(array)
    values = values[values > values.min()]
    if not values.size:
        return False

    def share(low: float, high: float) -> float:
        return float(np.count_nonzero((values >= low) & (values <= high))) / values.size

    negative = share(*_FAT_HU) >= 0.01 or share(*_LUNG_HU) >= 0.05
    return negative and share(*_SOFT_HU) >= 0.05 and share(-np.inf, _LUNG_HU[0]) <= 0.01


_DIFFERS = "looks different from the images the adapter was trained on"


def unlike(spec: IntensitySpec, array: np.ndarray[Any, Any], name: str, is_ct: bool | None = None) -> str:
    """Return a sentence if an image does not look like those that a rule was made for, else "".

    `is_ct`: whether those are in Hounsfield units; None: inferred from the rule.
    """
    wanted = is_ct if is_ct is not None else spec.kind == "window" and spec.low < 0
    found = looks_like_hounsfield(array)
    values = _some_of(array)
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    if wanted != found:
        kinds = ("hold Hounsfield units (CT)", "does not") if wanted else ("do not hold Hounsfield units", "does (CT)")
        return (
            f"{name} {_DIFFERS}: these {kinds[0]}, this one {kinds[1]} (values {low:g} to {high:g}). Check the result; "
            "where it is wrong, use an image of the same kind or adapt to this kind (--intensity sets another window)."
        )
    inside = np.count_nonzero((values > spec.low) & (values < spec.high)) / values.size
    if spec.kind == "window" and inside < _OUTSIDE and values.min() < values.max():
        return (
            f"{name} {_DIFFERS}: nearly all of its values ({low:g} to {high:g}) lie outside the intensity window "
            f"{spec.low:g} to {spec.high:g}. Check the result; where it is wrong, adapt to this type of image "
            "(--intensity sets another window)."
        )
    return ""


def _some_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An even subsample of at most `_MOST_LOOKED_AT` voxels, in a dtype that can be subtracted."""
    values = array.reshape(-1)[:: max(array.size // _MOST_LOOKED_AT, 1)]
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def _without_padding(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values without padding: many voxels of one negative value far below all others, and values interpolated in
    between."""
    some = _some_of(values)
    lowest = some.min()
    rest = some[some > lowest]
    if lowest >= 0 or not rest.size or some.size - rest.size < _PADDED * some.size:
        return values
    low, high = np.percentile(rest, [10, 90])
    floor = low - (high - low)
    return values if lowest >= floor else values[values >= floor]


def _check_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f'Intensity {name} must be one of {", ".join(allowed)}, got "{value}".')


def _finite(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not number:
        raise InputError(f"Intensity {name} must be a finite number, got {value!r}.")
    return float(value)
