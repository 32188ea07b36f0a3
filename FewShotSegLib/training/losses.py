"""Losses over mask logits. Every function returns one value per mask; callers weight and reduce."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_dice_loss(probabilities: Tensor, targets: Tensor, *, squared: bool = False, smooth: float = 1.0) -> Tensor:
    """1 - Dice over the last two axes, (..., h, w) -> (...). `squared` denominators as in SAMed (Milletari et al.
    2016).
    """
    return dice_loss_of(*dice_sums(probabilities, targets, squared=squared), smooth=smooth)


def dice_sums(probabilities: Tensor, targets: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Overlap and total over the last two axes, (..., h, w) -> (...): the additive terms of Dice."""
    overlap = (probabilities * targets).sum((-2, -1))
    if squared:
        return overlap, (probabilities**2).sum((-2, -1)) + (targets**2).sum((-2, -1))
    return overlap, probabilities.sum((-2, -1)) + targets.sum((-2, -1))


def dice_loss_of(overlap: Tensor, total: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice from these sums."""
    return 1 - (2 * overlap + smooth) / (total + smooth)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean binary focal loss over the last two axes (Lin et al. 2017), (..., h, w) -> (...)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    certainty = torch.exp(-entropy)  # probability of the true class
    return ((1 - certainty) ** gamma * entropy).mean((-2, -1))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the last two axes.

    For logits l = target - background it equals the two-class softmax cross-entropy of the Cheap Lunch head.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((-2, -1))
