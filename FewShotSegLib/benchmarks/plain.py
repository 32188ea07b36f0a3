"""Baselines of `speed`: stock segment_anything, and a straightforward LoRA step on it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from FewShotSegLib.sam.attention import FusedAttention
from FewShotSegLib.sam.loading import build_sam
from FewShotSegLib.sam.modeling import Attention, MaskDecoder
from FewShotSegLib.sam.network import Embedding, PromptableNetwork, PromptBatch


class PlainNetwork(PromptableNetwork):
    """Stock attention; prompts go through the stock mask decoder one at a time."""

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Logits (N, M, h', w') and predicted IoU (N, M), as returned by `PromptableNetwork.decode`."""
        decoder: MaskDecoder = self.mask_decoder
        grid = self.prompt_encoder.get_dense_pe()
        _, dense = self.prompt_encoder(None, None, None)
        answers = []
        for number, sparse in enumerate(self.sparse_embedding(prompts)):
            image = number * len(embedding.features) // len(prompts)
            features = embedding.features[image : image + 1]
            answers.append(decoder.predict_masks(features, grid, sparse[None], dense))
        logits, iou = zip(*answers, strict=True)
        return torch.cat(logits), torch.cat(iou)


def plain_copy(network: PromptableNetwork) -> PlainNetwork:
    """The same weights in stock segment_anything."""
    parts: list[nn.Module] = [
        copy.deepcopy(part) for part in (network.image_encoder, network.prompt_encoder, network.mask_decoder)
    ]
    for module in parts[0].modules():
        if isinstance(module, FusedAttention):
            module.__class__ = Attention  # whose forward is segment_anything's own
    plain = PlainNetwork(*parts, name=network.name, image_size=network.image_size).to(network.device)
    return plain.eval().requires_grad_(False)


def random_vit_b(image_size: int, seed: int = 0) -> PromptableNetwork:
    """ViT-B with random weights. Zero-initialized ones are filled too, or position would not affect the comparison."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_sam("vit_b", image_size)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "rel_pos" in name:
                    parameter.normal_(std=0.1)
                elif name.endswith("pos_embed"):
                    parameter.normal_(std=0.02)
    return network.eval().requires_grad_(False)
