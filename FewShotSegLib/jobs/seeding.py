"""Randomness of a job: one seed, one generator per stage.

`SeedSequence(job.seed)` is spawned once per stage, in the order of `STAGES`, so a stage's random numbers are
independent of the others. PyTorch's and numpy's global generators are restored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

STAGES = ("adapt", "segment", "evaluate")


def stage_rng(seed: int, stage: str) -> np.random.Generator:
    """The generator of one stage of a job."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(len(STAGES))[STAGES.index(stage)])


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generator with the job's seed, and restore the caller's state afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
