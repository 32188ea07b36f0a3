"""Outlines of labels on a grey slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def outlined(
    image: NDArray[Any], labels: NDArray[Any], colors: Mapping[int, tuple[float, float, float]]
) -> NDArray[np.uint8]:
    """A slice (H, W) in [0, 1] as a picture (H, W, 3), with the outline of each label in its colour, in 0..1."""
    picture = np.repeat((255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    for value, color in colors.items():
        picture[outline(labels == value)] = np.round(255 * np.array(color)).astype(np.uint8)
    return picture


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)
