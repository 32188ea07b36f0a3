"""The two-class decoder starts as the base model, and the locator sees its inputs standardized."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.special import logit

from FewShotSegLib.lora.heads import BACKGROUND, TARGET, Locator, target_of, two_class_decoder
from FewShotSegLib.sam.network import Embedding, PromptableNetwork
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


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = 4 * torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator())
    expected = logit(torch.softmax(logits, 1)[:, 1:]).float()
    torch.testing.assert_close(Locator.log_odds(logits), expected, rtol=1e-4, atol=1e-4)


def test_log_odds_of_what_is_certain_stay_finite() -> None:
    logits = torch.tensor([[[[100.0]], [[-100.0]]], [[[-100.0]], [[100.0]]]])
    odds = Locator.log_odds(logits)
    assert torch.isfinite(odds).all()
    assert odds[0] < -90
    assert odds[1] > 10


def an_embedding(*skips: int) -> Embedding:
    """Features of 8 channels, 4 x 4, and skips of twice the resolution each."""
    draw = generator(1)
    maps = [torch.randn(2, channels, 8 * 2**n, 8 * 2**n, generator=draw) for n, channels in enumerate(skips)]
    return Embedding(torch.randn(2, 8, 4, 4, generator=draw), tuple(maps))


@pytest.mark.parametrize(("skips", "side"), [((), 4), ((6,), 8), ((6, 3), 8), ((6, 3, 2), 8)])
def test_the_locator_answers_on_the_grid_of_the_coarsest_skip(skips: tuple[int, ...], side: int) -> None:
    locator = Locator((8, *skips[:2]), 3, generator=generator())
    assert locator(an_embedding(*skips)).shape == (2, 4, side, side)


def test_the_locator_is_told_where_it_looks() -> None:
    locator = Locator((8,), 2, generator=generator())
    everywhere_alike = Embedding(torch.ones(1, 8, 4, 4))
    answer = locator(everywhere_alike).detach()
    assert answer.flatten(2).std(-1).min() > 1e-3


def test_the_locator_starts_from_the_given_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (Locator((8,), 2, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.inputs.weight, same.inputs.weight)
    assert not torch.equal(one.inputs.weight, other.inputs.weight)
    assert float(one.inputs.weight.detach().std()) == pytest.approx((8 + Locator.POSITIONS) ** -0.5, rel=0.05)


def test_the_two_class_decoder_shares_nothing_with_the_base(a_tiny_sam: PromptableNetwork) -> None:
    before = {name: value.clone() for name, value in a_tiny_sam.mask_decoder.state_dict().items()}
    twin = two_class_decoder(a_tiny_sam.mask_decoder)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in a_tiny_sam.mask_decoder.state_dict().items())
    assert twin.num_mask_tokens == len(twin.output_hypernetworks_mlps) == 2
    assert "silent_tokens" not in twin.state_dict()


def test_the_target_of_two_classes_is_their_difference_and_of_sams_own_head_token_0() -> None:
    logits, iou = torch.randn(3, 4, 2, 2, generator=generator()), torch.rand(3, 4, generator=generator())
    assert torch.equal(target_of(logits, iou)[0], logits[:, 0])
    assert torch.equal(target_of(logits, iou)[1], iou[:, 0])
    two, quality = target_of(logits[:, :2], iou[:, :2])
    torch.testing.assert_close(torch.sigmoid(two), torch.softmax(logits[:, :2], 1)[:, TARGET])
    assert torch.equal(quality, iou[:, TARGET])
