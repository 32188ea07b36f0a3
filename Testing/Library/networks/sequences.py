"""Sequences for selective scans."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from FewShotSegLib.networks.scan import ORDERS

DIRECTIONS = tuple((order, backwards) for order in ORDERS for backwards in (False, True))


def arguments(batch: int, length: int, width: int, states: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """u, delta, A, B, C and D."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = [
        normal(batch, length, width),
        F.softplus(normal(batch, length, width) - 2),
        -torch.exp(normal(width, states)),
        normal(batch, length, states),
        normal(batch, length, states),
        normal(width),
    ]
    return [value.to(dtype).requires_grad_() for value in values]


def directional_arguments(shape: tuple[int, int, int, int], width: int, states: int) -> list[Tensor]:
    """u (B, D, H, W, E), and delta, A, B, C and D of each of `DIRECTIONS`, for T = BDHW tokens, in float32."""
    tokens = math.prod(shape)
    each = [arguments(1, tokens, width, states, torch.float32) for _ in DIRECTIONS]
    u = each[0][0].detach().reshape(*shape, width)
    # They differ from one direction to the next.
    scaled = [[value.detach() * (1 + number / 10) for value in values] for number, values in enumerate(each)]
    delta, write, read = (torch.cat([values[at] for values in scaled]) for at in (1, 3, 4))
    decay, skip = (torch.stack([values[at] for values in scaled]) for at in (2, 5))
    return [u, delta, decay, write, read, skip]
