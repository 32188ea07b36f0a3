"""The compact model: prompts grouped by image, other image sizes, LoRA's targets."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.errors import InputError
from FewShotSegLib.lora.attach import target_names
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact, set_image_size
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch

SMALL = CompactArchitecture(image_size=64, widths=(8, 8, 16), dim=32, depth=2, heads=2, decoder_mlp=32)


@pytest.fixture
def network() -> PromptableNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_compact(SMALL).eval().requires_grad_(False)


def clicks(count: int, size: int) -> PromptBatch:
    coords = torch.zeros(count, 3, 2)
    coords[:, 0] = size * torch.rand(count, 2, generator=torch.Generator().manual_seed(2))
    return PromptBatch(coords, torch.tensor([[POSITIVE, PADDING, PADDING]]).expand(count, -1))


def images(network: PromptableNetwork, count: int) -> torch.Tensor:
    size = network.image_size
    return network.normalize(torch.rand(count, size, size, generator=torch.Generator().manual_seed(1)))


def test_masks_come_at_half_the_resolution_of_the_image(network: PromptableNetwork) -> None:
    embedding = network.encode(images(network, 1))
    assert embedding.features.shape == (1, 32, 4, 4)
    assert [tuple(skip.shape[1:]) for skip in embedding.skips] == [(16, 8, 8), (8, 16, 16), (8, 32, 32)]
    logits, iou = network.decode(embedding, clicks(3, 64))
    assert (logits.shape, iou.shape) == ((3, 4, 32, 32), (3, 4))


def test_several_images_at_once_give_the_masks_of_one_image_at_a_time(network: PromptableNetwork) -> None:
    prompts, embedding = clicks(6, 64), network.encode(images(network, 2))
    logits, iou = network.decode(embedding, prompts)
    for image in range(2):
        rows = slice(3 * image, 3 * image + 3)
        alone, alone_iou = network.decode(embedding.one(image), PromptBatch(prompts.coords[rows], prompts.labels[rows]))
        torch.testing.assert_close(logits[rows], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(iou[rows], alone_iou, rtol=1e-4, atol=1e-5)


def test_decoding_leaves_the_embedding_alone_so_that_it_can_be_kept(network: PromptableNetwork) -> None:
    embedding = network.encode(images(network, 1))
    before = [tensor.clone() for tensor in (embedding.features, *embedding.skips)]
    first, _ = network.decode(embedding, clicks(2, 64))
    second, _ = network.decode(embedding, clicks(2, 64))
    assert all(torch.equal(a, b) for a, b in zip(before, (embedding.features, *embedding.skips), strict=True))
    assert torch.equal(first, second)


def test_gradients_reach_the_encoder_through_skips_and_features(network: PromptableNetwork) -> None:
    network.requires_grad_(True)
    logits, iou = network.decode(network.encode(images(network, 2)), clicks(4, 64))
    (logits.square().mean() + iou.square().mean()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Without mask prompts, negative clicks and boxes their embeddings have nothing to learn from.
    assert all(
        name.startswith(("prompt_encoder.mask_downscaling", "prompt_encoder.point_embeddings")) for name in silent
    )


def test_another_image_size_keeps_the_weights_and_changes_the_grid(network: PromptableNetwork) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    set_image_size(network, 128)
    logits, _ = network.decode(network.encode(images(network, 1)), clicks(1, 128))
    assert logits.shape[-2:] == (64, 64)
    assert (network.mask_input_size, network.prompt_encoder.image_embedding_size) == (32, (8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    set_image_size(network, 64)
    assert network.image_encoder._positions(4) is network.image_encoder.pos_embed


@pytest.mark.parametrize("size", [100, 48, 0])
def test_image_sizes_off_the_grid_are_refused(network: PromptableNetwork, size: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 16.*got {size}"):
        set_image_size(network, size)


def test_lora_finds_the_same_targets_as_in_sam(network: PromptableNetwork) -> None:
    names = target_names(network, LoraSpec())
    assert [name for name in names if name.startswith("image_encoder")] == [
        "image_encoder.blocks.0.attn.qkv",
        "image_encoder.blocks.1.attn.qkv",
    ]
    assert sum(name.startswith("mask_decoder") for name in names) == 14
