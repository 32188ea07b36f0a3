"""Which slice to annotate next: the one with the highest predictive uncertainty of the adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.progress import Progress, Report, silent

from .predictor import Predictor

_NOTHING = 0.005  # fraction of the slice area: expected structure area whose uncertainty is weighted by half


@dataclass(frozen=True)
class Suggestion:
    """The slice to annotate, and the uncertainty of every evaluated slice, {index: 0 (certain) to 1}."""

    index: int
    doubts: dict[int, float]


def suggest_slice(
    volume: Volume,
    predictor: Predictor,
    axis: int,
    *,
    known: Collection[int] = (),
    intensity: IntensitySpec | None = None,
    most: int = 48,
    report: Report = silent,
) -> Suggestion:
    """Evaluate up to `most` slices along the array axis, evenly spread, and return the one with the highest
    uncertainty.

    Slices next to the `known` ones resemble them and add little; they are excluded as long as others remain.
    """
    if predictor.adapter is None:
        raise InputError("A slice can be suggested only with an adapter; adapt first.")
    if not predictor.adapter.structures:
        raise InputError("The adapter has no named structures, so it cannot suggest a slice; choose one that has them.")
    intensity = intensity or predictor.adapter.intensity
    structures = sorted(predictor.adapter.structures)
    reader = SliceReader(volume, intensity, predictor.image_size, axis)
    indices = _candidates(volume.shape[axis], known, most)
    doubts = {}
    with predictor.ready():
        for number, index in enumerate(indices):
            embedding = predictor.encode([reader.square(index)])[0]
            logits = predictor.on_voxels(predictor.decode_structures(embedding, structures), reader.frame(index))
            doubts[index] = doubt(logits)
            report(Progress(number + 1, len(indices), f"slice {index}"))
    return Suggestion(max(doubts, key=lambda index: doubts[index]), doubts)


def doubt(logits: NDArray[np.float32]) -> float:
    """Uncertainty: mean over structures of the expected disagreement of two samples from the probabilities (N, H, W).

    With p the probability of a voxel, 1 - sum(p^2) / sum(p) is one minus the Dice of two independent samples. A
    structure that is nearly absent is down-weighted by its expected size.
    """
    p = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -30, 30)))
    disagreed = (p * (1 - p)).sum(axis=(1, 2))
    return float(np.mean(disagreed / (p.sum(axis=(1, 2)) + _NOTHING * p[0].size)))


def _candidates(count: int, known: Collection[int], most: int) -> list[int]:
    for distance in (1, 0):
        left = [index for index in range(count) if all(abs(index - other) > distance for other in known)]
        if left:
            chosen = np.linspace(0, len(left) - 1, min(most, len(left))).round().astype(int)
            return [left[i] for i in chosen]
    raise InputError("Every slice of this volume is annotated already; take another volume.")
