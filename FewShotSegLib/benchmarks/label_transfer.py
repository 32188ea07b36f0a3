"""The simplest baseline for annotated slices: copy the labels of the most similar one.

Slices are compared with their bodies aligned: both are shifted and scaled to the bounding box of their bright area. Any
method that uses exemplars has to beat this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

SIDE = 64  # pixels per side of the frame in which slices are compared
BRIGHT = 0.15  # intensity threshold of the body, in [0, 1]


def body_box(image: Array) -> tuple[Array, Array]:
    """First and last row and column (2,) of the bright area, or of the whole slice if there is none."""
    body = ndimage.binary_opening(image > BRIGHT, iterations=2)
    if not body.any():
        body = np.ones(image.shape, bool)
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    return np.array([rows[0], columns[0]], float), np.array([rows[-1], columns[-1]], float)


def _framed(image: Array) -> Array:
    """The body of a slice in a square of SIDE, standardized to mean 0 and SD 1."""
    low, high = body_box(image)
    at = np.meshgrid(*(np.linspace(a, b, SIDE) for a, b in zip(low, high, strict=True)), indexing="ij")
    seen = ndimage.map_coordinates(image, at, order=1)
    return (seen - seen.mean()) / (seen.std() + 1e-6)


def transferred(image: Array, supports: Sequence[tuple[Array, Array]]) -> Array:
    """Labels (H, W) for a slice: those of the support (image, labels) whose body correlates best, mapped to its body.

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
