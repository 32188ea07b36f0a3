"""Attention of SAM's image encoder without the (heads, N, N) score tensor, and bfloat16 encoding where it pays off.

Stock SAM materializes scores, bias and softmax of all heads at once: 800 MB each for 4096 tokens and 12 heads. Measured
for one image and ViT-B (ms for the global block at 1024 px / 14 x 14 windows at 1024 px / global block at 512 px; EPYC
with AVX-512 BF16, 1 thread, inference):

=========================================================  ================  ==============
how the relative position bias is added                     float32           bfloat16
=========================================================  ================  ==============
stock                                                       2900 / 152 / 145  1130 / 94 / 60
one-hot channels beside q and k, plain SDPA, v padded       1960 / 106 / 78   1700 / 72 / 79
the same, v not padded (SDPA takes its slow path)           3110 / 133 / 106  3530 / 182 / 160
mask tensor per head, SDPA                                  1050 / 71 / 49    910 / 88 / 61
mask tensor per 256 rows of a head, SDPA                    780 / 74 / 52     940 / 113 / 63
one-hot channels, blocks of rows, matmul-softmax-matmul     1320 / 77 / 65    450 / 30 / 24
bias written into a block of rows, then baddbmm in place    720 / 69 / 46     360 / 55 / 22
=========================================================  ================  ==============

On the CPU, scores are therefore computed block by block in a cache-sized buffer and recomputed in the backward pass. On
a GPU Triton kernels of our own do the same in registers (`attention_triton.py`); without Triton, the one-hot channels
allow PyTorch's fused kernels, which never materialize the scores either.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from FewShotSegLib.devices import Kernel, working_kernel
from FewShotSegLib.sam.modeling import Attention

# Scores materialized at once on the CPU: 8 MB in float32. 256 query rows of one head at 1024 px, 54 windows of 14 x 14.
_BLOCK_ELEMENTS = 1 << 21
# Softmaxes up to this size are kept for the backward pass: 64 MB in float32. A 512 px image in every block of ViT-B.
_KEPT_ELEMENTS = 1 << 24
# For rows shorter than this, a matrix product with one-hot columns is faster than a broadcast sum.
_SHORT_ROW = 16


def use_fused_attention(encoder: nn.Module) -> None:
    """Make every attention layer in `encoder` memory-bounded and faster. Parameters and their names are unchanged.

    Results match stock segment_anything up to rounding, for windows and global blocks, forward and backward.
    """
    found = 0
    for module in encoder.modules():
        if isinstance(module, FusedAttention):
            found += 1
        elif _is_encoder_attention(module):
            # Swapping the class preserves parameters, hooks, wrapped children and deepcopy.
            module.__class__ = FusedAttention
            found += 1
    if not found:
        raise TypeError(f"{type(encoder).__name__} holds no attention of segment_anything's image encoder")


def _is_encoder_attention(module: nn.Module) -> bool:
    # By name as well: an encoder may come from a second copy of segment_anything (see modeling.py).
    return isinstance(module, Attention) or (type(module).__name__ == "Attention" and hasattr(module, "qkv"))


class FusedAttention(Attention):
    """segment_anything's encoder attention without ever materializing all scores."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> tokens (B, H, W, C)."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # each B*heads N c
        if self.use_rel_pos:
            rel_h, rel_w = _relative_scores(q, self.rel_pos_h, self.rel_pos_w, (height, width))
        else:
            rel_h, rel_w = q.new_zeros(len(q), height * width, height), q.new_zeros(len(q), height * width, width)
        out = self._mixed(q, k, v, rel_h, rel_w)
        out = out.view(batch, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        return self.proj(out.reshape(batch, height, width, -1))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        attend = _one_hot_attention
        if q.device.type == "cpu":
            attend = _BlockedAttention.apply
        elif q.dtype != torch.float64:
            attend = _triton_attention(q.device.type) or attend
        return attend(q, k, v, rel_h, rel_w, self.scale)


class SmallAttention(FusedAttention):
    """The same for the roughly hundred tokens of the compact model, whose score tensor is small: the bias is
    materialized and added by PyTorch's fused attention. For training on a CPU, the unfused form is faster in bfloat16.
    """

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
        if q.device.type != "cpu" or not torch.is_grad_enabled():
            return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None], scale=self.scale)[0]
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias
        return torch.softmax(scores, -1) @ v


