"""Heads trained alongside LoRA: the structure locator, and a two-class mask decoder."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.sam.network import Embedding

BACKGROUND, TARGET = 0, 1


LOCATOR_SKIPS = 2  # the coarsest ones; finer skips encode edges and texture, not location


class Locator(nn.Module):
    """Coarse location of each structure: logits (B, K + 1, h, w), background first, from the encoder's features.

    Its output is passed to the decoder as a mask prompt. Without clicks, something has to localize the structure; a
    small head with dense supervision learns that in seconds, tokens alone do not. Its inputs are features, skips and
    the position in the slice, since organs lie in similar places in every patient.
    """

    HIDDEN = 128
    POSITIONS = 7

    def __init__(self, embedding_channels: tuple[int, ...], structures: int, *, generator: torch.Generator) -> None:
        super().__init__()
        channels = sum(embedding_channels) + self.POSITIONS
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        conv = functools.partial(nn.utils.skip_init, nn.Conv2d)  # initializing a layer would use the global generator
        self.inputs = conv(channels, self.HIDDEN, 1)
        self.mix = conv(self.HIDDEN, self.HIDDEN, 3, padding=1)
        self.output = conv(self.HIDDEN, structures + 1, 1)
        with torch.no_grad():
            for layer in (self.inputs, self.mix, self.output):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * fan_in**-0.5)
                layer.bias.copy_(torch.zeros(len(layer.weight)))

    def standardize(self, embedding: Embedding) -> None:
        """Standardizes every input channel to mean 0 and SD 1 over these slices; without it training is ten times
        slower.
        """
        with torch.no_grad():
            maps = self._maps(embedding).float()
            self.shift.copy_(-maps.mean((0, 2, 3), keepdim=True))
            self.scale.copy_(1 / (maps.std((0, 2, 3), keepdim=True) + 1e-4))

    def forward(self, embedding: Embedding) -> Tensor:
        hidden = F.relu(self.inputs((self._maps(embedding) + self.shift) * self.scale))
        return self.output(F.relu(self.mix(hidden)))

    def _maps(self, embedding: Embedding) -> Tensor:
        """All inputs on the grid of the coarsest skip, or of the features if there are no skips."""
        height, width = (embedding.skips[0] if embedding.skips else embedding.features).shape[-2:]
        grid = (height, width)
        maps = [F.interpolate(embedding.features, grid, mode="bilinear")]
        maps += [F.adaptive_avg_pool2d(skip, grid) for skip in embedding.skips[:LOCATOR_SKIPS]]
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=maps[0].device) for n in grid), indexing="ij")
        position = torch.stack([x, y, x * x, y * y, x * y, x**3, y**3]).to(maps[0].dtype)
        return torch.cat([*maps, position.expand(len(maps[0]), -1, -1, -1)], dim=1)

    @staticmethod
    def log_odds(logits: Tensor) -> Tensor:
        """Logits (B, K + 1, h, w) -> log(p / (1 - p)) of each structure, (B, K, h, w)."""
        log_p = F.log_softmax(logits.float(), dim=1)[:, 1:]
        return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


def two_class_decoder(decoder: Any) -> Any:
    """A copy of a SAM mask decoder with two mask tokens: background, then target.

    The target is initialized from SAM's token 0, its output for an unambiguous prompt. The background takes token 1,
    with the last layer of its hypernetwork at zero: softmax over (0, target) is then SAM's own sigmoid, so training
    starts from the base model's masks rather than from an untrained head. SAM's other tokens produce no masks any more,
    but stay in the attention as constants, because the output of token 0 depends on them.
    """
    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        base_tokens = decoder.mask_tokens.weight
        # from_pretrained and skip_init, because initializing layers would use the global generator.
        twin.mask_tokens = nn.Embedding.from_pretrained(base_tokens[[1, 0]].clone(), freeze=False)
        twin.register_buffer("silent_tokens", base_tokens[2:].clone(), persistent=False)
        background = copy.deepcopy(decoder.output_hypernetworks_mlps[1])
        background.layers[-1].weight.zero_()
        background.layers[-1].bias.zero_()
        twin.output_hypernetworks_mlps = nn.ModuleList(
            [background, copy.deepcopy(decoder.output_hypernetworks_mlps[0])]
        )
        last = decoder.iou_prediction_head.layers[-1]
        twin.iou_prediction_head.layers[-1] = nn.utils.skip_init(
            nn.Linear, last.in_features, 2, device=last.weight.device, dtype=last.weight.dtype
        )
        for row, source in ((BACKGROUND, 1), (TARGET, 0)):
            twin.iou_prediction_head.layers[-1].weight[row] = last.weight[source]
            twin.iou_prediction_head.layers[-1].bias[row] = last.bias[source]
    twin.num_mask_tokens = 2
    return twin


def target_of(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, h, w) and predicted IoU (N,) of the target, from `PromptableNetwork.decode` of either head.

    Two tokens: the logit of a two-class softmax. SAM's own head: token 0.
    """
    if logits.shape[1] == 2:
        return logits[:, TARGET] - logits[:, BACKGROUND], iou[:, TARGET]
    return logits[:, 0], iou[:, 0]
