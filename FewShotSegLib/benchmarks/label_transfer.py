"""The plainest way to use annotated slices: take over the labels of the one that looks most alike.

Slices are compared where their bodies lie over each other: both are shifted and scaled to the frame of what is bright
in them. What a method makes of exemplars has to be more than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

SIDE = 64  # pixels of the frame that slices are compared in
BRIGHT = 0.15  # of what a body is, in [0, 1]


def body_box(image: Array) -> tuple[Array, Array]:
    """First and last row and column (2,) of what is bright, of the whole slice where nothing is."""
    body = ndimage.binary_opening(image > BRIGHT, iterations=2)
    if not body.any():
        body = np.ones(image.shape, bool)
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    return np.array([rows[0], columns[0]], float), np.array([rows[-1], columns[-1]], float)


def _framed(image: Array) -> Array:
    """The body of a slice in a square of SIDE, its mean 0 and deviation 1."""
    low, high = body_box(image)
    at = np.meshgrid(*(np.linspace(a, b, SIDE) for a, b in zip(low, high, strict=True)), indexing="ij")
    seen = ndimage.map_coordinates(image, at, order=1)
    return (seen - seen.mean()) / (seen.std() + 1e-6)


def transferred(image: Array, supports: Sequence[tuple[Array, Array]]) -> Array:
    """Labels (H, W) for a slice: those of the support (image, labels) whose body correlates best, brought to its body.

    >>> image = np.zeros((40, 40)); image[5:30, 8:35] = 1.0
    >>> bool((transferred(image, [(image, (image > 0).astype(int))]) == (image > 0)).all())
    True
    """
    own = _framed(image)
    best = max(range(len(supports)), key=lambda at: float((own * _framed(supports[at][0])).mean()))
    given, labels = supports[best]
    (low, high), (their_low, their_high) = body_box(image), body_box(given)
    scale = (their_high - their_low) / np.maximum(high - low, 1)
    at = np.indices(image.shape, dtype=float)
    source = [their_low[axis] + (at[axis] - low[axis]) * scale[axis] for axis in range(2)]
    return ndimage.map_coordinates(labels, source, order=0, mode="constant")
