"""The networks of a CycleGAN on slices: a residual generator, and a PatchGAN discriminator.

After Zhu et al. 2017 and its reference code. The generator departs in two ways. It upsamples by nearest neighbour and a
convolution, because transposed convolutions cause checkerboard artefacts (Odena et al. 2016), which are all edges. And
with `skip`, an option, its output is added to the input instead of replacing it, so that it starts as the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 4  # two downsampling steps


class Generator(nn.Module):
    """Images (B, slices, H, W) in [0, 1], of any size, to images of the same shape.

    7 x 7 convolution, two downsampling steps to 4 x `channels`, `blocks` residual blocks, two upsampling steps, 7 x 7
    convolution; instance norm throughout. Without `skip` the output is in [0, 1]; with it, slightly beyond: clamp it.
    """

    def __init__(self, slices: int, channels: int, blocks: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        wide = MULTIPLE * channels
        self.body = nn.Sequential(
            *_convolved(slices, channels, kernel=7),
            *_convolved(channels, 2 * channels, stride=2),
            *_convolved(2 * channels, wide, stride=2),
            *(_Residual(wide) for _ in range(blocks)),
            nn.Upsample(scale_factor=2),
            *_convolved(wide, 2 * channels),
            nn.Upsample(scale_factor=2),
            *_convolved(2 * channels, channels),
        )
        self.head = nn.Conv2d(channels, slices, 7, padding=3, padding_mode="reflect")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if skip:
            nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        fitted = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        answer = torch.tanh(self.head(self.body(2 * fitted - 1)))[..., :height, :width]
        return images + answer if self.skip else (answer + 1) / 2


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolved(channels, channels), *_convolved(channels, channels)[:-1])

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


def _convolved(given: int, channels: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution with reflection padding, instance norm, ReLU."""
    convolution = nn.Conv2d(given, channels, kernel, stride, padding=kernel // 2, padding_mode="reflect")
    return [convolution, nn.InstanceNorm2d(channels), nn.ReLU()]


class Discriminator(nn.Module):
    """Images (B, slices, H, W) to logits (B, 1, h, w): realness of each patch.

    The receptive field is 70 pixels with 3 `layers` (the reference), 34 with 2, 16 with 1. There is no final
    activation; it is part of the losses.
    """

    def __init__(self, slices: int, channels: int, layers: int) -> None:
        super().__init__()
        from monai.networks.nets import PatchDiscriminator  # takes seconds; the options are shown without it

        self.body = PatchDiscriminator(2, channels, slices, num_layers_d=layers, norm="INSTANCE")

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)[-1]
