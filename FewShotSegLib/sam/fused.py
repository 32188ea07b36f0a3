"""Layers and GELU in one pass on a CPU.

PyTorch writes what a layer computes to memory and reads it back for the GELU. On maps as large as those of TinyViT's
first stage that costs more than the arithmetic. oneDNN, which PyTorch brings along, applies the GELU while the numbers
are still in the cache, and maps are taken in strips of rows that fit there. Both for inference alone: there are no
gradients. Elsewhere, and where oneDNN is missing, PyTorch's own layers compute the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP_ROWS = 16  # of a map with 256 columns and channels: 2 MB in bfloat16, a core's second-level cache


def gelu_of(layer: nn.Module, x: Tensor, *, padding: tuple[int, int] | None = None) -> Tensor:
    """GELU(layer(x)) for a convolution of (B, C, H, W) or a linear layer of (..., C).

    `padding` (rows, columns) takes the place of the convolution's own.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not _can_fuse(layer, x):
        if padding is None or not isinstance(layer, nn.Conv2d):
            return F.gelu(layer(x))
        return F.gelu(F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    x, weight = x.to(dtype), layer.weight.to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    if isinstance(layer, nn.Conv2d):
        shape = padding or layer.padding, layer.stride, layer.dilation, layer.groups
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *shape, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")


def bottleneck(x: Tensor, expand: nn.Conv2d, depthwise: nn.Conv2d, project: nn.Conv2d, *, residual: bool) -> Tensor:
    """project(GELU(depthwise(GELU(expand(x))))) of (B, C, H, W), or with the residual GELU(x + this).

    The depthwise convolution is 3 x 3; the others see single pixels.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        y = project(gelu_of(depthwise, gelu_of(expand, x)))
        return F.gelu(x + y) if residual else y
    stride, height = depthwise.stride[0], x.shape[2]
    strips = []
    for first in range(0, -(-height // stride), STRIP_ROWS):
        last = min(first + STRIP_ROWS, -(-height // stride)) - 1
        top, bottom = first * stride - 1, last * stride + 2  # of what the strip's depthwise convolution sees
        wide = gelu_of(expand, x[:, :, max(top, 0) : min(bottom, height)])
        wide = F.pad(wide, (0, 0, int(top < 0), int(bottom > height)))
        y = project(gelu_of(depthwise, wide, padding=(0, 1)))
        strips.append(F.gelu(y.add_(x[:, :, first : last + 1])) if residual else y)
    return torch.cat(strips, 2)


def _can_fuse(layer: nn.Module, x: Tensor) -> bool:
    # A wrapped layer, such as one with LoRA, is more than its weights.
    plain = type(layer) in (nn.Linear, nn.Conv2d)
    return plain and x.device.type == "cpu" and not torch.is_grad_enabled() and _has_onednn()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
