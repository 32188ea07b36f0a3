"""Generators and discriminators: shapes, patches, logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from FewShotSegLib.methods.uda.generators import Discriminator, Generator


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_generators_answer_in_the_shape_they_were_given(size: tuple[int, int], skip: bool) -> None:
    answer = Generator(3, 2, 1, skip=skip)(torch.rand(2, 3, *size))
    assert answer.shape == (2, 3, *size)
    if not skip:
        assert 0 <= answer.min() <= answer.max() <= 1


@pytest.mark.parametrize(("layers", "patch_px"), [(1, 16), (2, 34), (3, 70)])
def test_discriminators_judge_patches_of_the_size_they_say(layers: int, patch_px: int) -> None:
    judge = Discriminator(1, 2, layers)
    for layer in judge.modules():
        if isinstance(layer, nn.InstanceNorm2d):  # it sees the whole image
            layer.forward = lambda features: features  # type: ignore[method-assign]
    images = torch.rand(1, 1, 128, 128, requires_grad=True)
    logits = judge(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert images.grad is not None
    rows = images.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch_px


def test_the_discriminators_last_word_is_a_logit_of_either_sign() -> None:
    judge = Discriminator(1, 4, 1)
    logits = judge(torch.rand(4, 1, 32, 32))
    assert logits.shape == (4, 1, 14, 14)
    assert logits.min() < 0 < logits.max()
