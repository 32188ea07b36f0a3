"""Paired timing of two alternatives on a noisy machine.

They are interleaved (A B A B ...), each turn gives one ratio, and the median of the ratios is reported: temporary
slowdowns affect both sides of a pair, and a single disturbed turn affects the quartiles, not the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .records import markdown


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One line of the table. `wanted` is the smallest acceptable median, `most` the largest; None if not set."""

    name: str
    value: Spread
    wanted: float | None = None
    note: str = ""
    most: float | None = None


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated linearly between the two nearest values."""
    low, median, high = (float(q) for q in np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]))
    return Spread(median, low, high)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per turn of each contestant, interleaved in the given order, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def ratios(slower: Sequence[float], faster: Sequence[float], scale: float = 1.0) -> Spread:
    """Speed-up per turn; `scale` if a turn is a different amount of work for the two."""
    return spread([scale * a / b for a, b in zip(slower, faster, strict=True)])


def milliseconds(seconds: Sequence[float], items: int = 1) -> str:
    """Median time per item of the `items` of a turn."""
    return f"{1000 * statistics.median(seconds) / items:.4g} ms"


def measurement_table(rows: Sequence[Measurement]) -> str:
    """Markdown table; numbers with three digits."""
    lines = []
    for row in rows:
        limits = (f"{sign} {limit:g}" for sign, limit in ((">=", row.wanted), ("<=", row.most)) if limit is not None)
        wanted = ", ".join(limits)
        value = row.value
        spread_text = f"{_digits(value.low)} to {_digits(value.high)}"
        lines.append([row.name, _digits(value.median), spread_text, wanted, row.note])
    return markdown(["measured", "median", "quartiles", "wanted", ""], lines)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
