"""The pictures that a few slices teach with: the slices themselves, and transformed copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GAMMA, GAIN, BIAS, BLUR = 0.4, 0.1, 0.05, 0.7  # how far copies differ in brightness (0 to 1) and sharpness


@dataclass(frozen=True, eq=False)
class Picture:
    """A slice, or a transformed copy of one: image (S, S) float32 in [0, 1], labels (S, S) int32, and the (h, w)
    pixels of the square that it fills; `source` numbers the slices.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    content: tuple[int, int]
    source: int
    original: bool


def pictures_of(slices: Sequence[Picture], at_least: int, seed: int) -> list[Picture]:
    """The slices, each followed by its copies: `at_least` pictures in all, and a copy of each unless there are many."""
    count = len(slices)
    copies = max(-(-at_least // count) - 1, 1 if count <= 2 * at_least else 0)
    pictures = []
    for slice_ in slices:
        pictures.append(slice_)
        pictures += [_copy(slice_, np.random.default_rng([seed, slice_.source, n])) for n in range(copies)]
    return pictures


def _copy(picture: Picture, rng: np.random.Generator) -> Picture:
    """Turned, scaled, shifted, brightened and blurred a little: what differs between patients; never mirrored, so that
    left stays left.
    """
    size = picture.image.shape[0]
    angle, scale = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.18)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(picture.content) - 1) / 2
    offset = centre - turn @ (centre + rng.uniform(-0.05, 0.05, 2) * size)
    image = ndimage.affine_transform(picture.image, turn, offset, order=1)
    image = np.clip(image, 0, 1) ** np.exp(rng.uniform(-GAMMA, GAMMA))
    image = np.clip(image * rng.uniform(1 - GAIN, 1 + GAIN) + rng.uniform(-BIAS, BIAS), 0, 1)
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLUR)).astype(np.float32)
    labels = ndimage.affine_transform(picture.labels, turn, offset, order=0)
    beyond = np.ones((size, size), bool)
    beyond[: picture.content[0], : picture.content[1]] = False
    image[beyond], labels[beyond] = 0, 0
    return replace(picture, image=image, labels=labels, original=False)
