"""Prompted tasks cut from scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from FewShotSegLib.pretraining import tasks
from FewShotSegLib.pretraining.anatomy import Scene
from FewShotSegLib.pretraining.tasks import Task, draw_task
from FewShotSegLib.sam.network import BOX_CORNER_HIGH, BOX_CORNER_LOW, PADDING, POSITIVE

SIZE, PROMPTS = 64, 4


def halves(mask: np.ndarray) -> np.ndarray:
    return sum(mask[i::2, j::2] for i in (0, 1) for j in (0, 1)) / np.float32(4)


@pytest.fixture(scope="module")
def drawn() -> list[Task]:
    return [draw_task(np.random.default_rng(seed), SIZE, PROMPTS) for seed in range(15)]


def test_a_task_has_its_image_targets_and_first_prompts(drawn: list[Task]) -> None:
    for task in drawn:
        assert task.image.shape == (SIZE, SIZE)
        assert task.targets.shape == (PROMPTS, SIZE // 2, SIZE // 2)
        assert task.targets.dtype == np.float32
        assert task.coords.shape == (PROMPTS, 3, 2)
        assert task.labels.shape == (PROMPTS, 3)
        assert (task.targets.sum((1, 2)) >= 6).all()
        assert set(np.unique(task.targets)) <= {0, 0.25, 0.5, 0.75, 1}


def test_the_first_prompt_is_on_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[np.ndarray] = []
    original = tasks.first_prompt

    def watched(mask, *given, **named):  # type: ignore[no-untyped-def]
        masks.append(mask)
        return original(mask, *given, **named)

    monkeypatch.setattr(tasks, "first_prompt", watched)
    kinds = set()
    for seed in range(15):
        masks.clear()
        task = draw_task(np.random.default_rng(seed), SIZE, PROMPTS)
        for mask, target, coords, labels in zip(masks, task.targets, task.coords, task.labels, strict=True):
            np.testing.assert_array_equal(target, halves(mask))
            kinds.add(tuple(labels.tolist()))
            if labels[0] == POSITIVE:
                x, y = coords[0].astype(int)
                assert mask[y, x]
            if labels[1] == BOX_CORNER_LOW:
                rows, columns = np.nonzero(mask)
                tight = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]])
                assert (np.abs(coords[1:] - tight) <= 0.1 * np.ptp(tight, axis=0) + 1).all()
    assert kinds == {
        (POSITIVE, PADDING, PADDING),
        (PADDING, BOX_CORNER_LOW, BOX_CORNER_HIGH),
        (POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH),
    }


def test_a_task_depends_on_its_generator_only() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (draw_task(np.random.default_rng(9), SIZE, 3) for _ in range(2))
    for name in ("image", "targets", "coords", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_scene_with_few_structures_repeats_them_and_one_with_none_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = Scene(np.zeros((SIZE, SIZE), np.uint8), (0,), (0,))
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[10:30, 10:30] = 1
    scenes = iter([empty, empty, Scene(labels, (0, 0), (0, 1))])
    monkeypatch.setattr(tasks, "draw_scene", lambda rng, size: next(scenes))
    task = draw_task(np.random.default_rng(0), SIZE, 3)
    np.testing.assert_array_equal(task.targets, np.stack([halves(labels == 1)] * 3))


def test_a_click_on_one_of_several_bodies_mostly_means_that_body() -> None:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[4:20, 4:20] = labels[40:60, 40:60] = 1
    counts = [
        ndimage.label(next(tasks._targets(Scene(labels, (0, 0), (0, 1)), np.random.default_rng(seed), 1)))[1]
        for seed in range(60)
    ]
    assert 0.6 < np.mean(np.array(counts) == 1) < 0.95
