"""Fused layers with GELU on a CPU.

PyTorch writes a layer's output to memory and reads it back for the GELU. On feature maps as large as those of TinyViT's
first stage that costs more than the arithmetic. oneDNN, which ships with PyTorch, applies the GELU while the values are
still in the cache; maps are processed in strips of rows and tokens in chunks that fit there. Both are inference-only:
there are no gradients. Elsewhere, and where oneDNN is missing, PyTorch's own layers compute the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.sam.modeling import LayerNorm2d

STRIP_ROWS = 16  # of a map with 256 columns and channels: 2 MB in bfloat16, a core's second-level cache
PORTION = 2048  # tokens of an MLP with 512 to 1280 hidden channels

_Layer = Callable[[Tensor], Tensor]


class ChannelNorm(LayerNorm2d):
    """SAM's layer norm over the channels of (B, C, H, W), as one op instead of nine."""

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of the weights, as in SAM; without a copy where `x` is in channels-last memory format."""
        tokens = x.permute(0, 2, 3, 1).to(self.weight.dtype)
        return F.layer_norm(tokens, tokens.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def linear_of(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) for a linear layer of (..., C). In inference, oneDNN adds the bias without copying it."""
    return _prepared(layer, x)(x)


def mlp(x: Tensor, norm: nn.Module, widen: nn.Module, narrow: nn.Module) -> Tensor:
    """x + narrow(GELU(widen(norm(x)))) of tokens (..., C); `norm` is per token, too."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return x + narrow(F.gelu(widen(norm(x))))
    widened, narrowed = _prepared(widen, x, gelu=True), _prepared(narrow, x)
    tokens = x.reshape(-1, x.shape[-1])
    result = torch.empty_like(tokens)
    for part, out in zip(tokens.split(PORTION), result.split(PORTION), strict=True):
        torch.add(part, narrowed(widened(norm(part))), out=out)
    return result.view(x.shape)


def bottleneck(x: Tensor, expand: nn.Conv2d, depthwise: nn.Conv2d, project: nn.Conv2d, *, residual: bool) -> Tensor:
    """project(GELU(depthwise(GELU(expand(x))))) of (B, C, H, W), or with the residual GELU(x + this).

    The depthwise convolution is 3 x 3; the others are pointwise.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        y = project(F.gelu(depthwise(F.gelu(expand(x)))))
        return F.gelu(x + y) if residual else y
    widened, narrowed = _prepared(expand, x, gelu=True), _prepared(project, x)
    seen = _prepared(depthwise, x, gelu=True, padding=(0, 1))
    stride, height = depthwise.stride[0], x.shape[2]
    rows, result = -(-height // stride), x.new_empty(0)
    for first in range(0, rows, STRIP_ROWS):
        last = min(first + STRIP_ROWS, rows) - 1
        top, bottom = first * stride - 1, last * stride + 2  # receptive field of the strip's depthwise convolution
        wide = widened(x[:, :, max(top, 0) : min(bottom, height)])
        if top < 0 or bottom > height:  # zero-width padding would copy
            wide = F.pad(wide, (0, 0, int(top < 0), int(bottom > height)))
        y = narrowed(seen(wide))
        if not first:
            shape = *y.shape[:2], rows, y.shape[3]
            result = torch.empty(shape, dtype=y.dtype, memory_format=torch.channels_last)
        part = result[:, :, first : last + 1]
        if residual:
            torch.ops.aten.gelu.out(y.add_(x[:, :, first : last + 1]), out=part)
        else:
            part.copy_(y)
    return result


def _prepared(layer: nn.Module, x: Tensor, *, gelu: bool = False, padding: tuple[int, int] | None = None) -> _Layer:
    """`layer` prepared for inputs such as `x`, optionally followed by GELU; its weights are cast once.

    `padding` (rows, columns) overrides the convolution's own.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not _can_fuse(layer, x):
        plain = layer if padding is None or not isinstance(layer, nn.Conv2d) else _padded(layer, padding)
        return (lambda x: F.gelu(plain(x))) if gelu else plain
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    weight, bias = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    then: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    if isinstance(layer, nn.Linear):
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, *then)
    shape = padding or layer.padding, layer.stride, layer.dilation, layer.groups
    return lambda x: torch.ops.mkldnn._convolution_pointwise(x.to(dtype), weight, bias, *shape, *then)


def _padded(layer: nn.Conv2d, padding: tuple[int, int]) -> _Layer:
    return lambda x: F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


def _can_fuse(layer: nn.Module, x: Tensor) -> bool:
    # A wrapped layer, such as one with LoRA, is more than its weights.
    plain = type(layer) in (nn.Linear, nn.Conv2d)
    precise = x.dtype not in (torch.float32, torch.bfloat16)  # double, or half precision that oneDNN may lack
    return plain and not precise and x.device.type == "cpu" and not torch.is_grad_enabled() and _has_onednn()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
