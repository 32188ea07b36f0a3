"""Every network by name, and a ball for them to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from FewShotSegLib.networks import NETWORKS

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def a_ball(patch: tuple[int, int, int], channels: int = 1) -> tuple[Tensor, Tensor]:
    """Images (1, channels, D, H, W) with a bright ball in noise, and the ball."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in patch), indexing="ij")
    ball = sum((axis - 0.2) ** 2 for axis in axes) < 0.3
    noise = np.random.default_rng(0).normal(0, 0.1, (1, channels, *patch))
    return torch.from_numpy((ball + noise).astype(np.float32)), torch.from_numpy(ball)[None]
