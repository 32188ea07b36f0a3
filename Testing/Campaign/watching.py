"""What running processes use: resident memory over time, its slope, and processor seconds."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from scipy.stats import theilslopes

_MB = 1e6
_BLOCKS = 50
_FEWEST_BLOCKS = 5
WARM_UP_S = 12.0  # processor seconds in which a process loads libraries and a model, and does its first volumes

Point = tuple[float, float]


@dataclass
class Life:
    """What was seen of a process: `points` are (its processor seconds, volumes done by the batch, resident bytes)."""

    role: str
    cpu_s: float = 0.0
    points: list[tuple[float, int, int]] = field(default_factory=list)


def look_at(process: psutil.Process, role: str, lives: dict[str, Life], done: int) -> None:
    """Add what a process uses now to its life; `done` volumes are there by now."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
        born, times, resident = process.create_time(), process.cpu_times(), process.memory_info().rss
        if not resident:  # it is ending
            return
        life = lives.setdefault(f"{process.pid} {born}", Life(role))
        life.cpu_s = times.user + times.system
        life.points.append((life.cpu_s, done, resident))


def slope(points: Sequence[Point]) -> dict[str, float] | None:
    """Theil-Sen slope of y over x with its 95 % interval; None for too few points.

    Neighbours in time are alike, so that each sample as a point of its own would make the interval too narrow: what
    counts is the median of each of 50 blocks.
    """
    size = max(len(points) // _BLOCKS, 1)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    xs = [statistics.median(x for x, _ in block) for block in blocks]
    ys = [statistics.median(y for _, y in block) for block in blocks]
    if len(set(xs)) < _FEWEST_BLOCKS:
        return None
    found = theilslopes(ys, xs, alpha=0.95)
    return {"slope": found.slope, "low": found.low_slope, "high": found.high_slope}


def cpu_of(lives: Iterable[Life]) -> dict[str, float]:
    """{role: processor seconds of its processes}."""
    found: dict[str, float] = {}
    for life in lives:
        found[life.role] = found.get(life.role, 0.0) + life.cpu_s
    return found


def memory_of(lives: Iterable[Life]) -> dict[str, Any]:
    """{role: memory of its processes}: of the one that was seen longest first and last MB and MB per 1,000 volumes with
    interval; of all that lived for long enough the slopes' median, lowest and highest."""
    found: dict[str, Any] = {}
    by_role: dict[str, list[Life]] = {}
    for life in lives:
        by_role.setdefault(life.role, []).append(life)
    for role, ones in sorted(by_role.items()):
        longest = max(ones, key=lambda life: len(life.points))
        row: dict[str, Any] = {
            "processes": len(ones),
            "highest_mb": max(rss for life in ones for *_, rss in life.points) / _MB,
            "longest": _memory_of_one(longest),
        }
        slopes = [one["slope"] for life in ones if (one := slope(_settled(life))) is not None]
        if slopes:
            row["slopes_mb_per_1000"] = {
                "processes": len(slopes),
                "median": statistics.median(slopes),
                "lowest": min(slopes),
                "highest": max(slopes),
            }
        found[role] = row
    return found


def _settled(life: Life) -> list[Point]:
    return [(done / 1000, rss / _MB) for cpu_s, done, rss in life.points if cpu_s >= WARM_UP_S]


def _memory_of_one(life: Life) -> dict[str, Any]:
    settled = _settled(life) or [(done / 1000, rss / _MB) for _, done, rss in life.points]
    ends = {
        "first_mb": settled[0][1],
        "last_mb": settled[-1][1],
        "volumes": round(1000 * (settled[-1][0] - settled[0][0])),
    }
    return {**ends, "mb_per_1000": slope(settled)}
