"""Fitting maps of structures to a few pictures, and choosing by those left out how each structure is answered."""

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

OFFSETS = (0.0, 0.5, 1.0, 1.5)  # of log-odds: what is thin is never likely, and must be found all the same
FOLDS = 3
BATCH = 4  # pictures encoded together, which takes half the time
MOST_TRIED = 6  # slices that ways are compared on
MARGIN = 0.01  # of Dice, below which a comparison of offsets says nothing


def samples_of(
    predictor: MapPredictor,
    pictures: Sequence[Picture],
    structures: Sequence[int],
    pixels: int,
    seed: int,
    report: Report = silent,
) -> list[PixelSamples]:
    """Pixels of each picture to fit on, `pixels` in all."""
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
    """A classifier that learned from the pictures of some slices, and the log-odds (K, g, g) that it has for those of
    the `wanted` pictures that are among them, each left out, by number.

    In turn a fold of the slices is left out of the first stage. The second stage learns from what the first says of
    pictures it did not see; left out again, the slices tell how each structure is best answered.
    """
    chosen = [number for number, picture in enumerate(pictures) if picture.source in sources]
    # A single slice is told by its copies.
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
    """The numbers of up to `most` slices, evenly spread, that ways are compared on."""
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
    """Maps with the offsets and ways that left out pictures (number, log-odds) would have been answered best with."""
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
    """(2, K): pixels in answer and truth, and the sum of the pixels of both."""
    truth = shares_of(labels, tuple(structures), logits.shape[-1])[1:].to(logits.device) > 0.5
    found = logits > 0
    both, total = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return torch.stack([both, total]).cpu().numpy()


def _best(overlaps: NDArray[np.float64], margin: float = 0.0) -> list[int]:
    """The choice with the largest Dice for each structure, from overlaps (choices, 2, K); the first one where it is
    worse by no more than the margin.
    """
    dice = 2 * overlaps[:, 0] / np.maximum(overlaps[:, 1], 1)
    dice[0] += margin
    return [int(row) for row in dice.argmax(0)]
