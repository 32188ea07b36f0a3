"""Fitting maps of structures: what is left out, and what is chosen by it."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.inference.map_fitting import _best, fitted_classifier, samples_of, tried
from FewShotSegLib.inference.pictures import Picture, pictures_of
from FewShotSegLib.inference.structure_maps import MapPredictor, maps_of
from FewShotSegLib.sam.network import PromptableNetwork


def slices(count: int) -> list[Picture]:
    """A bright square on noise, elsewhere on each slice."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        image, labels = rng.uniform(0, 0.2, (64, 64)).astype(np.float32), np.zeros((64, 64), np.int32)
        at = 10 + 4 * number
        image[at : at + 20, at : at + 20] += 0.7
        labels[at : at + 20, at : at + 20] = 3
        found.append(Picture(image, labels, (64, 64), number, True))
    return found


def test_the_pictures_asked_for_are_answered_as_if_never_seen(a_tiny_sam: PromptableNetwork) -> None:
    predictor = MapPredictor(a_tiny_sam)
    pictures = pictures_of(slices(3), 6, 0)
    samples = samples_of(predictor, pictures, [3], 3000, 0)
    sources = [0, 1, 2]
    classifier, odds = fitted_classifier(predictor, pictures, samples, sources, range(len(pictures)))
    assert sorted(odds) == list(range(6))
    maps = maps_of(predictor.encode([pictures[0].image])[0])
    seen = classifier.log_odds(maps)
    truth = pictures[0].labels[::2, ::2] == 3
    assert (seen[0].numpy() > 0)[truth].mean() > 0.9
    # Two of three members of each stage have seen the picture: they are surer of it than the one that has not.
    assert seen[0].numpy()[truth].mean() > odds[0][0].numpy()[truth].mean()


def test_pictures_of_other_slices_teach_nothing(a_tiny_sam: PromptableNetwork) -> None:
    predictor = MapPredictor(a_tiny_sam)
    pictures = pictures_of(slices(3), 6, 0)
    samples = samples_of(predictor, pictures, [3], 3000, 0)
    alone, _ = fitted_classifier(predictor, pictures, samples, [0, 2], [])
    few = [picture for picture in pictures if picture.source != 1]
    kept = [sample for sample, picture in zip(samples, pictures, strict=True) if picture.source != 1]
    same, _ = fitted_classifier(predictor, few, kept, [0, 2], [])
    maps = maps_of(predictor.encode([pictures[2].image])[0])
    np.testing.assert_allclose(alone.log_odds(maps).numpy(), same.log_odds(maps).numpy(), atol=1e-6)


def test_ways_are_compared_on_a_few_slices_evenly_spread_and_on_no_copy() -> None:
    pictures = pictures_of(slices(3), 6, 0)
    assert tried(pictures, [0, 1, 2]) == [0, 2, 4]
    many = [Picture(p.image, p.labels, p.content, n, True) for n, p in enumerate(slices(1) * 20)]
    assert tried(many, list(range(20))) == [0, 4, 8, 11, 15, 19]


def test_the_way_with_the_largest_overlap_is_taken_for_each_structure() -> None:
    both = [[10, 40], [30, 20], [20, 20]]  # of three ways, for two structures
    total = [[100, 100], [100, 100], [100, 100]]
    assert _best(np.stack([both, total], axis=1).astype(float)) == [1, 0]
