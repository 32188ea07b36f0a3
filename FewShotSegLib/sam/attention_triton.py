"""SAM's attention with relative positions as Triton kernels (after FlashAttention-2, Dao 2023).

The bias of query n on the key in row y and column x of the image is rel_h[n, y] + rel_w[n, x]. A block of keys is one
row of the image, so rel_h is one number per query and rel_w one tile that stays in registers: scores cost no more than
without a bias, and no channel is added to q and k as in `attention._one_hot_attention`. Triton comes with PyTorch on
Linux; elsewhere that function serves.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES = 64  # of one program


class TritonAttention(torch.autograd.Function):
    """softmax(scale q k^T + bias) v (M, N, c) of q, k, v (M, N, c), rel_h (M, N, H) and rel_w (M, N, W); N = H W."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
        q, k, v, rel_h, rel_w = (x.contiguous() for x in (q, k, v, rel_h, rel_w))
        out = torch.empty_like(q)
        log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
        shape, blocks = _measures(q, rel_h, rel_w)
        grid = triton.cdiv(q.shape[1], _QUERIES), len(q)
        _forward[grid](q, k, v, rel_h, rel_w, out, log_sums, scale, *shape, **blocks)
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rel_h, rel_w, out, log_sums = ctx.saved_tensors
        grad = grads[0].contiguous()
        row_sums = (grad.float() * out.float()).sum(-1)  # Dao et al. 2022, eq. 4
        of_q, of_k, of_v, of_h, of_w = (torch.empty_like(x) for x in (q, k, v, rel_h, rel_w))
        shape, blocks = _measures(q, rel_h, rel_w)
        given = q, k, v, rel_h, rel_w, grad, log_sums, row_sums
        _backward_queries[triton.cdiv(q.shape[1], _QUERIES), len(q)](
            *given, of_q, of_h, of_w, ctx.scale, *shape, **blocks
        )
        _backward_keys[rel_h.shape[-1], len(q)](*given, of_k, of_v, ctx.scale, *shape, **blocks)
        return of_q, of_k, of_v, of_h, of_w, None


