"""Batches prefetched by other processes or threads, so that training never waits for data.

The batch of a step is drawn from a generator seeded by the step index, so it does not depend on the number of workers,
and a resumed run draws the same batches as an uninterrupted one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # prefetched batches per process, or of all threads together
MOST_THREADS = 3

T = TypeVar("T")

Draw = Callable[[int], tuple[Tensor, ...]]
"""Step index -> the tensors of its batch, on the CPU. Must be picklable."""


def drawn_ahead(
    draw: Draw, first: int, last: int, *, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of steps `first` to `last` - 1 in order, on `device`; with 0 workers each is drawn on demand."""
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


class DrawnByThreads(Generic[T]):
    """Results of `draw` by step index, prefetching the next ones while the caller works on one.

    Threads rather than processes: they start instantly on every system, and nothing has to be pickled. On a CPU they
    would compete with training, so the caller draws synchronously there. A context manager; no thread outlives it.
    """

    def __init__(self, draw: Callable[[int], T], device: torch.device) -> None:
        threads = min(MOST_THREADS, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0
        self._draw = draw
        self._threads = ThreadPoolExecutor(threads, "draws ahead") if threads > 0 else None
        self._begun: dict[int, Future[T]] = {}

    def __enter__(self) -> DrawnByThreads[T]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> T:
        """The batch of a step; a second request draws it again."""
        if self._threads is None:
            return self._draw(step)
        for number in range(step, step + AHEAD + 1):
            if number not in self._begun:
                self._begun[number] = self._threads.submit(self._draw, number)
        return self._begun.pop(step).result()
