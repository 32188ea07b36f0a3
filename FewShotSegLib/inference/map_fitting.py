"""Fitting structure maps to a few images, and choosing the decoding of each structure on held-out ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.progress import Progress, Report, silent

from .pictures import Picture
from .pixel_classifier import (
    ContextClassifier,
    PixelClassifier,
    PixelSamples,
    context_of,
    drawn_pixels,
    shares_of,
    together,
)
from .structure_maps import WAYS, MapPredictor, StructureMaps, maps_of

OFFSETS = (0.0, 0.5, 1.0, 1.5)  # of log-odds: thin structures never reach a high probability, but must still be found
FOLDS = 3
BATCH = 4  # images encoded together, which takes half the time
MOST_TRIED = 6  # slices for comparing ways
MARGIN = 0.01  # in Dice: smaller differences between offsets are not meaningful


def samples_of(
    predictor: MapPredictor,
    pictures: Sequence[Picture],
    structures: Sequence[int],
    pixels: int,
    seed: int,
    report: Report = silent,
) -> list[PixelSamples]:
    """Training pixels of each image, `pixels` in all."""
    most = max(pixels // len(pictures), 1)
    samples = []
    for number, picture in enumerate(pictures):
        report(Progress(number, len(pictures), f"exemplar picture {number + 1} of {len(pictures)}"))
        if number % BATCH == 0:
            embeddings = predictor.encode([other.image for other in pictures[number : number + BATCH]])
        maps = maps_of(embeddings[number % BATCH])
        rng = np.random.default_rng([seed, number])
        samples.append(drawn_pixels(maps, picture.labels, tuple(structures), picture.content, most, rng))
    return samples


def fitted_classifier(
    predictor: MapPredictor,
    pictures: Sequence[Picture],
    samples: Sequence[PixelSamples],
    sources: Sequence[int],
    wanted: Collection[int],
) -> tuple[ContextClassifier, dict[int, Tensor]]:
    """A classifier fitted to the images of some slices, and the cross-fitted log-odds (K, g, g) of those of the
    `wanted` images that are among them, each held out, by index.

    The first stage is fitted with each fold of the slices held out in turn. The second stage is trained on the first
    stage's held-out predictions; held out again, the slices decide how each structure is best decoded.
    """
    chosen = [number for number, picture in enumerate(pictures) if picture.source in sources]
    # A single slice is cross-fitted over its copies.
    parts = {n: sources.index(pictures[n].source) if len(sources) > 1 else n for n in chosen}
    count = min(max(parts.values()) + 1, FOLDS)
    folds = [[n for n in chosen if parts[n] % count == fold] for fold in range(count)]
    kept = [[n for n in chosen if count == 1 or parts[n] % count != fold] for fold in range(count)]
    firsts = [PixelClassifier.fitted(together([samples[n] for n in known], every=2)) for known in kept]
    contexts: dict[int, Tensor] = {}
    whole: dict[int, Tensor] = {}
    for first, fold in zip(firsts, folds, strict=True):
        for number in fold:
            context = context_of(first.log_odds(maps_of(predictor.encode([pictures[number].image])[0])))
            contexts[number] = context.flatten(1)[:, samples[number].where].T
            if number in wanted:
                whole[number] = context
    seconds = [
        PixelClassifier.fitted(together([samples[n] for n in known]), torch.cat([contexts[n] for n in known]))
        for known in kept
    ]
    odds = {}
    for second, fold in zip(seconds, folds, strict=True):
        for number in fold:
            if number in whole:
                maps = maps_of(predictor.encode([pictures[number].image])[0])
                odds[number] = second.log_odds(maps, whole[number])
    return ContextClassifier(firsts, seconds), odds


def tried(pictures: Sequence[Picture], sources: Sequence[int], most: int = MOST_TRIED) -> list[int]:
    """The indices of up to `most` slices, evenly spread, on which ways are compared."""
    places = set(np.linspace(0, len(sources) - 1, most).round().astype(int).tolist())
    return [
        n for n, p in enumerate(pictures) if p.original and p.source in sources and sources.index(p.source) in places
    ]


def decided(
    predictor: MapPredictor,
    pictures: Sequence[Picture],
    structures: Sequence[int],
    classifiers: Sequence[ContextClassifier],
    left_out: Sequence[tuple[int, Tensor]],
) -> StructureMaps:
    """Maps with the offsets and ways that maximize Dice on held-out images (index, log-odds)."""
    overlaps = np.zeros((len(OFFSETS), 2, len(structures)))
    for number, found in left_out:
        labels = pictures[number].labels
        overlaps += np.stack([_overlap(found + offset, labels, structures) for offset in OFFSETS])
    offsets = torch.tensor([OFFSETS[row] for row in _best(overlaps, MARGIN)], device=predictor.device)
    overlaps = np.zeros((len(WAYS), 2, len(structures)))
    for number, found in left_out:
        embedding = predictor.encode([pictures[number].image])[0]
        moved = found + offsets[:, None, None]
        answers = (predictor.from_maps(embedding, moved, [way] * len(moved)) for way in WAYS)
        overlaps += np.stack([_overlap(answer, pictures[number].labels, structures) for answer in answers])
    ways = tuple(WAYS[row] for row in _best(overlaps))
    return StructureMaps(tuple(structures), tuple(classifiers), offsets, ways)


def _overlap(logits: Tensor, labels: NDArray[np.int32], structures: Sequence[int]) -> NDArray[np.int64]:
    """(2, K): pixels in the intersection of prediction and ground truth, and the sum of their areas."""
    truth = shares_of(labels, tuple(structures), logits.shape[-1])[1:].to(logits.device) > 0.5
    found = logits > 0
    both, total = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return torch.stack([both, total]).cpu().numpy()


def _best(overlaps: NDArray[np.float64], margin: float = 0.0) -> list[int]:
    """The choice with the largest Dice for each structure, from overlaps (choices, 2, K); the first choice if it is
    within the margin of the best.
    """
    dice = 2 * overlaps[:, 0] / np.maximum(overlaps[:, 1], 1)
    dice[0] += margin
    return [int(row) for row in dice.argmax(0)]
