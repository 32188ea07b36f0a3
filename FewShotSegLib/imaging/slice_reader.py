"""From a slice of a volume to the network input square: the one place where its intensities are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

from .slice_frame import SliceFrame, frame_of, to_network

_ROUNDING = 1e-4  # overshoot beyond [0, 1] tolerated from resampling


class SliceReader:
    """Slices of one volume along an array axis as network input squares.

    >>> volume = Volume(np.arange(24.0).reshape(2, 3, 4), np.eye(4))
    >>> SliceReader(volume, IntensitySpec("window", 0, 23), 64).square(1).shape
    (64, 64)
    """

    def __init__(
        self,
        volume: Volume,
        intensity: IntensitySpec,
        image_size: int,
        axis: int = 0,
        *,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        """`value_range` is that of `intensity` for this volume, if already known."""
        self.volume, self.intensity, self.image_size, self.axis = volume, intensity, image_size, axis
        self.value_range = value_range or intensity.range_of(volume.array)

    def frame(self, index: int) -> SliceFrame:
        """The frame of a slice."""
        return frame_of(self.volume, self.axis, index, self.image_size)

    def square(self, index: int) -> NDArray[np.float32]:
        """The slice as (S, S) float32 in [0, 1]; padding is 0."""
        frame = self.frame(index)  # first, as it checks the index
        image = self.intensity.apply(self.volume.array.take(index, self.axis), self.value_range)
        return np.asarray(to_network(image, frame))


def check_square(square: NDArray[Any], image_size: int) -> None:
    """Raise `InputError` for anything but a network square, such as a slice in Hounsfield units."""
    if square.shape != (image_size, image_size) or square.dtype != np.float32:
        raise InputError(
            f"The network takes squares of {image_size} x {image_size} pixels in float32, got {square.dtype} of shape "
            f"{square.shape}; read slices with a SliceReader."
        )
    low, high = float(square.min()), float(square.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"The network takes intensities from 0 to 1, got {low:g} to {high:g}; read slices with a SliceReader."
        )
