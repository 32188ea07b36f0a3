"""Where along the slices a structure begins and ends.

A model that answers slice by slice also finds something like a structure beyond its ends: bowel for spleen, muscle for
liver. Such finds lie behind a gap, or a waist, in how much is found from slice to slice. Which side of the gap is meant
is told by what the annotated slices show together: the level at which all of that is found at once. Of a structure that
they show alone, the side with most is meant. Where the masks on both sides of a waist lie on one another, it is the
same structure, poorly found in between, such as a vessel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

# Chosen on real cases together (BENCHMARKS.md says which); what lies near gives nearly the same.
SMOOTHING = (0.15, 0.7, 0.15)
WAIST = 0.3  # of the weight at the level: a waist is narrower than this
RISE = 1.2  # from the waist outwards, from which what is found is something else
SMALLEST_RISE = 0.02  # of the weight at the level
SAME = 0.5  # IoU of the masks on both sides of a waist, from which they are of one structure
LOOK_AHEAD = 5  # slices from the rise on, of which the one with most is compared
ABSENT = 1e-3  # stands for nothing in a geometric mean

Weights = NDArray[np.float64]


def slice_ranges(
    weights: Weights, together: Collection[Sequence[int]], iou: Callable[[int, int, int], float]
) -> list[tuple[int, int]]:
    """First and last slice of each of K structures, from how much of each was found on n slices: weights (K, n), at
    least 0, such as the sums of its positive logits. `together`: which of the structures (rows) an annotated slice
    showed, one entry for each different set. `iou` is that of a structure's masks on two slices, by row and slices.
    Nothing is cut of a structure that was not found.
    """
    if weights.shape[1] == 0:
        raise ValueError("There are no slices.")
    smooth = np.stack([np.convolve(row, SMOOTHING, "same") for row in np.pad(weights, ((0, 0), (1, 1)))])[:, 1:-1]
    accompanied = shown_with_others(together)
    ranges = []
    for number, (row, level) in enumerate(zip(smooth, _levels(smooth, together), strict=True)):
        same = functools.partial(iou, number)
        ranges.append(_range_around(row, level, same) if number in accompanied else _heaviest_range(row, same))
    return ranges


def shown_with_others(together: Collection[Sequence[int]]) -> set[int]:
    """Of structures that annotated slices show, one set for each entry, those that some slice shows beside others."""
    return {row for rows in together if len(rows) > 1 for row in rows}


def _levels(weights: Weights, together: Collection[Sequence[int]]) -> list[int]:
    """The slice of each structure where most of it is found, and of what annotated slices show along with it."""
    shares = weights / np.maximum(weights.max(1, keepdims=True), np.finfo(float).tiny)
    likeness = np.zeros_like(shares)
    for rows in together:
        likeness[list(rows)] += np.exp(np.log(shares[list(rows)] + ABSENT).mean(0))
    return [int(level) for level in (weights * likeness**2).argmax(1)]


def _heaviest_range(weights: Weights, iou: Callable[[int, int], float]) -> tuple[int, int]:
    """Of the ranges around the peaks, the one that weighs most."""
    before, after = np.pad(weights, 1)[:-2], np.pad(weights, 1)[2:]
    peaks = np.flatnonzero((weights > 0) & (weights >= before) & (weights >= after))
    ranges = [(peak, _range_around(weights, peak, iou)) for peak in peaks.tolist()]
    # A low peak beside a high one reaches over everything: its own waists are narrower.
    own = [(first, last) for peak, (first, last) in ranges if weights[peak] == weights[first : last + 1].max()]
    every = (0, len(weights) - 1)
    return max(own, key=lambda ends: float(weights[ends[0] : ends[1] + 1].sum()), default=every)


def _range_around(weights: Weights, level: int, iou: Callable[[int, int], float]) -> tuple[int, int]:
    """From the level outwards to the first waist, or to the ends."""
    below = _reach(weights[level::-1], lambda one, other: iou(level - one, level - other))
    above = _reach(weights[level:], lambda one, other: iou(level + one, level + other))
    return level - below, level + above


def _reach(weights: Weights, iou: Callable[[int, int], float]) -> int:
    """How many slices outwards from the first one belong to it."""
    least = 0
    for index, weight in enumerate(weights):
        if weight <= weights[least]:
            least = index
        elif weights[least] < WAIST * weights[0] and weight > RISE * weights[least] + SMALLEST_RISE * weights[0]:
            inner = int(np.flatnonzero(weights[: least + 1] >= WAIST * weights[0])[-1])
            outer = index + int(np.argmax(weights[index : index + LOOK_AHEAD]))
            if iou(inner, outer) < SAME:
                return least
            least = outer
    return len(weights) - 1
