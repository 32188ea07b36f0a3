"""The in-context peer: what must hold whatever its weights, and that it learns from supports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.benchmarks import cross_convolution as module
from FewShotSegLib.benchmarks.cross_convolution import (
    CrossNetwork,
    Task,
    drawn_shapes,
    episode,
    predicted,
    squared,
    task_of,
    train,
    unsquared,
)
from FewShotSegLib.progress import silent
from Testing.conftest import dice


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 32)


def a_network() -> CrossNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CrossNetwork((4, 6, 8)).eval()


def test_the_order_of_supports_does_not_matter_and_a_second_copy_of_each_changes_nothing() -> None:
    network = a_network()
    generator = torch.Generator().manual_seed(1)
    image, support = (torch.rand(1, 1, 32, 32, generator=generator), torch.rand(1, 3, 2, 32, 32, generator=generator))
    with torch.inference_mode():
        answer = network(image, support)
        turned = network(image, support[:, [2, 0, 1]])
        twice = network(image, torch.cat([support, support], 1))
        fewer = network(image, support[:, :1])
    assert answer.shape == (1, 32, 32)
    torch.testing.assert_close(turned, answer)
    torch.testing.assert_close(twice, answer)
    assert not torch.allclose(fewer, answer, atol=1e-4)


def test_a_cross_block_is_the_mean_over_pairs_of_query_and_support() -> None:
    block = module.CrossBlock(2, 3)
    query, support = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 2, 8, 8)
    met = [torch.nn.functional.leaky_relu(block.cross(torch.cat([query, support[:, n]], 1))) for n in range(2)]
    expected = torch.nn.functional.leaky_relu(block.of_query((met[0] + met[1]) / 2))
    answer, supports = block(query, support)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(supports[:, 1], torch.nn.functional.leaky_relu(block.of_support(met[1])))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (20, 20)])
def test_a_slice_goes_into_the_square_and_its_answer_comes_back_in_its_place(
    shape: tuple[int, int], small: None
) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 1
    square = squared(mask, 0)
    assert square.shape == (32, 32)
    back = unsquared(square.astype(np.float32), shape) > 0.5
    assert dice(back, mask > 0) > 0.85


def test_a_task_has_the_slices_that_show_the_structure(small: None) -> None:
    images = [np.full((32, 32), number / 4) for number in range(4)]
    masks = [np.zeros((32, 32), bool) for _ in range(4)]
    masks[1][4:20, 4:20] = masks[3][8:12, 8:12] = True
    masks[2][0, 0] = True  # too small
    task = task_of(images, masks)
    assert task is not None
    assert task.images[:, 0, 0].tolist() == [0.25, 0.75]
    assert task_of(images[:2], masks[:2]) is None


def test_an_episode_shows_other_slices_than_the_one_it_asks_about(small: None, an_rng: np.random.Generator) -> None:
    images = np.stack([np.full((32, 32), number / 10, np.float32) for number in range(1, 6)])
    task = Task(images, images > 0)
    for _ in range(20):
        image, mask, support = episode(task, an_rng)
        assert (image.shape, mask.shape) == ((1, 1, 32, 32), (1, 32, 32))
        shown = support[0, :, 0, 0, 0].tolist()
        assert float(image[0, 0, 0, 0]) not in shown
        assert 1 <= len(shown) == len(set(shown)) <= 4


def test_drawn_shapes_are_one_structure_on_several_slices(small: None, an_rng: np.random.Generator) -> None:
    task = drawn_shapes(an_rng, 4)
    assert task.images.shape == task.masks.shape == (4, 32, 32)
    assert task.masks.any()
    means = [float(i[m].mean()) for i, m in zip(task.images, task.masks, strict=True) if m.sum() > 20]
    assert np.ptp(means) < 0.1  # one tissue has one grey


def test_training_learns_what_the_supports_show(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two squares is meant is told by the supports alone."""
    monkeypatch.setattr(module, "SHAPES", 0.0)
    rng = np.random.default_rng(0)
    images = np.zeros((6, 32, 32), np.float32)
    bright, dark = np.zeros((2, 6, 32, 32), bool)
    for number in range(6):
        row = int(rng.integers(2, 18))
        bright[number, row : row + 10, 3:13] = dark[number, row : row + 10, 19:29] = True
        images[number] = 0.9 * bright[number] + 0.4 * dark[number]
    tasks = [Task(images, bright), Task(images, dark)]
    network = train(tasks, seed=0, seconds=60.0, report=silent, steps=60)
    for own, other in ((bright, dark), (dark, bright)):
        found = predicted(network, images[0], Task(images[1:], own[1:])) > 0
        assert (found & own[0]).sum() > 4 * (found & other[0]).sum()
        assert (found & own[0]).sum() > 0.2 * own[0].sum()