def _measures(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[tuple[int, int, int], dict[str, Any]]:
    channels, width = q.shape[-1], rel_w.shape[-1]
    exact = q.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    blocks = {
        "block_m": _QUERIES,
        "block_w": max(16, triton.next_power_of_2(width)),
        "block_c": max(16, triton.next_power_of_2(channels)),
        "precision": "ieee" if exact else "tf32",
        "num_stages": 2,
    }
    return (rel_h.shape[-1], width, channels), blocks


@triton.jit
def _rows(pointer, first, rows, columns, count, width):
    """Rows `first` + `rows` of a matrix with `width` columns, 0 outside."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(pointer + (first + rows[:, None]) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _queries(q_ptr, w_ptr, first, start, x, c, tokens, width, channels, block_m: tl.constexpr):
    """Numbers of a block of queries, the queries, and their bias by column."""
    m = start + tl.arange(0, block_m)
    rel_w = _rows(w_ptr, first, m, x, tokens, width).to(tl.float32)
    return m, _rows(q_ptr, first, m, c, tokens, channels), rel_w


@triton.jit
def _of_row(h_ptr, first, m, y, height, tokens):
    """Bias of queries on the keys of row y."""
    return tl.load(h_ptr + (first + m) * height + y, mask=m < tokens, other=0.0).to(tl.float32)


@triton.jit
def _scores(q, k, bias, rel_w, columns, width, scale, precision: tl.constexpr):
    """Biased scores of queries against one row of the image, in units of log 2."""
    scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale + bias[:, None] + rel_w
    return tl.where(columns[None, :] < width, scores * 1.4426950408889634, float("-inf"))


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, h_ptr, w_ptr, out_ptr, sums_ptr, scale, height, width, channels,
    block_m: tl.constexpr, block_w: tl.constexpr, block_c: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    tokens = height * width
    first = tl.program_id(1).to(tl.int64) * tokens
    x, c = tl.arange(0, block_w), tl.arange(0, block_c)
    start = tl.program_id(0) * block_m
    m, q, rel_w = _queries(q_ptr, w_ptr, first, start, x, c, tokens, width, channels, block_m)
    highest = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    mixed = tl.zeros((block_m, block_c), tl.float32)
    for y in range(height):
        k = _rows(k_ptr, first + y * width, x, c, width, channels)
        v = _rows(v_ptr, first + y * width, x, c, width, channels)
        bias = _of_row(h_ptr, first, m, y, height, tokens)
        scores = _scores(q, k, bias, rel_w, x, width, scale, precision)
        higher = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(highest - higher)
        total = total * shrunk + tl.sum(p, 1)
        mixed = mixed * shrunk[:, None] + tl.dot(p.to(v.dtype), v, input_precision=precision)
        highest = higher
    inside = (m[:, None] < tokens) & (c[None, :] < channels)
    at = (first + m[:, None]) * channels + c[None, :]
    tl.store(out_ptr + at, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(sums_ptr + first + m, highest + tl.log2(total), mask=m < tokens)


@triton.jit
def _slope(p, grad, v, row_sums, precision: tl.constexpr):
    """Gradient of the biased scores."""
    return p * (tl.dot(grad, tl.trans(v), input_precision=precision) - row_sums[:, None])


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, h_ptr, w_ptr, grad_ptr, sums_ptr, row_sums_ptr, of_q_ptr, of_h_ptr, of_w_ptr,
    scale, height, width, channels,
    block_m: tl.constexpr, block_w: tl.constexpr, block_c: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    tokens = height * width
    first = tl.program_id(1).to(tl.int64) * tokens
    x, c = tl.arange(0, block_w), tl.arange(0, block_c)
    start = tl.program_id(0) * block_m
    m, q, rel_w = _queries(q_ptr, w_ptr, first, start, x, c, tokens, width, channels, block_m)
    grad = _rows(grad_ptr, first, m, c, tokens, channels)
    sums = tl.load(sums_ptr + first + m, mask=m < tokens, other=0.0)
    row_sums = tl.load(row_sums_ptr + first + m, mask=m < tokens, other=0.0)
    of_q = tl.zeros((block_m, block_c), tl.float32)
    of_w = tl.zeros((block_m, block_w), tl.float32)
    for y in range(height):
        k = _rows(k_ptr, first + y * width, x, c, width, channels)
        v = _rows(v_ptr, first + y * width, x, c, width, channels)
        bias = _of_row(h_ptr, first, m, y, height, tokens)
        p = tl.exp2(_scores(q, k, bias, rel_w, x, width, scale, precision) - sums[:, None])
        slope = _slope(p, grad, v, row_sums, precision)
        of_w += slope
        at = of_h_ptr + (first + m) * height + y
        tl.store(at, tl.sum(slope, 1).to(of_h_ptr.dtype.element_ty), mask=m < tokens)
        of_q += tl.dot(slope.to(k.dtype), k, input_precision=precision)
    rows = m[:, None] < tokens
    at = of_q_ptr + (first + m[:, None]) * channels + c[None, :]
    tl.store(at, (of_q * scale).to(of_q_ptr.dtype.element_ty), mask=rows & (c[None, :] < channels))
    at = of_w_ptr + (first + m[:, None]) * width + x[None, :]
    tl.store(at, of_w.to(of_w_ptr.dtype.element_ty), mask=rows & (x[None, :] < width))


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, h_ptr, w_ptr, grad_ptr, sums_ptr, row_sums_ptr, of_k_ptr, of_v_ptr,
    scale, height, width, channels,
    block_m: tl.constexpr, block_w: tl.constexpr, block_c: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    y = tl.program_id(0)
    tokens = height * width
    first = tl.program_id(1).to(tl.int64) * tokens
    x, c = tl.arange(0, block_w), tl.arange(0, block_c)
    k = _rows(k_ptr, first + y * width, x, c, width, channels)
    v = _rows(v_ptr, first + y * width, x, c, width, channels)
    of_k = tl.zeros((block_w, block_c), tl.float32)
    of_v = tl.zeros((block_w, block_c), tl.float32)
    for start in range(0, tokens, block_m):
        m, q, rel_w = _queries(q_ptr, w_ptr, first, start, x, c, tokens, width, channels, block_m)
        grad = _rows(grad_ptr, first, m, c, tokens, channels)
        bias = _of_row(h_ptr, first, m, y, height, tokens)
        sums = tl.load(sums_ptr + first + m, mask=m < tokens, other=float("inf"))
        row_sums = tl.load(row_sums_ptr + first + m, mask=m < tokens, other=0.0)
        p = tl.exp2(_scores(q, k, bias, rel_w, x, width, scale, precision) - sums[:, None])
        of_v += tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision=precision)
        slope = _slope(p, grad, v, row_sums, precision)
        of_k += tl.dot(tl.trans(slope.to(q.dtype)), q, input_precision=precision)
    inside = (x[:, None] < width) & (c[None, :] < channels)
    at = (first + y * width + x[:, None]) * channels + c[None, :]
    tl.store(of_k_ptr + at, (of_k * scale).to(of_k_ptr.dtype.element_ty), mask=inside)
    tl.store(of_v_ptr + at, of_v.to(of_v_ptr.dtype.element_ty), mask=inside)
