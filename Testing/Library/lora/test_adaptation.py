"""What an adapter changes: the start, the counts, the way back."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.heads import TARGET
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.loading import assemble_sam
from FewShotSegLib.sam.modeling import ImageEncoderViT
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch
from Testing.conftest import sha256_of_network
from Testing.Library.lora.miniatures import CLICKS, STRUCTURES, adapted, answers, generator

OURS = ("structure_tokens", "locator.")  # what is not in the paper lies beside the network


def shaken(parameters: dict[str, nn.Parameter], seed: int = 5) -> None:
    """As training would, every value moves."""
    noise = generator(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


# --- the start ------------------------------------------------------------------------------------------------------


def test_making_an_adaptation_draws_from_the_given_generator_only(a_tiny_sam: PromptableNetwork) -> None:
    before = torch.random.get_rng_state()
    adaptation = adapted(a_tiny_sam)
    first = adaptation.tensors(a_tiny_sam)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = adapted(a_tiny_sam).tensors(a_tiny_sam), adapted(a_tiny_sam, seed=1).tensors(a_tiny_sam)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["structure_tokens"], other["structure_tokens"])
    lora_a = "image_encoder.blocks.0.attn.qkv.lora_q.A"
    assert not np.array_equal(first[lora_a], other[lora_a])


def test_structure_tokens_start_as_wide_as_the_tokens_of_the_prompt_encoder(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = Adaptation(a_tiny_sam, AdaptationSpec(LoraSpec(), tokens=64), range(1, 9), generator=generator())
    wanted = float(a_tiny_sam.prompt_encoder.not_a_point_embed.weight.std())
    assert float(adaptation.structure_tokens.detach().std()) == pytest.approx(wanted, rel=0.05)


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_b_shaped() -> PromptableNetwork:
    """ViT-B at 512 pixels whose 86 million encoder weights are shapes only."""
    with torch.device("meta"):
        encoder = ImageEncoderViT(
            depth=12,
            embed_dim=768,
            img_size=512,
            mlp_ratio=4,
            num_heads=12,
            patch_size=16,
            qkv_bias=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
            out_chans=256,
        )
    with torch.random.fork_rng(devices=[]):
        return assemble_sam(
            encoder, image_size=512, patch=16, prompt_dim=256, mlp_dim=2048, iou_hidden=256, name="vit_b"
        )


def counted(network: PromptableNetwork, spec: AdaptationSpec) -> dict[str, int]:
    with Adaptation(network, spec, STRUCTURES, generator=generator()).applied(network) as parameters:
        learning = {id(p) for p in network.parameters() if p.requires_grad}
        named = {id(p) for name, p in parameters.items() if not name.startswith(OURS)}
        assert learning == named  # what is handed to the optimizer is what has gradients
        sizes = {name: p.numel() for name, p in parameters.items()}
    lora = {name: n for name, n in sizes.items() if ".lora" in name}
    return {
        "encoder": sum(n for name, n in lora.items() if name.startswith("image_encoder.")),
        "decoder": sum(n for name, n in lora.items() if name.startswith("mask_decoder.")),
        "tokens": sizes["structure_tokens"],
        "paper": sum(n for name, n in sizes.items() if not name.startswith(OURS)),
    }


def test_two_tokens_on_vit_b_make_the_published_number_of_parameters(vit_b_shaped: PromptableNetwork) -> None:
    counts = counted(vit_b_shaped, AdaptationSpec(LoraSpec(rank=4), tokens=4))
    assert counts["encoder"] == 147_456
    assert counts["decoder"] == 23_552
    assert counts["tokens"] == len(STRUCTURES) * 4 * 256
    assert counts["paper"] == 663_662


def test_a_frozen_encoder_and_a_full_decoder_can_be_had_apart(vit_b_shaped: PromptableNetwork) -> None:
    frozen = counted(vit_b_shaped, AdaptationSpec(LoraSpec(encoder=False)))
    assert (frozen["encoder"], frozen["decoder"]) == (0, 23_552)
    late = counted(vit_b_shaped, AdaptationSpec(LoraSpec(encoder_blocks=(9, 10, 11))))
    assert late["encoder"] == 147_456 // 4
    full = counted(vit_b_shaped, AdaptationSpec(LoraSpec(decoder=False), full_decoder=True))
    transformer = sum(p.numel() for p in vit_b_shaped.mask_decoder.transformer.parameters())
    assert full["paper"] == 663_662 - 23_552 + transformer


# --- what is lent comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, Cancelled, KeyboardInterrupt])
def test_the_base_comes_back_bit_by_bit_however_the_work_ends(
    a_tiny_sam: PromptableNetwork, error: type[BaseException] | None
) -> None:
    a_tiny_sam.image_encoder.neck.requires_grad_(True)  # a mixture, to see that flags are restored and not just set
    digest, modules = sha256_of_network(a_tiny_sam), list(a_tiny_sam.modules())
    flags, before = [p.requires_grad for p in a_tiny_sam.parameters()], answers(a_tiny_sam)[0]
    adaptation = adapted(a_tiny_sam)

    def work() -> None:
        with adaptation.applied(a_tiny_sam) as parameters:
            shaken(parameters)
            assert not torch.allclose(answers(a_tiny_sam)[0][:, TARGET], before[:, 0], atol=1e-3)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert sha256_of_network(a_tiny_sam) == digest
    assert all(a is b for a, b in zip(modules, a_tiny_sam.modules(), strict=True))
    assert [p.requires_grad for p in a_tiny_sam.parameters()] == flags
    assert torch.equal(answers(a_tiny_sam)[0], before)


def test_a_lora_that_does_not_fit_leaves_the_network_as_it_was(a_tiny_sam: PromptableNetwork) -> None:
    digest, modules = sha256_of_network(a_tiny_sam), list(a_tiny_sam.modules())
    with (
        pytest.raises(InputError, match="rank 1000"),
        adapted(a_tiny_sam, lora=LoraSpec(rank=1000)).applied(a_tiny_sam),
    ):
        pass
    assert sha256_of_network(a_tiny_sam) == digest
    assert all(a is b for a, b in zip(modules, a_tiny_sam.modules(), strict=True))


def test_what_was_learned_is_there_again_on_the_next_entry(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    with adaptation.applied(a_tiny_sam) as parameters:
        shaken(parameters)
        learned = answers(a_tiny_sam)[0]
    with adaptation.applied(a_tiny_sam):
        assert torch.equal(answers(a_tiny_sam)[0], learned)


@pytest.mark.parametrize(
    "spec",
    [{}, {"full_decoder": True}, {"lora": LoraSpec(encoder=False)}, {"lora": LoraSpec(rank=2, mlp=True), "tokens": 1}],
)
def test_tensors_taken_out_and_loaded_elsewhere_give_the_same_masks(
    a_tiny_sam: PromptableNetwork, spec: dict[str, object]
) -> None:
    first, second = adapted(a_tiny_sam, **dict(spec)), adapted(a_tiny_sam, seed=8, **dict(spec))
    with first.applied(a_tiny_sam) as parameters:
        shaken(parameters)
        expected = answers(a_tiny_sam, PromptBatch(CLICKS.coords, CLICKS.labels, tokens=first.tokens_of([4, 1])))[0]
    tensors = first.tensors(a_tiny_sam)
    second.load(a_tiny_sam, tensors)
    with second.applied(a_tiny_sam):
        found = answers(a_tiny_sam, PromptBatch(CLICKS.coords, CLICKS.labels, tokens=second.tokens_of([4, 1])))[0]
    assert torch.equal(found, expected)
    again = second.tensors(a_tiny_sam)
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)


def test_gradients_reach_every_trainable_parameter(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    coords = torch.tensor([[[20.0, 30], [5, 5], [4, 4], [30, 40], [0, 0]]]).expand(2, -1, -1)
    labels = torch.tensor([[POSITIVE, 0, 2, 3, PADDING]]).expand(2, -1)
    masks = torch.randn(2, 1, 32, 32, generator=generator())
    with adaptation.applied(a_tiny_sam) as parameters:
        shaken(parameters)
        image = a_tiny_sam.normalize(torch.rand(1, 64, 64, generator=generator(9)))
        embedding = a_tiny_sam.encode(image)
        plain = PromptBatch(coords, labels, masks, torch.tensor([True, False]), adaptation.tokens_of(STRUCTURES))
        located = adaptation.structure_prompts(a_tiny_sam, embedding, PromptBatch(coords, labels), STRUCTURES)
        logits, iou = (
            torch.cat(pair) for pair in zip(*(a_tiny_sam.decode(embedding, p) for p in (plain, located)), strict=True)
        )
        (logits.square().mean() + iou.square().mean()).backward()
        silent = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


# --- without clicks -------------------------------------------------------------------------------------------------


def test_a_structure_is_asked_for_by_its_tokens_and_the_mask_of_the_locator(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    images = torch.rand(2, 64, 64, generator=generator(3))
    with torch.no_grad():
        embedding = a_tiny_sam.encode(a_tiny_sam.normalize(images))
        asked = PromptBatch(torch.zeros(4, 1, 2), torch.full((4, 1), PADDING))
        prompts = adaptation.structure_prompts(a_tiny_sam, embedding, asked, [4, 1, 1, 4])
        shares = torch.softmax(adaptation.locator(embedding).double(), 1)  # 2 images; background, structures 1 and 4
    odds = torch.log(shares / (1 - shares)).float()
    wanted = torch.stack([odds[0, 2], odds[0, 1], odds[1, 1], odds[1, 2]])[:, None]
    wanted = torch.nn.functional.interpolate(wanted, (32, 32), mode="bilinear").clamp(-16, 16)
    torch.testing.assert_close(prompts.masks, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(prompts.tokens, adaptation.structure_tokens[[1, 0, 0, 1]])


def test_a_mask_that_a_prompt_brings_itself_is_kept(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    own = torch.randn(2, 1, 32, 32, generator=generator(4))
    with torch.no_grad():
        embedding = a_tiny_sam.encode(a_tiny_sam.normalize(torch.rand(1, 64, 64, generator=generator(3))))
        located = adaptation.structure_prompts(a_tiny_sam, embedding, CLICKS, STRUCTURES).masks
        kept = adaptation.structure_prompts(a_tiny_sam, embedding, CLICKS.with_masks(own), STRUCTURES).masks
        mixed = adaptation.structure_prompts(
            a_tiny_sam, embedding, CLICKS.with_masks(own, torch.tensor([False, True])), STRUCTURES
        )
    assert torch.equal(kept, own)
    assert torch.equal(mixed.masks, torch.stack([located[0], own[1]]))
    assert mixed.has_mask is None


def test_tokens_can_start_as_remembered_clicks(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    clicks = np.array([[3, 4], [10, 60], [33, 33], [0, 0]], np.float32)
    adaptation.remember_clicks(a_tiny_sam, {4: clicks})
    sparse, _ = a_tiny_sam.prompt_encoder((torch.from_numpy(clicks)[None], torch.ones(1, 4)), None, None)
    torch.testing.assert_close(adaptation.structure_tokens[1].detach(), sparse[0, :4])


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_tensors_of_another_shape_are_refused_by_name(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    tensors = adaptation.tensors(a_tiny_sam)
    tensors["structure_tokens"] = tensors["structure_tokens"][:1]
    with pytest.raises(InputError, match=r"structure_tokens has shape \(1, 4, 32\).* needs \(2, 4, 32\)"):
        adaptation.load(a_tiny_sam, tensors)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_tensors_are_refused_by_name(a_tiny_sam: PromptableNetwork, change: str) -> None:
    adaptation = adapted(a_tiny_sam)
    tensors = adaptation.tensors(a_tiny_sam)
    if change == "missing":
        del tensors["structure_tokens"]
    else:
        tensors["structure_tokens2"] = np.zeros(2, np.float32)
    with pytest.raises(InputError, match="1 parameters differ, first structure_tokens"):
        adaptation.load(a_tiny_sam, tensors)


def test_tokens_are_those_of_the_structures_asked_for_in_that_order(a_tiny_sam: PromptableNetwork) -> None:
    adaptation = adapted(a_tiny_sam)
    rows = adaptation.structure_tokens
    assert torch.equal(adaptation.tokens_of([4, 1, 4]), torch.stack([rows[1], rows[0], rows[1]]))
    with pytest.raises(InputError, match="without a structure"):
        adaptation.tokens_of([1, None])
