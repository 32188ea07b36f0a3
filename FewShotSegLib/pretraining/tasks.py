"""Prompted segmentation tasks from random scenes: an image, several target regions, and an initial click or box for
each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.pretraining.anatomy import Scene, draw_scene
from FewShotSegLib.pretraining.appearance import render
from FewShotSegLib.sam.clicks import first_prompt

KINDS, SHARES = ("click", "box", "both"), (0.65, 0.25, 0.1)


@dataclass(frozen=True, eq=False)
class Task:
    """image (S, S) float32 in [0, 1]; targets (P, S/2, S/2) float32, the coverage fraction of each mask pixel;
    coords (P, 3, 2) and labels (P, 3) of the initial prompt.
    """

    image: NDArray[np.float32]
    targets: NDArray[np.float32]
    coords: NDArray[np.float32]
    labels: NDArray[np.int64]


def draw_task(rng: np.random.Generator, size: int, prompts: int) -> Task:
    """A scene with `prompts` targets of at least a few pixels; redrawn until there are enough."""
    while True:
        scene = draw_scene(rng, size)
        targets = list(_targets(scene, rng, prompts))
        if targets:
            break
    while len(targets) < prompts:
        targets.append(targets[int(rng.integers(len(targets)))])
    drawn = [first_prompt(t, str(rng.choice(KINDS, p=SHARES)), rng, central=0.5) for t in targets]
    return Task(
        render(scene, rng),
        np.stack([_halved(t) for t in targets]),
        np.stack([coords for coords, _ in drawn]),
        np.stack([labels for _, labels in drawn]),
    )


def _halved(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean over 2 x 2 pixels, to the resolution of the output masks."""
    height, width = mask.shape
    return mask.reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)


def _targets(scene: Scene, rng: np.random.Generator, count: int) -> Iterator[NDArray[np.bool_]]:
    present = [int(v) for v in np.unique(scene.labels) if v > 0]
    found = 0
    for label in rng.permutation(present):
        region = scene.region(int(label), with_children=bool(rng.random() < 0.6))
        components, number = ndimage.label(region)
        if number > 1 and rng.random() < 0.8:  # one click means the component under it, not all of its kind
            sizes = np.bincount(components.ravel())[1:]
            region = components == 1 + int(rng.choice(number, p=sizes / sizes.sum()))
        if np.count_nonzero(region) >= 24:
            yield region
            found += 1
        if found == count:
            return
