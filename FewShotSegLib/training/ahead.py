"""Batches that other processes draw ahead, so that what trains never waits for them.

What belongs to a step is drawn from the step's own number, so any number of processes makes the same batches, and a run
that goes on makes those that one without an interruption had made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # batches that every process keeps ready

Draw = Callable[[int], tuple[Tensor, ...]]
"""The number of a step -> the tensors of its batch, on the CPU. It travels to other processes."""


def drawn_ahead(
    draw: Draw, first: int, last: int, *, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of steps `first` to `last` - 1 in order, on `device`; 0 workers draw each when it is asked for."""
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        _Steps(draw, first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=on_gpu,
    )
    for batch in loader:
        yield tuple(tensor.to(device, non_blocking=on_gpu) for tensor in batch)


class _Steps(Dataset[tuple[Tensor, ...]]):
    def __init__(self, draw: Draw, first: int, last: int) -> None:
        self.draw, self.first, self.last = draw, first, last

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.draw(self.first + index)
