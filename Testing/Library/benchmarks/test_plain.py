"""The plain network computes the same as ours."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.benchmarks import plain as module
from FewShotSegLib.benchmarks.plain import plain_copy, random_vit_b
from FewShotSegLib.sam.attention import FusedAttention
from FewShotSegLib.sam.network import POSITIVE, PromptableNetwork, PromptBatch


def test_the_plain_network_has_no_part_of_ours_and_answers_the_same(a_tiny_sam: PromptableNetwork) -> None:
    plain = plain_copy(a_tiny_sam)
    assert not [m for m in plain.modules() if isinstance(m, FusedAttention)]
    assert [m for m in a_tiny_sam.modules() if isinstance(m, FusedAttention)]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    prompts = PromptBatch(
        64 * torch.rand(6, 1, 2, generator=generator),
        torch.full((6, 1), POSITIVE),
        tokens=torch.randn(6, 2, 32, generator=generator),
    )
    with torch.inference_mode():
        ours = a_tiny_sam.decode(a_tiny_sam.encode(images), prompts)
        theirs = plain.decode(plain.encode(images), prompts)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def test_a_copy_shares_no_weight_with_ours(a_tiny_sam: PromptableNetwork) -> None:
    plain = plain_copy(a_tiny_sam)
    before = {name: value.clone() for name, value in a_tiny_sam.state_dict().items()}
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in a_tiny_sam.state_dict().items())
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def test_random_weights_are_those_of_the_seed_and_positions_play_a_part(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(architecture: str, image_size: int) -> PromptableNetwork:
        assert (architecture, image_size) == ("vit_b", 512)
        with torch.no_grad():
            for name, parameter in a_tiny_sam.named_parameters():
                parameter.zero_() if "rel_pos" in name or name.endswith("pos_embed") else parameter.normal_()
        return a_tiny_sam

    monkeypatch.setattr(module, "build_sam", build)
    state = torch.random.get_rng_state()
    weights = [
        {name: value.clone() for name, value in random_vit_b(512, seed).named_parameters()} for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    positions = [name for name in weights[0] if "rel_pos" in name or name.endswith("pos_embed")]
    assert positions
    assert all(weights[0][name].any() and not torch.equal(weights[0][name], weights[2][name]) for name in positions)
