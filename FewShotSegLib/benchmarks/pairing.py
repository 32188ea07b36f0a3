"""Timing two things against each other on a machine that is never quite quiet.

They take turns (A B A B ...), each turn gives one ratio, and the median of the ratios counts: what slows the machine
for a while slows both sides of a pair, and a single disturbed turn moves the quartiles, not the median.
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
    """One line of the table. `wanted` is the smallest median that is good enough, None where none was set."""

    name: str
    value: Spread
    wanted: float | None = None
    note: str = ""


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated linearly between the two nearest values."""
    low, median, high = (float(q) for q in np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]))
    return Spread(median, low, high)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each turn of each contestant, who take turns in the order given. One round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def ratios(slower: Sequence[float], faster: Sequence[float], scale: float = 1.0) -> Spread:
    """How many times faster, turn by turn; `scale` where a turn of the two is a different amount of work."""
    return spread([scale * a / b for a, b in zip(slower, faster, strict=True)])


def milliseconds(seconds: Sequence[float], items: int = 1) -> str:
    """Median time of one of the `items` that a turn handles."""
    return f"{1000 * statistics.median(seconds) / items:.4g} ms"


def measurement_table(rows: Sequence[Measurement]) -> str:
    """Markdown; numbers with three digits."""
    lines = []
    for row in rows:
        wanted = "" if row.wanted is None else f">= {row.wanted:g}"
        value = row.value
        spread_text = f"{_digits(value.low)} to {_digits(value.high)}"
        lines.append([row.name, _digits(value.median), spread_text, wanted, row.note])
    return markdown(["measured", "median", "quartiles", "wanted", ""], lines)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
