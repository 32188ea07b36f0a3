"""Training of 3-D networks on cases, and what they predict."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid, labels_onto_grid
from FewShotSegLib.inference.volume_network import on_grid
from FewShotSegLib.methods.uda import networks as module
from FewShotSegLib.methods.uda.networks import ClassRecipe, class_network, predicted, train_classes
from FewShotSegLib.networks.weights import weights_of
from FewShotSegLib.training.patches import Case, PatchRecipe, PatchSource
from Testing.conftest import DISC, SQUARE, Listener, dice, discs, drawing_by_threads

GRID = Grid((1.0, 1.0, 4.0), (4, 32, 32), "LPS")  # that of the discs
FEW = ClassRecipe(steps=2, batch_size=2)


def test_edges_of_one_kind_teach_about_the_other() -> None:
    """In anatomy space, without any translation: a network that saw bright discs only finds dark ones. The working grid
    is twice as coarse as the voxels, as edges are computed on it.
    """
    grid = Grid((2.0, 2.0, 4.0), (4, 48, 48), "LPS")
    bright = [discs(np.random.default_rng(seed), (6, 128, 128)) for seed in range(3)]
    window = IntensitySpec("window", -300, 300)

    def edges(volume: Volume) -> np.ndarray:
        return on_grid(volume, window, grid, AnatomySpace("2d"), edges="grid")

    cases = [
        Case(edges(volume), labels_onto_grid(labels, volume.affine, grid), None, grid.spacing_mm, "")
        for volume, labels in bright
    ]
    assert cases[0].image.shape == (6, 64, 64)
    recipe = ClassRecipe(steps=120, batch_size=2, learning_rate=4e-3, patches=PatchRecipe().unshaded())
    weights, _ = train_classes(cases, [1, 1, 1], grid, ["disc", "square"], recipe, seed=0)
    volume, labels = discs(np.random.default_rng(9), (6, 128, 128))
    dark = volume.like((-volume.array.clip(-300, 300)).astype(np.int16))
    found, of_bright = (predicted(weights, edges(image), grid, 3, recipe).labels for image in (dark, volume))
    truth = labels_onto_grid(labels, volume.affine, grid)
    for value in (DISC, SQUARE):
        assert dice(found == value, truth == value) > 0.3
        assert dice(found == value, of_bright == value) > 0.95


def cases(*levels: float) -> list[Case]:
    """Cases that are told apart by their grey."""
    mask = np.zeros((6, 40, 40), np.uint8)
    mask[2:4, 10:20, 10:20] = 1
    return [Case(np.full(mask.shape, level, np.float32), mask, None, GRID.spacing_mm, f"{level}") for level in levels]


def trained(given: list[Case], weights: list[float], seed: int = 0, recipe: ClassRecipe = FEW, **more: Any):
    return train_classes(given, weights, GRID, ["disc"], recipe, seed=seed, **more)[0]


def test_the_same_seed_gives_the_same_weights_and_every_step_is_reported(a_listener: Listener) -> None:
    one = trained(cases(0.2, 0.8), [1, 1], report=a_listener, message="teacher 1")
    same, other = trained(cases(0.2, 0.8), [1, 1]), trained(cases(0.2, 0.8), [1, 1], seed=1)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)
    assert [(p.step, p.total, p.message, p.can_stop) for p in a_listener.heard] == [
        (1, 2, "teacher 1", True),
        (2, 2, "teacher 1", True),
    ]


def test_patches_drawn_ahead_by_threads_as_on_a_gpu_teach_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = trained(cases(0.2, 0.8), [1, 1])
    threads = drawing_by_threads(monkeypatch, module, PatchSource, "draw")
    ahead = trained(cases(0.2, 0.8), [1, 1])
    assert threading.get_ident() not in threads != set()
    assert all(np.array_equal(ahead[name], value) for name, value in at_once.items())


def test_cases_are_drawn_as_often_as_their_weights_say() -> None:
    alone = trained(cases(0.2), [1])
    assert all(np.array_equal(value, alone[name]) for name, value in trained(cases(0.2, 0.8), [3, 0]).items())
    assert not all(np.array_equal(value, alone[name]) for name, value in trained(cases(0.2, 0.8), [0, 3]).items())


def test_training_goes_on_from_given_weights() -> None:
    start = weights_of(class_network(GRID, 2, FEW, seed=99))
    still = ClassRecipe(steps=1, batch_size=1, learning_rate=1e-9, weight_decay=0.0)
    moved = trained(cases(0.2), [1], recipe=still, start=start)
    assert all(np.allclose(moved[name], value, atol=1e-6) for name, value in start.items())


def test_labels_are_those_of_the_highest_logit_and_doubt_is_what_others_share(
    an_rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "patch_precision", lambda device: None)  # logits of fresh weights are nearly equal
    weights = weights_of(class_network(GRID, 3, FEW, seed=5))
    image = an_rng.random((4, 32, 32), np.float32)
    network = class_network(GRID, 3, FEW, seed=5).eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(image)[None, None])[0]  # one window covers it
    expected = logits.argmax(0)
    found = predicted(weights, image, GRID, 3, FEW)
    assert np.array_equal(found.labels, expected)
    assert found.labels.dtype == np.uint8
    doubts = 1 - torch.softmax(logits, 0).max(0).values
    assert 0 < float((expected > 0).float().mean()) < 1
    of_each = [float(doubts[expected == label].mean()) for label in (1, 2)]
    assert found.doubt == pytest.approx(np.mean(of_each), abs=1e-5)


def test_a_structure_that_is_not_found_is_doubted_entirely_and_none_outvotes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = np.zeros((4, 2, 8, 8), np.float32)
    logits[1, :, :, :7] = 9.0  # large and certain
    logits[2, :, 0, 7] = 0.5  # small and doubtful; of the third structure there is nothing
    monkeypatch.setattr(module, "predict", lambda *given, **more: logits)
    weights = weights_of(class_network(GRID, 4, FEW))
    found = predicted(weights, np.zeros((2, 8, 8), np.float32), GRID, 4, FEW)
    small = 1 - np.exp(0.5) / (np.exp(0.5) + 3)
    large = 1 - np.exp(9) / (np.exp(9) + 3)
    assert found.doubt == pytest.approx((large + small + 1) / 3, abs=1e-6)
    logits[:] = 0
    assert predicted(weights, np.zeros((2, 8, 8), np.float32), GRID, 4, FEW).doubt == 1
