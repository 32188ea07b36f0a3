"""Memory over time: with a GPU's, the efficiency measure of the FLARE challenges; together with peak and mean.

The area under the curve alone is ambiguous: a slow run with little memory and a fast one with much have the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

_MB = 1e6
_STATM = Path("/proc/self/statm")  # Linux: sizes of this process in pages, the second one resident


class MemoryCurve:
    """Samples memory while a `with` block runs.

        with MemoryCurve(memory_of(device)) as curve:
            ...
        curve.summary()         # seconds, peak_mb, mean_mb, area_mb_s

    `used` returns bytes; it is called every `interval_s` seconds, and at the beginning and the end. Without it, where
    memory is unknown, the curve has seconds and is zero.
    """

    def __init__(
        self, used: Callable[[], int] | None, interval_s: float = 0.1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._used, self._interval, self._clock = used or (lambda: 0), interval_s, clock
        self._samples: list[tuple[float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory curve")

    def __enter__(self) -> MemoryCurve:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        self._samples.append((self._clock(), self._used()))

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self.sample()

    def summary(self) -> dict[str, float]:
        """Return seconds, peak and mean memory in MB, and the area under the curve in MB s (trapezoids)."""
        times, used = zip(*self._samples, strict=True)
        pairs = zip(self._samples[:-1], self._samples[1:], strict=True)
        area = sum((end - start) * (a + b) / 2 for (start, a), (end, b) in pairs) / _MB
        seconds = times[-1] - times[0]
        mean = area / seconds if seconds > 0 else used[-1] / _MB
        return {"seconds": seconds, "peak_mb": max(used) / _MB, "mean_mb": mean, "area_mb_s": area}


def memory_of(device: torch.device) -> Callable[[], int] | None:
    """A function that returns the bytes in use now: reserved by PyTorch on a GPU, where other programs see the CUDA
    context on top, a few hundred MB more; with the CPU resident in RAM, of the whole process. None where the operating
    system does not tell the latter.
    """
    if device.type == "cuda":
        return lambda: int(torch.cuda.memory_reserved(device))
    if not _STATM.is_file():
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(_STATM.read_text().split()[1]) * page
