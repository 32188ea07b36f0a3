"""Simulated user interaction: initial clicks and boxes from a mask, corrective clicks from the error region."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    NEGATIVE,
    PADDING,
    POSITIVE,
    PromptableNetwork,
    PromptBatch,
    mask_prompts,
)

FIRST_PROMPT = 3  # points of an initial prompt: click, box corner low, box corner high


def centre_click(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of the pixel deepest inside the mask; the first one on ties.

    >>> centre_click(np.pad(np.ones((5, 7), bool), 2))
    (4, 4)
    """
    if not mask.any():
        raise InputError("An empty mask has no inside to click on.")
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = divmod(int(np.argmax(depth)), mask.shape[1])
    return column, row


def random_click(mask: NDArray[np.bool_], rng: np.random.Generator, central: float = 0.0) -> tuple[int, int]:
    """(x, y) of a pixel drawn uniformly from the mask; with probability `central`, one of the innermost pixels."""
    candidates = np.flatnonzero(mask)
    if central and rng.random() < central:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        candidates = np.flatnonzero(depth >= 0.9 * depth.max())
    row, column = divmod(int(rng.choice(candidates)), mask.shape[1])
    return column, row


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Corners (2, 2) x, y of the mask's bounding box: its first and last pixel.

    >>> mask = np.zeros((30, 30), bool); mask[10:20, 12:22] = True; tight_box(mask).tolist()
    [[12.0, 10.0], [21.0, 19.0]]
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float32)


def jittered_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """A box as a user would drag it: up to a tenth of its side too large, or slightly less too small."""
    low, high = tight_box(mask)
    jitter = np.minimum(0.1 * (high - low) + 1, 0.05 * mask.shape[0])
    corners = np.stack([low + rng.uniform(-1, 0.5, 2) * jitter, high + rng.uniform(-0.5, 1, 2) * jitter])
    return np.sort(corners, axis=0).astype(np.float32)  # the corners of a tiny box may have swapped


def first_prompt(
    mask: NDArray[np.bool_], kind: str, rng: np.random.Generator, central: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Coordinates (3, 2) and labels (3,) of a "click", a "box" or "both"; unused points are padding."""
    coords = np.zeros((FIRST_PROMPT, 2), np.float32)
    labels = np.full(FIRST_PROMPT, PADDING, np.int64)
    if kind != "box":
        coords[0], labels[0] = random_click(mask, rng, central), POSITIVE
    if kind != "click":
        coords[1:], labels[1:] = jittered_box(mask, rng), (BOX_CORNER_LOW, BOX_CORNER_HIGH)
    return coords, labels


Choices = Callable[[Sequence[int], np.random.Generator, float], Sequence[int]]
"""Number of wrong pixels of each mask, a generator, the probability of central clicks -> see `choices`."""


def corrected(
    prompts: PromptBatch,
    logits: Tensor,
    target: Tensor,
    network: PromptableNetwork,
    rng: np.random.Generator,
    central: float = 0.0,
    choose: Choices | None = None,
) -> PromptBatch:
    """The prompts with one corrective click added in the error region of each mask, and the mask as a mask prompt.

    logits and target (N, h, w) cover the network's square. Wrong pixels are drawn uniformly; with probability `central`
    the click falls where most of the neighbourhood is wrong too, as a user's does. `choose` replaces `choices`.
    """
    truth = target > 0.5
    error = (logits > 0) != truth
    crowd = F.avg_pool2d(error[:, None].float(), 9, stride=1, padding=4)[:, 0] * error
    ranks = error.flatten(1).cumsum(1)  # the n-th wrong pixel has rank n, and only the counts leave the device
    chosen = torch.tensor((choose or choices)(ranks[:, -1].tolist(), rng, central), device=logits.device)
    anywhere = torch.searchsorted(ranks, chosen.clamp(min=1)[:, None])[:, 0].clamp(max=ranks.shape[1] - 1)
    where = torch.where(chosen == _DENSEST, crowd.flatten(1).argmax(1), anywhere)
    side = logits.shape[-1]
    # The centre of a logit's cell, in network pixels.
    xy = (torch.stack([where % side, where // side], -1).float() + 0.5) * (network.image_size / side) - 0.5
    inside = truth.flatten(1).gather(1, where[:, None])[:, 0]
    label = torch.where(chosen == _NOWHERE, PADDING, torch.where(inside, POSITIVE, NEGATIVE))
    return PromptBatch(
        torch.cat([prompts.coords, xy[:, None]], 1),
        torch.cat([prompts.labels, label[:, None]], 1),
        mask_prompts(logits, network.mask_input_size),
        tokens=prompts.tokens,
    )


_NOWHERE, _DENSEST = -1, 0


def choices(counts: Sequence[int], rng: np.random.Generator, central: float) -> list[int]:
    """Index of the wrong pixel to click on in each mask, drawn mask by mask."""
    return [_choice(count, rng, central) for count in counts]


def _choice(count: int, rng: np.random.Generator, central: float) -> int:
    """Which of `count` wrong pixels to click (1-based), or where they are densest, or none if there are none."""
    if not count:
        return _NOWHERE
    if central and rng.random() < central:
        return _DENSEST
    return 1 + int(rng.integers(count))
