"""Sequences for selective scans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
