"""TinyViT computes what the network of its authors computes, takes LoRA as SAM does, and works at other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.errors import InputError
from FewShotSegLib.lora.attach import attached, lora_modules, lora_parameters
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch
from FewShotSegLib.sam.tiny_vit import IMAGE_SIZE, TinyViT, build_litemedsam, from_official

RECORDED = Path(__file__).parents[2] / "Golden" / "tiny_vit.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(RECORDED) as file:
        return dict(file)


def official_state(recorded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random parameters under the official names, those that the recorded answer was computed with."""
    state = {}
    for number, line in enumerate(str(recorded["names"]).split("\n")):
        name, _, text = line.partition(" ")
        shape = tuple(int(side) for side in text.strip("(),").split(",") if side.strip())
        rng = np.random.default_rng([7, number])
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 2, shape)
        elif name.endswith("num_batches_tracked"):
            value = np.array(1)
        elif len(shape) == 1 or "attention_biases" in name:
            value = rng.normal(1 if name.endswith("weight") else 0, 0.3, shape)
        else:
            value = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        state[f"image_encoder.{name}"] = torch.from_numpy(np.asarray(value)).float()
    return state


@pytest.fixture(scope="module")
def encoder(recorded: dict[str, Any]) -> TinyViT:
    network = TinyViT().eval().requires_grad_(False)
    state = from_official(official_state(recorded))
    network.load_state_dict({name.removeprefix("image_encoder."): value for name, value in state.items()})
    return network


def picture(size: int = IMAGE_SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).random((1, 3, size, size), dtype=np.float32))


@pytest.fixture
def network() -> PromptableNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_litemedsam(64).eval().requires_grad_(False)


@pytest.mark.parametrize("learning", [False, True], ids=["inference", "training"])
def test_features_are_those_of_the_official_network(encoder: TinyViT, recorded: dict[str, Any], learning: bool) -> None:
    with torch.set_grad_enabled(learning):  # the two take different ways through the layers
        features = encoder(picture())
    assert features.shape == (1, 256, 64, 64)
    assert np.abs(features[:, ::8, ::4, ::4].detach().numpy() - recorded["features"]).max() < 1e-5


def test_half_precision_is_close(encoder: TinyViT, recorded: dict[str, Any]) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = encoder(picture())[:, ::8, ::4, ::4].float().numpy()
    assert np.abs(features - recorded["features"]).mean() < 0.05  # of values with deviation 1


def test_two_images_are_encoded_as_each_alone(encoder: TinyViT) -> None:
    first, second = picture(96), picture(96).flip(3)
    with torch.inference_mode():
        both = encoder(torch.cat([first, second]))
        alone = torch.cat([encoder(first), encoder(second)])
    assert torch.allclose(both, alone, atol=1e-5)


@pytest.mark.parametrize("size", [64, 160, 288])
def test_other_sizes_are_multiples_of_32(encoder: TinyViT, size: int) -> None:
    with torch.inference_mode():
        assert encoder(picture(size)).shape == (1, 256, size // 4, size // 4)


@pytest.mark.parametrize("size", [32, 250])
def test_a_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 32, from 64; got {size}"):
        build_litemedsam(size)


def test_masks_come_at_the_resolution_of_the_image(network: PromptableNetwork) -> None:
    embedding = network.encode(network.normalize(torch.rand(2, 64, 64), "unit"))
    coords, labels = torch.full((4, 3, 2), 30.0), torch.tensor([[POSITIVE, PADDING, PADDING]]).expand(4, -1)
    logits, iou = network.decode(embedding, PromptBatch(coords, labels))
    assert (logits.shape, iou.shape) == ((4, 4, 64, 64), (4, 4))


def test_lora_learns_queries_and_values_of_every_window(network: PromptableNetwork) -> None:
    spec = LoraSpec(rank=2, mlp=True, decoder=False)
    images = network.normalize(torch.rand(1, 64, 64), "unit")
    plain = network.encode(images).features
    with attached(network, spec, generator=torch.Generator().manual_seed(0)):
        assert len([name for name in lora_modules(network) if name.endswith("attn.qkv")]) == 10
        assert torch.allclose(network.encode(images).features, plain, atol=1e-5)
        for name, parameter in lora_parameters(network).items():
            if name.endswith(".B"):
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        features = network.encode(images).features
        features.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lora_parameters(network).values())
        with torch.inference_mode():  # the fused layers of inference see LoRA as well
            assert torch.allclose(network.encode(images).features, features, atol=1e-4)
    assert torch.equal(network.encode(images).features, plain)
