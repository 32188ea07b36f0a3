"""Losses against MONAI and against finite differences."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor

from FewShotSegLib.training.losses import cross_entropy, focal_loss, soft_dice_loss


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> Tensor:
    return (torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(1)) > 0.6).float()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_the_dice_loss_equals_that_of_monai(logits: Tensor, targets: Tensor, squared: bool, smooth: float) -> None:
    theirs = DiceLoss(squared_pred=squared, smooth_nr=smooth, smooth_dr=smooth, reduction="none")
    probabilities = torch.sigmoid(logits)
    ours = soft_dice_loss(probabilities, targets, squared=squared, smooth=smooth)
    torch.testing.assert_close(ours, theirs(probabilities, targets)[..., 0, 0])


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_the_focal_loss_equals_that_of_monai(logits: Tensor, targets: Tensor, gamma: float) -> None:
    theirs = FocalLoss(gamma=gamma, reduction="none")(logits, targets).mean((-2, -1))
    torch.testing.assert_close(focal_loss(logits, targets, gamma), theirs)


def test_cross_entropy_of_a_difference_of_logits_is_the_two_class_softmax_cross_entropy(targets: Tensor) -> None:
    two = torch.randn(2, 3, 2, 8, 9, generator=torch.Generator().manual_seed(2))  # background, target
    theirs = torch.nn.functional.cross_entropy(two.flatten(0, 1), targets.flatten(0, 1).long(), reduction="none")
    ours = cross_entropy(two[:, :, 1] - two[:, :, 0], targets)
    torch.testing.assert_close(ours, theirs.mean((-2, -1)).reshape(2, 3))


def test_a_perfect_mask_costs_nothing_and_an_empty_one_that_is_right_neither() -> None:
    mask = torch.zeros(2, 6, 6)
    mask[0, 1:4, 2:5] = 1
    assert soft_dice_loss(mask, mask).tolist() == [0, 0]
    logits = 60 * mask - 30
    assert focal_loss(logits, mask).max() < 1e-12
    assert cross_entropy(logits, mask).max() < 1e-12


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[0.0, 1.0]]])).sum() + cross_entropy(logits, torch.ones(1, 1, 2)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(2, 4, 3, generator=generator) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits)
    for squared in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, squared=squared: soft_dice_loss(torch.sigmoid(x), targets, squared=squared), logits
        )
