"""Noise, and a translator small enough to train on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.methods.uda.cycle_gan import TranslationRecipe

Array = NDArray[Any]

TINY = TranslationRecipe(
    size_px=32,
    steps=4,
    channels=2,
    blocks=1,
    skip=True,
    judge_channels=2,
    judge_layers=1,
    pool_size=2,
    checkpoint_seconds=0.0,
)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
