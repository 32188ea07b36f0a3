"""Strides per axis and stage, and padding of inputs that are not divisible by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, int, int]

_TWICE = 1.999  # slightly below 2, so that a patch of 32 x 64 does not depend on the rounding of a quotient


def strides_of(
    patch: Sequence[int], stages: int, spacing: Sequence[float] | None = None, smallest: int = 4
) -> tuple[Shape, ...]:
    """Return the stride of each stage along D, H and W: nnU-Net's rule (Isensee et al. 2021).

    An axis is downsampled while at least `smallest` voxels remain and its spacing is less than twice the finest one:
    thick slices wait until the in-plane spacing has caught up. `spacing` (D, H, W) in any unit; without it the patch is
    assumed to have equal extent along all axes.

    >>> strides_of((32, 240, 240), 4)
    ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    >>> strides_of((40, 224, 192), 4, spacing=(2.5, 0.81, 0.81))
    ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    sizes = list(patch)
    lengths = [1 / size for size in sizes] if spacing is None else list(spacing)
    strides = []
    for _ in range(stages):
        divisible = [size >= 2 * smallest for size in sizes]
        shortest = min((length for length, able in zip(lengths, divisible, strict=True) if able), default=0.0)
        halved = [able and length < _TWICE * shortest for length, able in zip(lengths, divisible, strict=True)]
        sizes = [math.ceil(size / 2) if half else size for size, half in zip(sizes, halved, strict=True)]
        lengths = [2 * length if half else length for length, half in zip(lengths, halved, strict=True)]
        strides.append((1 + halved[0], 1 + halved[1], 1 + halved[2]))
    return tuple(strides)


def kernels_of(
    patch: Sequence[int], strides: Sequence[Shape], spacing: Sequence[float] | None = None
) -> tuple[Shape, ...]:
    """Return the kernel size of each resolution, one more than there are strides: nnU-Net's rule.

    1 along an axis whose spacing is at least twice the finest one, or that has a single voxel; else 3.

    >>> kernels_of((40, 224, 192), [(1, 2, 2), (2, 2, 2)], spacing=(2.5, 0.81, 0.81))
    ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    """
    lengths = [1 / size for size in patch] if spacing is None else list(spacing)
    kernels = []
    for stride in [(1, 1, 1), *strides]:
        lengths = [length * step for length, step in zip(lengths, stride, strict=True)]
        shortest = min(length for length, size in zip(lengths, patch, strict=True) if size > 1 or max(patch) == 1)
        wide = [size > 1 and length < _TWICE * shortest for length, size in zip(lengths, patch, strict=True)]
        kernels.append((1 + 2 * wide[0], 1 + 2 * wide[1], 1 + 2 * wide[2]))
    return tuple(kernels)


def product(strides: Sequence[Shape]) -> Shape:
    """Return the total stride along D, H and W over all stages.

    >>> product([(1, 2, 2), (2, 2, 2)])
    (2, 4, 4)
    """
    d, h, w = (math.prod(factors) for factors in zip(*strides, strict=True))
    return d, h, w


def padded(x: Tensor, multiple: Shape) -> Tensor:
    """Return x (B, C, D, H, W) padded at the end by edge replication to multiples of `multiple`."""
    margins = [-size % step for size, step in zip(x.shape[2:], multiple, strict=True)]
    if not any(margins):
        return x
    d, h, w = margins
    return F.pad(x, (0, w, 0, h, 0, d), mode="replicate")


class AnySize:
    """Mixin placed before a network class: pads inputs to multiples of `multiple` and crops outputs back.

    `HEAD`: parameter name prefixes of the last layer.
    """

    multiple: Shape
    HEAD: ClassVar[tuple[str, ...]]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, D, H, W) of images (B, in_channels, D, H, W) of any size."""
        d, h, w = x.shape[2:]
        return super().forward(padded(x, self.multiple))[..., :d, :h, :w]  # type: ignore[misc]
