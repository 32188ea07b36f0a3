"""The two-class decoder starts as the base model, and the locator sees its inputs standardized."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from FewShotSegLib.lora.heads import BACKGROUND, TARGET, target_of
from FewShotSegLib.sam.network import PromptableNetwork
from Testing.Library.lora.miniatures import adapted, answers, compact, generator

# --- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam", "compact"])
def test_at_the_start_the_two_class_head_answers_as_token_0_of_the_base(
    a_tiny_sam: PromptableNetwork, kind: str
) -> None:
    network = a_tiny_sam if kind == "sam" else compact()
    base, base_iou = answers(network)
    with adapted(network).applied(network):
        two, iou = answers(network)
    assert two.shape[1] == iou.shape[1] == 2
    assert not two[:, BACKGROUND].any()
    probability = torch.softmax(two, 1)[:, TARGET]
    torch.testing.assert_close(probability, torch.sigmoid(base[:, 0]), rtol=0, atol=1e-6)
    # Up to the order of sums: the tokens stand in another order.
    torch.testing.assert_close(target_of(two, iou)[0], target_of(base, base_iou)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(iou[:, [TARGET, BACKGROUND]], base_iou[:, [0, 1]], rtol=1e-4, atol=1e-5)


# --- without clicks -------------------------------------------------------------------------------------------------


def test_the_locator_sees_its_inputs_with_mean_0_and_deviation_1(a_tiny_sam: PromptableNetwork) -> None:
    locator = adapted(a_tiny_sam).locator
    with torch.no_grad():
        embedding = a_tiny_sam.encode(a_tiny_sam.normalize(torch.rand(3, 64, 64, generator=generator(3))))
        locator.standardize(embedding)
        seen: list[Tensor] = []
        handle = locator.inputs.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        locator(embedding)
        handle.remove()
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(seen[0].shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(seen[0].shape[1]), rtol=0, atol=1e-2)
