"""MambaUNet: a U-Net of selective state spaces for 3-D patches, in plain torch.

After Wang et al. 2024, "Mamba-UNet", and the VSS blocks of Liu et al. 2024, "VMamba".

Departures, all due to the third dimension. Tokens are scanned within each slice, along rows and columns in both
directions, and across slices in both directions; one scan over the whole patch would be a hundred thousand steps long.
The embedding downsamples like the patch (4 x 4 within thick slices, 4 x 4 x 4 for isotropic voxels). A convolution at
full resolution is added before the last layer: tokens of 16 to 64 voxels cannot resolve a vessel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.networks.scan import directional_scans
from FewShotSegLib.networks.shape import Shape, padded, product, strides_of

EMBEDDING = 2  # downsampling steps in the patch embedding


@dataclass(frozen=True)
class MambaSize:
    """Channels of the first stage, blocks per stage, states N per channel, inner channels per channel."""

    dim: int
    depths: tuple[int, ...]
    states: int
    expand: int


# "paper": dim 96, two blocks per stage, 16 states and expand 2 as in Mamba-UNet.
SIZES = {"small": MambaSize(32, (1, 1, 1, 1), 8, 1), "paper": MambaSize(96, (2, 2, 2, 2), 16, 2)}


class MambaUNet(nn.Module):
    """Logits (B, out_channels, D, H, W) of images (B, in_channels, D, H, W) of any size."""

    HEAD = ("head.",)

    def __init__(
        self, in_channels: int, out_channels: int, patch: Shape, spacing: tuple[float, ...] | None, size: str
    ) -> None:
        super().__init__()
        measures = SIZES[size]
        strides = strides_of(patch, EMBEDDING + len(measures.depths) - 1, spacing)
        embedding, merged = product(strides[:EMBEDDING]), strides[EMBEDDING:]
        self.multiple = product(strides)
        widths = [measures.dim * 2**stage for stage in range(len(measures.depths))]
        thin = patch[0] == 1
        stages = [_blocks(width, depth, measures, thin) for width, depth in zip(widths, measures.depths, strict=True)]
        self.embed = nn.Conv3d(in_channels, widths[0], kernel_size=embedding, stride=embedding)
        self.embed_norm = nn.LayerNorm(widths[0])
        self.encode = nn.ModuleList(stages)
        self.merge = nn.ModuleList(Merge(width, stride) for width, stride in zip(widths, merged, strict=False))
        self.expand = nn.ModuleList(Spread(2 * width, width, s) for width, s in zip(widths, merged, strict=False))
        self.fuse = nn.ModuleList(nn.Linear(2 * width, width) for width in widths[:-1])
        self.decode = nn.ModuleList(
            _blocks(width, depth, measures, thin)
            for width, depth in zip(widths[:-1], measures.depths[:-1], strict=True)
        )
        fine = max(measures.dim // 4, 8)
        self.stem = _convolution(in_channels, fine, thin)
        self.spread = Spread(widths[0], fine, embedding)
        self.refine = _convolution(2 * fine, fine, thin)
        self.head = nn.Conv3d(fine, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        d, h, w = x.shape[2:]
        x = padded(x, self.multiple)
        tokens = self.embed_norm(_channels_last(self.embed(x)))
        skips = []
        for blocks, merge in zip(self.encode, self.merge, strict=False):  # nothing follows the last stage
            skips.append(blocks(tokens))
            tokens = merge(skips[-1])
        tokens = self.encode[-1](tokens)
        for stage in reversed(range(len(skips))):
            joined = torch.cat([self.expand[stage](tokens), skips[stage]], -1)
            tokens = self.decode[stage](self.fuse[stage](joined))
        fine = torch.cat([_channels_first(self.spread(tokens)), self.stem(x)], 1)
        return self.head(self.refine(fine))[..., :d, :h, :w]


class StateSpaceBlock(nn.Module):
    """VMamba's block on tokens (B, D, H, W, C): a depthwise convolution, scans in all directions, and a gate."""

    def __init__(self, width: int, size: MambaSize, thin: bool) -> None:
        super().__init__()
        inner = size.expand * width
        orders = ("row", "column") if thin else ("row", "column", "axial")
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.mix = nn.Conv3d(inner, inner, _kernel(thin), padding="same", groups=inner)
        self.scans = nn.ModuleList(
            DirectionalScan(inner, size.states, order, backwards) for order in orders for backwards in (False, True)
        )
        self.scans_norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = F.silu(_channels_last(self.mix(_channels_first(u))))
        y = scanned(u, cast(Sequence[DirectionalScan], self.scans))
        return x + self.leave(self.scans_norm(y) * F.silu(gate))


