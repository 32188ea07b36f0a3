"""An in-context baseline: a network that gets a support set with the slice and was trained on other tasks.

After UniverSeg (Butoi et al. 2023, "UniverSeg: Universal Medical Image Segmentation"), our own code and far smaller:
query and support features interact in cross-convolutions, z_i = conv(u, v_i); the query continues with the mean of the
z_i, so that the order and number of the supports do not matter, and each support with its own. One structure at a time.
Trained on episodes of data sets on which it is not tested and, in between, of random shapes (Dice + cross-entropy).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from FewShotSegLib.progress import Report
from FewShotSegLib.training.fit import Schedule, fit, step_rng
from FewShotSegLib.training.losses import cross_entropy, soft_dice_loss

Array = NDArray[Any]

SIDE = 96
WIDTHS = (16, 24, 32, 48)
MOST_SUPPORTS = 8  # of an episode, in training
FEWEST_PIXELS = 12
SHAPES = 0.3  # fraction of episodes with random shapes


@dataclass(frozen=True, eq=False)
class Task:
    """Slices of one structure: images (N, S, S) float32 in [0, 1] and masks (N, S, S) bool."""

    images: Array
    masks: Array


class CrossBlock(nn.Module):
    """Query features (B, C, H, W) and support features (B, N, C, H, W) to D channels each."""

    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.cross = nn.Conv2d(2 * given, channels, 3, padding=1)
        self.of_query = nn.Conv2d(channels, channels, 3, padding=1)
        self.of_support = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        batch, count = support.shape[:2]
        pairs = torch.cat([query[:, None].expand(-1, count, -1, -1, -1), support], dim=2)
        met = F.leaky_relu(self.cross(pairs.flatten(0, 1)))
        support = F.leaky_relu(self.of_support(met)).unflatten(0, (batch, count))
        return F.leaky_relu(self.of_query(met.unflatten(0, (batch, count)).mean(1))), support


class CrossNetwork(nn.Module):
    """A U-Net of cross blocks: image (B, 1, S, S) and supports (B, N, 2, S, S), image and mask, to logits (B, S, S)."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = CrossBlock(2, widths[0])
        self.down = nn.ModuleList(CrossBlock(a, b) for a, b in pairwise(widths))
        backwards = list(reversed(widths))
        self.up = nn.ModuleList(CrossBlock(a + b, b) for a, b in pairwise(backwards))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor, support: Tensor) -> Tensor:
        query, support = self.stem(F.pad(image, (0, 0, 0, 0, 0, 1)), support)  # the query has no mask: zeros
        kept = []
        for block in self.down:
            kept.append((query, support))
            query, support = block(F.max_pool2d(query, 2), _each(F.max_pool2d, support, 2))
        for block in self.up:
            finer_query, finer_support = kept.pop()
            side = finer_query.shape[-2:]
            query = torch.cat([F.interpolate(query, side, mode="bilinear"), finer_query], 1)
            support = torch.cat([_each(F.interpolate, support, side, mode="bilinear"), finer_support], 2)
            query, support = block(query, support)
        return self.head(query)[:, 0]


def _each(function: Callable[..., Tensor], maps: Tensor, *given: Any, **options: Any) -> Tensor:
    """Apply a function of (N, C, H, W) to each support of (B, N, C, H, W)."""
    return function(maps.flatten(0, 1), *given, **options).unflatten(0, maps.shape[:2])


