"""The two-way transformer and the mask head compute what segment_anything's own modules compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from FewShotSegLib.lora.attach import attached, lora_parameters
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam import two_way
from FewShotSegLib.sam.modeling import LayerNorm2d, TwoWayTransformer

WIDTH, GRID, TOKENS = 32, 6, 5


@pytest.fixture
def network() -> nn.Module:
    """A transformer where `attach` looks for one, every parameter random."""
    network = nn.Module()
    network.mask_decoder = nn.Module()
    network.mask_decoder.transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=48)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def both(network: nn.Module, images: int, prompts: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """What stock and ours answer."""
    transformer = network.get_submodule("mask_decoder.transformer")
    maps, grid = some(images, WIDTH, GRID, GRID), some(1, WIDTH, GRID, GRID)
    tokens = some(prompts, TOKENS, WIDTH)
    shared = maps.repeat_interleave(prompts // images, 0)
    stock = transformer(shared, grid.expand(prompts, -1, -1, -1), tokens)
    ours = two_way.attended(transformer, maps.flatten(2).transpose(1, 2), grid[0].flatten(1).t(), tokens)
    return stock, ours


@pytest.mark.parametrize(("images", "prompts"), [(1, 1), (1, 3), (2, 2), (2, 6)])
def test_tokens_and_image_are_those_of_the_stock_transformer(network: nn.Module, images: int, prompts: int) -> None:
    stock, ours = both(network, images, prompts)
    for expected, found in zip(stock, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_stock_transformer(network: nn.Module) -> None:
    gradients = []
    for answers in both(network, 1, 2):
        network.zero_grad()
        sum(answer.sin().sum() for answer in answers).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    stock, ours = gradients
    # The bias of keys that are image tokens has no effect, which stock SAM finds out to rounding.
    idle = {
        name
        for name in stock
        if name.endswith("token_to_image.k_proj.bias") or ("final_attn" in name and "k_proj.b" in name)
    }
    assert set(stock) - idle <= set(ours) <= set(stock)
    assert all(stock[name].abs().max() < 1e-4 for name in idle)
    for name in set(stock) - idle:
        torch.testing.assert_close(ours[name], stock[name], rtol=1e-3, atol=1e-4)


def test_lora_on_the_projections_counts(network: nn.Module) -> None:
    spec = LoraSpec(rank=2, encoder=False)
    plain = both(network, 1, 2)[1]
    with attached(network, spec, generator=torch.Generator().manual_seed(0)):
        for parameter in lora_parameters(network).values():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
        stock, ours = both(network, 1, 2)
    for expected, found in zip(stock, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[1], plain[1], atol=1e-2)


def test_masks_are_those_of_the_stock_upscaling() -> None:
    upscaling = nn.Sequential(
        nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, stride=2),
        LayerNorm2d(WIDTH // 4),
        nn.GELU(),
        nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, stride=2),
        nn.GELU(),
    )
    maps, weights = some(2, WIDTH, 5, 3), some(2, 4, WIDTH // 8)
    with torch.no_grad():
        expected = torch.einsum("nmc,nchw->nmhw", weights, upscaling(maps))
        found = two_way.mask_logits(upscaling, maps.flatten(2).transpose(1, 2), weights, (5, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_of_the_image_is_close(network: nn.Module) -> None:
    transformer = network.get_submodule("mask_decoder.transformer")
    image, positions, tokens = some(1, GRID**2, WIDTH), some(GRID**2, WIDTH), some(2, TOKENS, WIDTH)
    with torch.no_grad():
        expected = two_way.attended(transformer, image, positions, tokens)
        found = two_way.attended(transformer, image.bfloat16(), positions.bfloat16(), tokens)
    assert (found[0].dtype, found[1].dtype) == (torch.float32, torch.bfloat16)
    assert all((a - b.float()).abs().mean() < 0.02 * a.std() for a, b in zip(expected, found, strict=True))