def _relative_scores(q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The two parts of the bias of query n on key (y, x), which is rel_h[:, n, y] + rel_w[:, n, x].

    q (M, N, c) -> rel_h (M, N, H), rel_w (M, N, W).
    """
    height, width = size
    table_h = relative_table(rel_pos_h, height).to(q.dtype)  # H H c
    table_w = relative_table(rel_pos_w, width).to(q.dtype)  # W W c
    grid = q.view(len(q), height, width, -1)
    rel_h = torch.einsum("mhwc,hkc->mhwk", grid, table_h)
    rel_w = torch.einsum("mhwc,wkc->mhwk", grid, table_w)
    return rel_h.flatten(1, 2).to(q.dtype), rel_w.flatten(1, 2).to(q.dtype)


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """Embeddings (size, size, c) of query n and key m on one axis: row n - m + size - 1 of `rel_pos` (2 size - 1, c).

    Equivalent to segment_anything's `get_rel_pos`, but using views only: that one indexes with a CPU tensor, which
    forces a GPU synchronization.
    """
    if len(rel_pos) != 2 * size - 1:
        rel_pos = F.interpolate(rel_pos.t()[None], 2 * size - 1, mode="linear")[0].t()
    return rel_pos.unfold(0, size, 1).flip(2).transpose(1, 2)


def _one_hot_rows(height: int, width: int, like: Tensor) -> Tensor:
    """(H + W, H * W): row y is 1 at the keys of image row y, row H + x at the keys of image column x."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 1)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(1, height)
    return torch.cat([rows, columns])


def _one_hot_attention(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Fold the bias into extra channels: [scale q, rel_h, rel_w] . [k, onehot(y), onehot(x)] is the biased score."""
    hot = _one_hot_rows(rel_h.shape[-1], rel_w.shape[-1], q).t().expand(len(q), -1, -1)
    long_q = torch.cat([q * scale, rel_h, rel_w], -1)
    long_k = torch.cat([k, hot], -1)
    # Fused kernels require q, k and v of equal width, a multiple of eight.
    width = -(-long_q.shape[-1] // 8) * 8
    long_q, long_k, long_v = (F.pad(t, (0, width - t.shape[-1]))[None] for t in (long_q, long_k, v))
    return F.scaled_dot_product_attention(long_q, long_k, long_v, scale=1.0)[0, :, :, : v.shape[-1]]


@functools.cache
def _triton_attention(device: str) -> Kernel | None:
    """The attention for a GPU, where there is Triton."""
    if device != "cuda":
        return None

    def load() -> Kernel:
        from FewShotSegLib.sam.attention_triton import TritonAttention

        return TritonAttention.apply

    def attempt(attend: Kernel) -> None:
        tiny = [torch.ones(1, 4, width, device=device, requires_grad=True) for width in (16, 16, 16, 2, 2)]
        attend(*tiny, 1.0).sum().backward()

    return working_kernel(load, attempt, "SAM's attention")


def _blocks(count: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Cut (count, tokens) query rows into blocks whose scores against all tokens fit `_BLOCK_ELEMENTS`."""
    heads = max(1, min(count, _BLOCK_ELEMENTS // (tokens * tokens)))
    rows = tokens if heads > 1 else max(1, min(tokens, _BLOCK_ELEMENTS // tokens))
    for first in range(0, count, heads):
        for row in range(0, tokens, rows):
            yield slice(first, min(first + heads, count)), slice(row, min(row + rows, tokens))


class _Scores:
    """Softmax of biased scores for one block of query rows, in a buffer reused for the next block."""

    def __init__(self, q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> None:
        self.q, self.k, self.rel_h, self.rel_w, self.scale = q, k, rel_h, rel_w, scale
        self.height, self.width = rel_h.shape[-1], rel_w.shape[-1]
        self.hot = _one_hot_rows(self.height, self.width, q) if self.width < _SHORT_ROW else None
        self.scores, self.softmax = q.new_empty(0), q.new_empty(0)

    def probabilities(self, heads: slice, rows: slice, out: Tensor | None = None) -> Tensor:
        """(heads, rows, N) in `out`, or in a buffer that is valid until the next call."""
        q, rel_h, rel_w = self.q[heads, rows], self.rel_h[heads, rows], self.rel_w[heads, rows]
        shape = (q.shape[0], q.shape[1], self.k.shape[1])
        if self.scores.shape != shape:
            self.scores, self.softmax = q.new_empty(shape), q.new_empty(shape if out is None else 0)
        if self.hot is None:
            grid = self.scores.view(*shape[:2], self.height, self.width)
            torch.add(rel_h[..., :, None], rel_w[..., None, :], out=grid)
        else:
            hot = self.hot.expand(shape[0], -1, -1)
            torch.bmm(torch.cat([rel_h, rel_w], -1), hot, out=self.scores)
        self.scores.baddbmm_(q, self.k[heads].transpose(1, 2), alpha=self.scale)
        return torch.softmax(self.scores, -1, out=self.softmax if out is None else out)

    def bias_gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of scores (heads, rows, N) -> of rel_h (heads, rows, H) and of rel_w (heads, rows, W)."""
        if self.hot is not None:
            both = torch.bmm(grad, self.hot.t().expand(len(grad), -1, -1))
            return both[..., : self.height], both[..., self.height :]
        grid = grad.view(*grad.shape[:2], self.height, self.width)
        return grid.sum(-1), grid.sum(-2)


class _BlockedAttention(torch.autograd.Function):
    """softmax(scale q k^T + bias) v, in blocks of query rows.

    The backward pass recomputes large softmaxes block by block; small ones are stored, which is faster.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        count, tokens, _ = q.shape
        keep = any(ctx.needs_input_grad) and count * tokens * tokens <= _KEPT_ELEMENTS
        kept = q.new_empty(count, tokens, tokens) if keep else None
        out = torch.empty_like(v)
        with torch.autocast(q.device.type, enabled=False):
            scores = _Scores(q, k, rel_h, rel_w, scale)
            for heads, rows in _blocks(count, tokens):
                p = scores.probabilities(heads, rows, None if kept is None else kept[heads, rows])
                out[heads, rows] = torch.bmm(p, v[heads])
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out, kept)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rel_h, rel_w, out, kept = ctx.saved_tensors
        scale, grad = ctx.scale, grad.contiguous()
        # Sums over blocks are accumulated in at least float32: sixteen bfloat16 terms would lose the small gradients.
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_h, grad_w = torch.empty_like(q), torch.empty_like(rel_h), torch.empty_like(rel_w)
        grad_k, grad_v = torch.empty_like(k, dtype=wide), torch.empty_like(v, dtype=wide)
        # Row sums of probability times its gradient, from the output alone (FlashAttention, Dao et al. 2022, eq. 4).
        row_sum = (grad * out).sum(-1, keepdim=True)
        with torch.autocast(q.device.type, enabled=False):
            scores = _Scores(q, k, rel_h, rel_w, scale)
            for heads, rows in _blocks(*q.shape[:2]):
                p = scores.probabilities(heads, rows) if kept is None else kept[heads, rows]
                g = grad[heads, rows]
                _add_up(grad_v[heads], torch.bmm(p.transpose(1, 2), g), rows)
                d = torch.bmm(g, v[heads].transpose(1, 2)).sub_(row_sum[heads, rows]).mul_(p)  # heads rows N
                grad_q[heads, rows] = torch.bmm(d, k[heads]).mul_(scale)
                _add_up(grad_k[heads], torch.bmm(d.transpose(1, 2), q[heads, rows]).mul_(scale), rows)
                grad_h[heads, rows], grad_w[heads, rows] = scores.bias_gradients(d)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_h, grad_w, None


def _add_up(total: Tensor, part: Tensor, rows: slice) -> None:
    """Accumulate the contribution of one block of query rows; the first block initializes the sum."""
    if rows.start == 0:
        total.copy_(part)
    else:
        total.add_(part)
