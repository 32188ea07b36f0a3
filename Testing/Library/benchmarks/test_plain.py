"""The plain network computes the same as ours."""

from __future__ import annotations

import torch

from FewShotSegLib.benchmarks.plain import plain_copy
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
