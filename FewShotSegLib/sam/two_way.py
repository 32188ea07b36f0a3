"""SAM's two-way transformer and mask head, computed without ever projecting all image tokens.

A prompt has some ten tokens, an image has 4096. Stock SAM projects every image token to queries, keys and values in
five attention layers per forward pass. That dominates the cost, and none of it is needed: a score is a product
(W_q t)^T (W_k x) = (W_k^T W_q t)^T x, so the projections can be applied to the tokens instead, and the attention output
is a weighted mean of image tokens that is projected after averaging. Results are the same up to rounding.

Tokens are (N, T, C) for N prompts, image tokens (B, P, C) of B images, N / B prompts for each, or (N, P, C).
Projections are used through `weight` and `bias`, which layers with LoRA have too. Tokens and other small tensors stay
in the precision of the weights; the image tokens keep their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attended(transformer: Any, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, T, C) and image tokens (N, P, C) after the transformer of SAM's mask decoder.

    `positions` (P, C) are the position embeddings of the image tokens, and the tokens serve as their own.
    """
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + tokens
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        queries = layer.norm2(
            queries + _tokens_to_image(layer.cross_attn_token_to_image, queries + tokens, image, positions)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        image = _image_to_tokens(layer.cross_attn_image_to_token, image, positions, queries + tokens, queries)
        image = _normed(layer.norm4, image)
    seen = _tokens_to_image(transformer.final_attn_token_to_image, queries + tokens, image, positions)
    return transformer.norm_final_attn(queries + seen), image


def mask_logits(upscaling: Any, image: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, M, 4h, 4w) of M masks, from image tokens (N, h w, C) and the masks' weights (N, M, C / 8).

    `upscaling` is that of SAM's mask decoder: two transposed convolutions with stride 2, whose pixels do not overlap,
    so that each is a linear layer with four times the channels.
    """
    first, norm, second = upscaling[0], upscaling[1], upscaling[3]
    count, pixels, _ = image.shape
    height, width = size
    fine = F.gelu(_normed(norm, _upscaled(first, image)))  # N P 4 C/4
    finest = F.gelu(_upscaled(second, fine))  # N P 4 4 C/8
    masks = finest.reshape(count, pixels * 16, -1) @ weights.to(image.dtype).transpose(1, 2)  # N 16P M
    masks = masks.view(count, height, width, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return masks.reshape(count, -1, 4 * height, 4 * width)


def _upscaled(convolution: Any, x: Tensor) -> Tensor:
    """(..., C) -> (..., 4, C'): output of a 2 x 2 transposed convolution with stride 2 for each pixel."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).to(x.dtype)
    return F.linear(x, weight, convolution.bias.repeat(4).to(x.dtype)).unflatten(-1, (4, -1))


def _tokens_to_image(attention: Any, tokens: Tensor, image: Tensor, positions: Tensor) -> Tensor:
    """Cross-attention of tokens (N, T, C) to the image: keys are image + positions, values the image."""
    count, length, width = tokens.shape
    heads = attention.num_heads
    queries = _in_heads(attention.q_proj(tokens), heads)  # N T h d
    depth = queries.shape[-1]
    keys, values = (_in_heads(p.weight.t(), heads) for p in (attention.k_proj, attention.v_proj))  # C h d
    # The bias of the keys adds a constant to all scores of a token, which softmax cancels.
    asked = torch.einsum("nthd,chd->nhtc", queries, keys).reshape(count, heads * length, width) * depth**-0.5
    scores = _by_image(asked.to(image.dtype), image.transpose(1, 2)) + asked.to(image.dtype) @ positions.t()
    seen = _by_image(torch.softmax(scores, -1), image).view(count, heads, length, width)
    mixed = torch.einsum("nhtc,chd->nthd", seen.to(keys.dtype), values).reshape(count, length, -1)
    return attention.out_proj(mixed + attention.v_proj.bias)


def _image_to_tokens(attention: Any, image: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The image (N, P, C) plus its cross-attention to the tokens; queries are image + positions."""
    count, length, width = keys.shape
    heads, dtype = attention.num_heads, image.dtype
    key, value = (_in_heads(p(t), heads) for p, t in ((attention.k_proj, keys), (attention.v_proj, values)))  # N T h d
    depth = key.shape[-1]
    query = _in_heads(attention.q_proj.weight.t(), heads)  # C h d
    out = attention.out_proj.weight.unflatten(1, (heads, -1))  # C h d
    asked = torch.einsum("nthd,chd->nhtc", key, query).reshape(count, heads * length, width) * depth**-0.5
    constant = torch.einsum("nthd,hd->nht", key, _in_heads(attention.q_proj.bias, heads)) * depth**-0.5
    # Each head's weights sum to 1, so the bias can be split among the heads.
    given = torch.einsum("nthd,chd->nhtc", value, out) + attention.out_proj.bias / heads
    scores = _by_image(asked.to(dtype), image.transpose(1, 2)) + asked.to(dtype) @ positions.t()
    scores = (scores + constant.reshape(count, -1, 1).to(dtype)).unflatten(1, (heads, length))
    weights = torch.softmax(scores, 2).flatten(1, 2).transpose(1, 2)  # N P hT
    given = given.reshape(count, heads * length, width).to(dtype)
    if len(image) == count:
        return torch.baddbmm(image, weights, given)
    return image.repeat_interleave(count // len(image), 0) + torch.bmm(weights, given)


def _by_image(rows: Tensor, image: Tensor) -> Tensor:
    """rows (N, R, K) @ image (B, K, L) -> (N, R, L); the rows of one image are batched."""
    together = rows.reshape(len(image), -1, rows.shape[-1])
    return torch.matmul(together, image).view(*rows.shape[:2], -1)


def _in_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def _normed(norm: Any, x: Tensor) -> Tensor:
    """Layer norm over the last axis; SAM's own for maps normalizes channels, which are last here."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
