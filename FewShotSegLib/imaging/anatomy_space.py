"""A representation shared by CT and MR: organ boundaries, not organ intensities.

The anatomy space of Zhu et al. ("A novel pseudo label-based unsupervised multiple target domain adaptation framework
for abdominal organ segmentation", FLARE 2024, section 2.1) is the magnitude of the Sobel gradient. The paper does not
specify how it is computed; here it is per millimetre, and normalized to be invariant to gain, offset and inversion of
the intensities. One `AnatomySpace` object, stored with what was trained on it, makes training and prediction use the
same images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

Mode = Literal["auto", "2d", "3d"]

# Above this ratio, through-plane partial volume dominates, and the difference between two slices reflects the gap more
# than a boundary.
_THICKEST = 3.0
_ROUNDING = 1e-5  # fraction of the largest gradient left by float32 filters where an image is constant


@dataclass(frozen=True)
class AnatomySpace:
    """How the anatomy image of a volume is computed.

    mode `3d`: all three derivatives. `2d`: the two in-plane ones, in the acquisition plane, slice by slice. `auto`: 3d
    where the slice thickness is at most three times the in-plane spacing. `percentile` of the foreground is mapped to
    1, higher values are clipped. `intensity` is applied first and determines where values saturate; None:
    `IntensitySpec.auto` of each volume.
    """

    mode: Mode = "auto"
    percentile: float = 99.5
    intensity: IntensitySpec | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f'The mode of the anatomy space must be auto, 2d or 3d, got "{self.mode}".')
        number = isinstance(self.percentile, int | float) and not isinstance(self.percentile, bool)
        if not (number and 0 < self.percentile <= 100):
            raise InputError(f"The percentile that becomes 1 lies between 0 and 100, got {self.percentile!r}.")
        object.__setattr__(self, "percentile", float(self.percentile))
        if not isinstance(self.intensity, IntensitySpec | None):
            raise InputError(f"The intensity of the anatomy space is an IntensitySpec or none, got {self.intensity!r}.")

    def mode_of(self, volume: Volume) -> Mode:
        """Return `2d` or `3d`: the mode itself, or what `auto` resolves to for this volume."""
        if self.mode != "auto":
            return self.mode
        across = volume.acquisition_axis
        spacing = volume.spacing_mm[::-1]
        widest = float(np.delete(spacing, across).max())
        return "2d" if volume.shape[across] == 1 or spacing[across] > _THICKEST * widest else "3d"

    def settled(self, volumes: Iterable[Volume]) -> AnatomySpace:
        """Return the space with `auto` resolved once for all: 2d as soon as one of the volumes needs it.

        Two domains must be represented in the same mode, or slice thickness would distinguish them.
        """
        modes = {self.mode_of(volume) for volume in volumes}
        return replace(self, mode="2d" if "2d" in modes else "3d") if modes else self

    def apply(self, volume: Volume) -> Volume:
        """Return the anatomy image, float32 (K, J, I) in [0, 1] with the same geometry; zeros for a constant volume.

        The foreground is where the gradient exceeds the mean of the nonzero gradients. Unlike an intensity mask it is
        invariant to contrast inversion, and unlike using all voxels it does not depend on the amount of air in the
        image. Between five and six float32 copies of the volume are held at a time.
        """
        spec = self.intensity or IntensitySpec.auto(volume)
        image = np.stack([spec.apply(plane) for plane in volume.array]) if spec.kind == "minmax" else None
        if image is None:
            image = spec.apply(volume.array, spec.range_of(volume.array))
        magnitude = gradient_magnitude(volume.like(image), in_plane=self.mode_of(volume) == "2d")
        return volume.like(_scaled(magnitude, self.percentile))

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON types."""
        intensity = None if self.intensity is None else self.intensity.to_dict()
        return {"mode": self.mode, "percentile": self.percentile, "intensity": intensity}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AnatomySpace:
        """Return the space from the output of `to_dict`; unknown and missing keys are rejected."""
        if not isinstance(values, Mapping) or set(values) != {"mode", "percentile", "intensity"}:
            raise InputError(f"An anatomy space has the keys mode, percentile and intensity, got {values!r}.")
        intensity = None if values["intensity"] is None else IntensitySpec.from_dict(values["intensity"])
        return cls(values["mode"], values["percentile"], intensity)


def gradient_magnitude(volume: Volume, *, in_plane: bool = False) -> NDArray[np.float32]:
    """Return the magnitude (K, J, I) of the Sobel gradient in intensity units per mm.

    `in_plane`: of the two components in the acquisition plane, computed slice by slice. At the border of the volume,
    where only one neighbour is known, the component across it is halved.

    >>> ramp = np.arange(5.0) * np.ones((4, 4, 1))  # 1 per voxel of 0.5 mm
    >>> float(gradient_magnitude(Volume(ramp, np.diag([0.5, 1, 1, 1])))[1, 1, 2])
    2.0
    """
    from scipy import ndimage

    image = np.asarray(volume.array, np.float32)
    axes = [axis for axis in range(3) if not (in_plane and axis == volume.acquisition_axis)]
    squares = np.zeros_like(image)
    for axis in axes:
        slope = ndimage.correlate1d(image, [-0.5, 0, 0.5], axis, mode="nearest")
        for other in (other for other in axes if other != axis):
            ndimage.correlate1d(slope, [0.25, 0.5, 0.25], other, output=slope, mode="nearest")
        slope /= np.float32(volume.spacing_mm[::-1][axis])
        squares += np.square(slope, out=slope)
    return np.sqrt(squares, out=squares)


def _scaled(magnitude: NDArray[np.float32], percentile: float) -> NDArray[np.float32]:
    """Return the magnitude scaled so that the percentile of its foreground is 1."""
    some = magnitude[magnitude > _ROUNDING * magnitude.max()]
    if not some.size:
        return np.zeros_like(magnitude)
    # By rounding, the mean of equal values may exceed all of them.
    foreground = some[some >= min(some.mean(dtype=np.float64), some.max())]
    return np.clip(magnitude / np.float32(np.percentile(foreground, percentile)), 0.0, 1.0)
