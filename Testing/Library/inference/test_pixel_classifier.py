"""Pixels, what is drawn of them, and the regression against a general solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from FewShotSegLib.inference.pixel_classifier import (
    PixelClassifier,
    drawn_pixels,
    grid_of,
    pixel_maps,
    shares_of,
    softmax_regression,
    together,
)
from FewShotSegLib.sam.network import Embedding


def an_embedding(size: int = 64) -> Embedding:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, size // 16), (4, size // 8), (2, size // 2)]
    features, *skips = (torch.randn(1, c, n, n, generator=generator) for c, n in shapes)
    return Embedding(features, tuple(skips))


def a_body(top: int, left: int, height: int, width: int) -> np.ndarray:
    image = np.zeros((64, 64), np.float32)
    image[top : top + height, left : left + width] = 0.8
    return image


def test_maps_lie_on_one_grid_half_as_fine_as_the_slice() -> None:
    maps = pixel_maps(a_body(8, 8, 48, 48), an_embedding())
    assert grid_of(64) == 32
    assert maps.appearance.shape == (8 + 4 + 2 + 8, 32, 32)
    assert maps.position.shape == (2, 32, 32)


def test_intensities_are_means_and_deviations_around() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((64, 64)).astype(np.float32)
    maps = pixel_maps(image, an_embedding()).appearance[-8:]
    block = image[20:22, 30:32]
    assert maps[0, 10, 15] == pytest.approx(block.mean(), abs=1e-5)
    assert maps[4, 10, 15] == pytest.approx(block.std(), abs=1e-4)
    around = image[18:24, 28:34]  # three pixels of the grid
    assert maps[1, 10, 15] == pytest.approx(around.mean(), abs=1e-5)
    assert maps[5, 10, 15] == pytest.approx(around.std(), abs=1e-4)


def test_positions_follow_the_body_through_shift_and_size() -> None:
    large = pixel_maps(a_body(8, 8, 48, 48), an_embedding()).position
    small = pixel_maps(a_body(20, 32, 24, 24), an_embedding()).position
    middle_of_large, middle_of_small = large[:, 15:17, 15:17].mean((1, 2)), small[:, 15:17, 21:23].mean((1, 2))
    torch.testing.assert_close(middle_of_large, middle_of_small, atol=0.05, rtol=0)
    # A quarter of the body to the right of the middle.
    assert large[0, 16, 22] == pytest.approx(float(small[0, 16, 25]), abs=0.1)
    assert large[0, 16, 22] > 0.4  # x grows to the right


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)])
def test_an_image_without_contrast_has_finite_maps(image: np.ndarray) -> None:
    maps = pixel_maps(image, an_embedding())
    assert maps.appearance.isfinite().all()
    assert maps.position.isfinite().all()


def test_drawn_pixels_stand_for_all_pixels_of_the_content() -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[8:40, 8:40], labels[50:54, 10:14] = 1, 2
    maps = pixel_maps(a_body(4, 4, 52, 40), an_embedding())
    samples = drawn_pixels(maps, labels, (1, 2), (60, 48), 200, np.random.default_rng(0))
    assert len(samples.weights) <= 200
    assert samples.weights.sum() == pytest.approx(30 * 24)
    counted = (samples.shares * samples.weights[:, None]).sum(0)
    torch.testing.assert_close(counted, torch.tensor([30 * 24 - 256.0 - 4.0, 256.0, 4.0]))
    assert (samples.shares[:, 2] == 1).sum() == 4  # all of the small structure


def test_shares_are_what_is_covered() -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[0, 0], labels[2:4, 2:4] = 1, 5
    shares = shares_of(labels, (1, 5), 32)
    assert shares[:, 0, 0].tolist() == [0.75, 0.25, 0.0]
    assert shares[:, 1, 1].tolist() == [0.0, 0.0, 1.0]
    assert torch.equal(shares.sum(0), torch.ones(32, 32))


def some_regression(count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    inputs = torch.cat([inputs, torch.ones(count, 1)], 1)
    truth = torch.randn(5, 3, generator=generator)
    shares = F.softmax(inputs @ truth + 0.3 * torch.randn(count, 3, generator=generator), 1)
    weights = torch.rand(count, generator=generator)
    return inputs, shares, weights / weights.sum()


def test_the_regression_finds_what_a_general_solver_finds() -> None:
    inputs, shares, weights = some_regression()

    def loss(flat: np.ndarray) -> float:
        solution = torch.from_numpy(flat).view(5, 3)
        entropy = -(F.log_softmax(inputs.double() @ solution, 1) * shares).sum(1) @ weights.double()
        return float(entropy + 0.5 * 1e-2 * (solution[:-1] ** 2).sum())

    best = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    found = softmax_regression(inputs, shares, weights, penalty=1e-2, steps=50)
    assert loss(found.double().numpy().ravel()) == pytest.approx(best.fun, abs=1e-4)


def test_the_weight_of_a_pixel_is_how_often_it_counts() -> None:
    inputs, shares, _ = some_regression(60)
    twice = torch.cat([inputs, inputs[:10]]), torch.cat([shares, shares[:10]]), torch.full((70,), 1 / 70)
    weights = torch.ones(60)
    weights[:10] = 2
    torch.testing.assert_close(
        softmax_regression(inputs, shares, weights / 70), softmax_regression(*twice), atol=2e-2, rtol=2e-2
    )


def test_a_classifier_tells_bright_from_dark_and_left_from_right() -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[20:40, 10:25], labels[20:40, 40:55] = 1, 2  # alike, but for the side
    image = a_body(4, 4, 56, 56) * 0.5 + 0.4 * (labels > 0)
    maps = pixel_maps(image.astype(np.float32), an_embedding())
    drawn = [drawn_pixels(maps, labels, (1, 2), (64, 64), 600, np.random.default_rng(n)) for n in range(2)]
    found = PixelClassifier.fitted(together(drawn)).log_odds(maps) > 0
    truth = shares_of(labels, (1, 2), 32)[1:] > 0.5
    assert (found == truth).float().mean() > 0.98
