"""MONAI's Swin UNETR (Hatamizadeh et al. 2022), "SwinUNet" of the ASAP paper, with strides adapted to the patch."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from monai.networks.nets import swin_unetr
from torch import Tensor, nn

from FewShotSegLib.networks.shape import AnySize, Shape, product, strides_of

# Feature size, blocks per stage, heads of the first stage. "paper" is MONAI's default.
SIZES = {"small": (12, (1, 1, 1, 1), 1), "paper": (24, (2, 2, 2, 2), 3)}
STAGES = 5  # patch embedding and four patch merging layers
SMALLEST = 2  # remaining voxels: patches of 64 and 96 are downsampled five times, as in MONAI


class SwinUNet(AnySize, swin_unetr.SwinUNETR):
    """MONAI's `SwinUNETR`; where the patch allows every stage to halve every axis, it *is* that network, weights
    included.

    Thick slices are merged later than in-plane, where MONAI would halve all axes alike.
    """

    HEAD = ("out.",)

    def __init__(
        self, in_channels: int, out_channels: int, patch: Shape, spacing: tuple[float, ...] | None, size: str
    ) -> None:
        features, depths, heads = SIZES[size]
        strides = strides_of(patch, STAGES, spacing, SMALLEST)
        stride_of = {features * 2**stage: stride for stage, stride in enumerate(strides[1:])}
        super().__init__(
            in_channels,
            out_channels,
            patch_size=strides[0],  # type: ignore[arg-type]
            depths=depths,
            num_heads=[heads * 2**stage for stage in range(4)],
            feature_size=features,
            downsample=partial(_merging, stride_of),  # type: ignore[arg-type]
        )
        decoders = (self.decoder1, self.decoder2, self.decoder3, self.decoder4, self.decoder5)
        for decoder, stride in zip(decoders, strides, strict=True):
            old = decoder.transp_conv.conv
            decoder.transp_conv.conv = nn.ConvTranspose3d(
                old.in_channels, old.out_channels, kernel_size=stride, stride=stride, bias=old.bias is not None
            )
        self.multiple = product(strides)

    def _check_input_size(self, spatial_shape: object) -> None:
        """Disable MONAI's check: inputs are padded to the required divisor, which differs from MONAI's."""


class PatchMerging(nn.Module):
    """Patch merging: (B, D, H, W, C) -> (B, D/s, H/s, W/s, 2C)."""

    def __init__(self, dim: int, stride: Shape, norm_layer: type[nn.LayerNorm]) -> None:
        super().__init__()
        self.stride = stride
        merged = dim * math.prod(stride)
        self.reduction = nn.Linear(merged, 2 * dim, bias=False)
        self.norm = norm_layer(merged)

    def forward(self, x: Tensor) -> Tensor:
        d, h, w = self.stride
        offsets = itertools.product(range(d), range(h), range(w))
        return self.reduction(self.norm(torch.cat([x[:, i::d, j::h, k::w] for i, j, k in offsets], -1)))


def _merging(strides: dict[int, Shape], dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int) -> nn.Module:
    """Return the patch merging of the stage with `dim` channels; MONAI's own where it applies, so its weights fit."""
    if strides[dim] == (2, 2, 2):
        return swin_unetr.PatchMerging(dim, norm_layer, spatial_dims)
    return PatchMerging(dim, strides[dim], norm_layer)
