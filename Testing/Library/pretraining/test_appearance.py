"""Looks of scenes: the same from the same generator, in range, and true to the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.pretraining import appearance
from FewShotSegLib.pretraining.anatomy import Scene, draw_scene
from FewShotSegLib.pretraining.appearance import render

SIZE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed), SIZE) for seed in range(25)]


def test_a_look_depends_on_its_generator_only(scenes: list[Scene]) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for scene in scenes[:5]:
        looks = [render(scene, np.random.default_rng(s)) for s in (3, 3, 4)]
        np.testing.assert_array_equal(looks[0], looks[1])
        assert not np.array_equal(looks[0], looks[2])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_images_use_the_range_from_0_to_1(scenes: list[Scene]) -> None:
    images = [render(scene, np.random.default_rng(seed)) for seed, scene in enumerate(scenes)]
    for image in images:
        assert image.shape == (SIZE, SIZE)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert np.ptp(image) > 0.5


def test_an_image_of_one_tissue_is_finite_too() -> None:
    for seed in range(5):
        image = render(Scene(np.zeros((SIZE, SIZE), np.uint8), (0,), (0,)), np.random.default_rng(seed))
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1


def test_labels_show_in_the_image() -> None:
    """Pixels of one structure resemble each other more than pixels of different ones, in most looks."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    shares = []
    for seed in range(20):
        image = render(Scene(labels, (0, 0, 0), (0, 1, 2)), np.random.default_rng(seed))
        within = np.mean([image[:, part].var() for part in (slice(2, 18), slice(22, 38), slice(42, 62))])
        shares.append(within / image.var())
    assert np.median(shares) < 0.6


def test_labels_of_one_tissue_have_one_grey_value() -> None:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    for seed in range(10):
        means = appearance._means(Scene(labels, (0, 0, 0), (0, 1, 1)), np.random.default_rng(seed))
        assert means[1] == means[2] != means[0]


@pytest.mark.parametrize("seed", range(12))
def test_coarse_pixels_are_constant_or_interpolated_along_one_axis_only(seed: int) -> None:
    """A ramp survives blurring and resampling but for the steps of coarse pixels, along either axis."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    image = appearance._blurred(x + 2 * y, np.random.default_rng(seed))
    inside = (slice(8, -8), slice(8, -8))
    assert np.abs(image - (x + 2 * y))[inside].max() < 2 * 4 + 0.5
    exact = [np.abs(np.diff(image, axis=axis)[inside] - step).max() < 0.05 for axis, step in ((0, 2), (1, 1))]
    assert any(exact)


def test_ghosts_are_faint_copies_at_one_distance_to_both_sides() -> None:
    image = np.zeros((SIZE, SIZE), np.float32)
    image[20, 30] = 1
    for seed in range(6):
        found = appearance._ghosted(image, np.random.default_rng(seed)) - image
        ghosts = np.argwhere(found > 0)
        assert len(ghosts) == 2
        assert ((ghosts == (20, 30)).sum(1) == 1).all()
        assert 0.03 <= found.max() <= 0.2
