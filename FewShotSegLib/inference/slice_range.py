"""Where along the slices a structure begins and ends.

A model that answers slice by slice also finds something like a structure beyond its ends: bowel for spleen, muscle for
liver. Such finds lie behind a gap, or a waist, in how much is found from slice to slice. Which side of the gap is meant
is told by what the annotated slices show together: the level at which all of that is found at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

# Chosen on real cases together (BENCHMARKS.md says which); what lies near gives nearly the same.
SMOOTHING = (0.15, 0.7, 0.15)
WAIST = 0.3  # of the weight at the level: a waist is narrower than this
RISE = 1.2  # from the waist outwards, from which what is found is something else
SMALLEST_RISE = 0.02  # of the weight at the level
ABSENT = 1e-3  # stands for nothing in a geometric mean

Weights = NDArray[np.float64]


def slice_ranges(weights: Weights, together: Collection[Sequence[int]]) -> list[tuple[int, int]]:
    """First and last slice of each of K structures, from how much of each was found on n slices: weights (K, n), at
    least 0, such as the sums of its positive logits. `together`: which of the structures (rows) an annotated slice
    showed, one entry for each different set. Nothing is cut of a structure that was not found.
    """
    if weights.shape[1] == 0:
        raise ValueError("There are no slices.")
    smooth = np.stack([np.convolve(row, SMOOTHING, "same") for row in np.pad(weights, ((0, 0), (1, 1)))])[:, 1:-1]
    levels = _levels(smooth, together)
    return [_range_around(row, level) for row, level in zip(smooth, levels, strict=True)]


def _levels(weights: Weights, together: Collection[Sequence[int]]) -> list[int]:
    """The slice of each structure where most of it is found, and of what annotated slices show along with it."""
    shares = weights / np.maximum(weights.max(1, keepdims=True), np.finfo(float).tiny)
    likeness = np.zeros_like(shares)
    for rows in together:
        likeness[list(rows)] += np.exp(np.log(shares[list(rows)] + ABSENT).mean(0))
    return [int(level) for level in (weights * likeness**2).argmax(1)]


def _range_around(weights: NDArray[np.float64], level: int) -> tuple[int, int]:
    """From the level outwards to the first waist, or to the ends."""
    return level - _reach(weights[level::-1]), level + _reach(weights[level:])


def _reach(weights: NDArray[np.float64]) -> int:
    """How many slices outwards from the first one belong to it."""
    least = 0
    for index, weight in enumerate(weights):
        if weight <= weights[least]:
            least = index
        elif weights[least] < WAIST * weights[0] and weight > RISE * weights[least] + SMALLEST_RISE * weights[0]:
            return least
    return len(weights) - 1