def squared(image: Array, order: int) -> Array:
    """A slice (H, W) resized and centred in a square of SIDE x SIDE."""
    scale = SIDE / max(image.shape)
    small = ndimage.zoom(image, [max(round(n * scale), 1) / n for n in image.shape], order=order)[:SIDE, :SIDE]
    missing = [SIDE - n for n in small.shape]
    return np.pad(small, [(n // 2, n - n // 2) for n in missing])


def unsquared(logits: Array, shape: tuple[int, int]) -> Array:
    """Logits on the square resampled to the pixels (H, W) of the slice."""
    scale = SIDE / max(shape)
    small = [min(max(round(n * scale), 1), SIDE) for n in shape]
    first = [(SIDE - n) // 2 for n in small]
    part = logits[first[0] : first[0] + small[0], first[1] : first[1] + small[1]]
    tensor = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))[None, None]
    return F.interpolate(tensor, shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def task_of(images: Sequence[Array], masks: Sequence[Array], fewest: int = 2) -> Task | None:
    """The slices that contain the structure, (H, W) each; None if fewer than `fewest` do."""
    shown = [(i, m) for i, m in zip(images, masks, strict=True) if m.sum() >= FEWEST_PIXELS]
    small = [(squared(i, 1), squared(m.astype(np.uint8), 0) > 0) for i, m in shown]
    small = [(i, m) for i, m in small if m.any()]
    if len(small) < fewest:
        return None
    return Task(np.stack([i for i, _ in small]).astype(np.float32), np.stack([m for _, m in small]))


def drawn_shapes(rng: np.random.Generator, count: int) -> Task:
    """A synthetic task: smooth random regions on noise with their own texture, deformed from slice to slice."""
    field = ndimage.gaussian_filter(rng.standard_normal((4, SIDE, SIDE)), (0, 9, 9))
    regions = np.argmax(field, axis=0)
    greys, wanted = rng.uniform(0.1, 0.9, 4), int(rng.integers(4))
    images, masks = [], []
    for _ in range(count):
        shift = ndimage.gaussian_filter(rng.standard_normal((2, SIDE, SIDE)), (0, 12, 12)) * 80
        at = np.indices((SIDE, SIDE)) + shift
        moved = ndimage.map_coordinates(regions, at, order=0, mode="nearest")
        image = ndimage.gaussian_filter(greys[moved] + 0.05 * rng.standard_normal((SIDE, SIDE)), 0.7)
        images.append(image.clip(0, 1).astype(np.float32))
        masks.append(moved == wanted)
    return Task(np.stack(images), np.stack(masks))


def episode(task: Task, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A query image (1, 1, S, S), its mask (1, S, S), and supports (1, N, 2, S, S) of other slices of the task."""
    order = rng.permutation(len(task.images))
    count = int(rng.integers(1, min(MOST_SUPPORTS, len(order) - 1) + 1))
    query, chosen = order[0], order[1 : count + 1]
    gain, offset = rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)
    images = (task.images * gain + offset).clip(0, 1).astype(np.float32)
    turned = int(rng.integers(4)) if rng.random() < 0.5 else 0  # of the whole task, for consistency
    image, mask = np.rot90(images[query], turned).copy(), np.rot90(task.masks[query], turned).copy()
    support = np.stack([images[chosen], task.masks[chosen].astype(np.float32)], 1)
    support = np.rot90(support, turned, (2, 3)).copy()
    return torch.from_numpy(image)[None, None], torch.from_numpy(mask)[None].float(), torch.from_numpy(support)[None]


def train(tasks: Sequence[Task], *, seed: int, seconds: float, report: Report, steps: int = 100_000) -> CrossNetwork:
    """A network trained on episodes of the tasks and of drawn shapes; one episode per step."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = CrossNetwork()

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = step_rng(seed, step)
        drawn = not tasks or rng.random() < SHAPES
        task = drawn_shapes(rng, 1 + MOST_SUPPORTS) if drawn else tasks[int(rng.integers(len(tasks)))]
        image, mask, support = episode(task, rng)
        logits = network(image, support)
        return (soft_dice_loss(torch.sigmoid(logits), mask) + cross_entropy(logits, mask)).mean(), {}

    schedule = Schedule(steps, 1e-3, weight_decay=1e-4, warmup_steps=20, max_seconds=seconds)
    fit(dict(network.named_parameters()), loss_at, schedule, report=report)
    return network.eval()


def predicted(network: CrossNetwork, image: Array, supports: Task) -> Array:
    """Logits (H, W) of a slice (H, W) in [0, 1], from the supports."""
    given = torch.from_numpy(np.stack([supports.images, supports.masks.astype(np.float32)], 1))[None]
    with torch.inference_mode():
        logits = network(torch.from_numpy(squared(image, 1).astype(np.float32))[None, None], given)[0].numpy()
    return unsquared(logits, (image.shape[0], image.shape[1]))