class DirectionalScan(nn.Module):
    """A selective scan of tokens (B, D, H, W, E) in one order, with its own projections to step, B and C."""

    def __init__(self, width: int, states: int, order: str, backwards: bool) -> None:
        super().__init__()
        self.direction = order, backwards
        rank = math.ceil(width / 16)
        self.parts = [rank, states, states]
        self.project = nn.Linear(width, sum(self.parts), bias=False)
        self.step = nn.Linear(rank, width)
        # Mamba's initialization: A = -1 ... -N, steps from 1e-3 to 1e-1, evenly on a logarithmic scale, D = 1.
        self.log_decay = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.exp(torch.empty(width).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        return scanned(x, [self])


def scanned(x: Tensor, scans: Sequence[DirectionalScan]) -> Tensor:
    """The sum of the scans of tokens x (B, D, H, W, E). Their projections are made together: one by one they would be
    hundreds of small operators, which a GPU waits for.
    """
    weights = torch.cat([scan.project.weight for scan in scans])
    projected = F.linear(x, weights).reshape(-1, len(scans), sum(scans[0].parts)).transpose(0, 1)
    step, write, read = projected.split(scans[0].parts, dim=-1)
    widening = torch.stack([scan.step.weight for scan in scans]).transpose(1, 2)
    bias = torch.stack([scan.step.bias for scan in scans])
    delta = F.softplus(torch.baddbmm(bias[:, None], step, widening))
    decay = -torch.exp(torch.stack([scan.log_decay for scan in scans]))
    skip = torch.stack([scan.skip for scan in scans])
    return directional_scans(x, delta, decay, write, read, skip, [scan.direction for scan in scans])


class Merge(nn.Module):
    """Patch merging: (B, D, H, W, C) -> (B, D/s, H/s, W/s, 2C)."""

    def __init__(self, width: int, stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(width * math.prod(stride))
        self.reduce = nn.Linear(width * math.prod(stride), 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, *sizes, width = x.shape
        (d, h, w), (i, j, k) = sizes, self.stride
        x = x.reshape(b, d // i, i, h // j, j, w // k, k, width).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return self.reduce(self.norm(x.flatten(4)))


class Spread(nn.Module):
    """Patch expanding: (B, D, H, W, C) -> (B, Ds, Hs, Ws, C')."""

    def __init__(self, width: int, width_after: int, stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.widen = nn.Linear(width, width_after * math.prod(stride), bias=False)
        self.norm = nn.LayerNorm(width_after)

    def forward(self, x: Tensor) -> Tensor:
        b, d, h, w, _ = x.shape
        i, j, k = self.stride
        x = self.widen(x).reshape(b, d, h, w, i, j, k, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return self.norm(x.reshape(b, d * i, h * j, w * k, -1))


def _blocks(width: int, depth: int, size: MambaSize, thin: bool) -> nn.Sequential:
    return nn.Sequential(*(StateSpaceBlock(width, size, thin) for _ in range(depth)))


def _convolution(in_channels: int, out_channels: int, thin: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, _kernel(thin), padding="same", bias=False),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


def _kernel(thin: bool) -> Shape:
    return (1, 3, 3) if thin else (3, 3, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3)
