"""Networks small enough to adapt in milliseconds, and adaptations of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.attach import lora_parameters
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch

STRUCTURES = (1, 4)
CLICKS = PromptBatch(
    torch.tensor([[[20.0, 30], [0, 0]], [[50.0, 7], [0, 0]]]), torch.tensor([[POSITIVE, PADDING], [POSITIVE, PADDING]])
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapted(network: PromptableNetwork, seed: int = 0, **spec: object) -> Adaptation:
    lora = spec.pop("lora", LoraSpec())
    return Adaptation(network, AdaptationSpec(lora, **spec), STRUCTURES, generator=generator(seed))  # type: ignore[arg-type]


def compact() -> PromptableNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = build_compact(CompactArchitecture(64, (8, 8, 16), 32, 1, 2, 32))
    return network.eval().requires_grad_(False)


def answers(network: PromptableNetwork, prompts: PromptBatch = CLICKS) -> tuple[Tensor, Tensor]:
    image = network.normalize(torch.rand(1, 64, 64, generator=generator(9)))
    with torch.inference_mode():
        return network.decode(network.encode(image), prompts)


EVERY_KIND = pytest.mark.parametrize("kind", ["lora", "loose"])


class Network(nn.Module):
    """The parts of SAM that LoRA touches: encoder and decoder, run one after the other."""

    def __init__(self, *, image_size: int = 64, dim: int = 32, depth: int = 2, heads: int = 2, out: int = 32) -> None:
        super().__init__()
        self.image_encoder = ImageEncoderViT(
            img_size=image_size,
            patch_size=8,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            out_chans=out,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(depth - 1,),
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=out, num_heads=2, mlp_dim=64)
        self.mask_decoder = MaskDecoder(transformer_dim=out, transformer=transformer)

    def forward(self, images: Tensor) -> Tensor:
        features = self.image_encoder(images)
        points = features.mean((2, 3))[:, None].expand(-1, 3, -1)
        hidden, keys = self.mask_decoder.transformer(features, torch.zeros_like(features), points)
        return torch.cat([hidden.flatten(), keys.flatten()])


def a_network(**sizes: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(**sizes)


def some_images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=generator(7))


def train_a_little(network: nn.Module) -> None:
    """Give every adapter values away from zero."""
    with torch.no_grad():
        for seed, parameter in enumerate(lora_parameters(network).values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator(seed)))
