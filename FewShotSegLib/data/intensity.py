"""From raw voxel values to the range a network is given: one recorded rule, the same at training and prediction."""

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

# Soft tissue window of the abdominal CT work that the Synapse splits come from (Chen et al. 2021, TransUNet).
SOFT_TISSUE_HU = (-125.0, 275.0)
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class IntensitySpec:
    """How raw values become [0, 1].

    kind `window`: `low`..`high` are raw units (HU for CT). `percentile`: percentiles of all voxels of the volume.
    `minmax`: smallest and largest value of each slice; `low` and `high` are not used.
    scale says what the network gets: `sam` = 255 x, then SAM's own pixel mean and deviation; `unit` = x itself.
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
        """Return the raw values that become 0 and 1; None for `minmax`, where each slice has its own."""
        if self.kind == "minmax":
            return None
        if self.kind == "window":
            return self.low, self.high
        low, high = np.percentile(volume_array, [self.low, self.high])
        return float(low), float(high)

    def apply(
        self, image: np.ndarray[Any, Any], value_range: tuple[float, float] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the image (any shape) as float32 in [0, 1]; `value_range` comes from `range_of` of its volume.

        A range without extent (constant image) gives zeros.

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
        # float32 holds integers up to 2**24, so int16 and uint16 images lose nothing here.
        scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        return np.clip(scaled, 0.0, 1.0).astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"kind": self.kind, "low": self.low, "high": self.high, "scale": self.scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensitySpec:
        """Return the spec that `to_dict` described; unknown and missing keys are refused."""
        if not isinstance(values, Mapping) or set(values) - {"scale"} != {"kind", "low", "high"}:
            raise InputError(f"An intensity has the keys kind, low, high and scale, got {values!r}.")
        return cls(**values)

    @classmethod
    def auto(cls, volume: Volume) -> IntensitySpec:
        """Return a soft tissue window for values that look like Hounsfield units, else percentiles 0.5 to 99.5."""
        if looks_like_hounsfield(volume.array):
            return cls("window", *SOFT_TISSUE_HU)
        return cls("percentile", *PERCENTILES)


def looks_like_hounsfield(array: np.ndarray[Any, Any]) -> bool:
    """Return whether the values look like CT numbers: fat or air well below zero, tissue above, within 16 bits.

    CT that was clipped to a soft tissue window is one of them. MR, ultrasound and photographs are not negative;
    standardized images stay within tens.
    """
    low, high = float(array.min()), float(array.max())
    return -32768 <= low <= -100 and 50 <= high <= 65535


def _check_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f'Intensity {name} must be one of {", ".join(allowed)}, got "{value}".')


def _finite(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not number:
        raise InputError(f"Intensity {name} must be a finite number, got {value!r}.")
    return float(value)
