"""First and last slice of a structure.

A slice-by-slice model also finds something similar to a structure beyond its ends: bowel for spleen, muscle for liver.
Such false positives are separated by a gap, or a waist, in the amount found per slice. Which side of the gap is right
is inferred from the structures that annotated slices show together: the level at which all of them are found at once.
For a structure annotated alone, the side with the most is chosen. If the masks on both sides of a waist overlap, they
are the same structure, poorly found in between, such as a vessel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

# Tuned jointly on real cases (see BENCHMARKS.md); nearby values give nearly the same results.
SMOOTHING = (0.15, 0.7, 0.15)
WAIST = 0.3  # fraction of the weight at the level below which a slice is a waist
RISE = 1.2  # relative increase outwards from the waist that indicates another structure
SMALLEST_RISE = 0.02  # minimum rise, as a fraction of the weight at the level
SAME = 0.5  # IoU of the masks on both sides of a waist above which they are one structure
LOOK_AHEAD = 5  # slices beyond the rise, of which the one with the largest weight is compared
ABSENT = 1e-3  # replaces zero in a geometric mean

Weights = NDArray[np.float64]


def slice_ranges(
    weights: Weights, together: Collection[Sequence[int]], iou: Callable[[int, int, int], float]
) -> list[tuple[int, int]]:
    """First and last slice of each of K structures, from the amount of each found on n slices: weights (K, n), at least
    0, such as the sums of positive logits. `together`: which structures (rows) an annotated slice showed, one entry
    per distinct set. `iou` is that of a structure's masks on two slices, by row and slices. The range of a structure
    that was not found is not restricted.
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
    """The structures that occur with others in some entry; each entry lists those of an annotated slice."""
    return {row for rows in together if len(rows) > 1 for row in rows}


def _levels(weights: Weights, together: Collection[Sequence[int]]) -> list[int]:
    """For each structure, the slice with most of it and of the structures annotated along with it."""
    shares = weights / np.maximum(weights.max(1, keepdims=True), np.finfo(float).tiny)
    likeness = np.zeros_like(shares)
    for rows in together:
        likeness[list(rows)] += np.exp(np.log(shares[list(rows)] + ABSENT).mean(0))
    return [int(level) for level in (weights * likeness**2).argmax(1)]


def _heaviest_range(weights: Weights, iou: Callable[[int, int], float]) -> tuple[int, int]:
    """The range around a peak with the largest total weight."""
    before, after = np.pad(weights, 1)[:-2], np.pad(weights, 1)[2:]
    peaks = np.flatnonzero((weights > 0) & (weights >= before) & (weights >= after))
    ranges = [(peak, _range_around(weights, peak, iou)) for peak in peaks.tolist()]
    # The range of a low peak next to a high one covers everything: relative to it, waists must be narrower.
    own = [(first, last) for peak, (first, last) in ranges if weights[peak] == weights[first : last + 1].max()]
    every = (0, len(weights) - 1)
    return max(own, key=lambda ends: float(weights[ends[0] : ends[1] + 1].sum()), default=every)


def _range_around(weights: Weights, level: int, iou: Callable[[int, int], float]) -> tuple[int, int]:
    """The range from the level outwards to the first waist, or to the ends."""
    below = _reach(weights[level::-1], lambda one, other: iou(level - one, level - other))
    above = _reach(weights[level:], lambda one, other: iou(level + one, level + other))
    return level - below, level + above


def _reach(weights: Weights, iou: Callable[[int, int], float]) -> int:
    """How many slices outwards from the first one belong to the structure."""
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
