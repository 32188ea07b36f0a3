"""The curve of used memory against hand-made samples."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.jobs import memory_curve
from FewShotSegLib.jobs.memory_curve import MemoryCurve, memory_of


def sampled(points: list[tuple[float, float]]) -> MemoryCurve:
    """A curve through (seconds, MB)."""
    times, values = iter([t for t, _ in points]), iter([int(1e6 * mb) for _, mb in points])
    curve = MemoryCurve(lambda: next(values), clock=lambda: next(times))
    for _ in points:
        curve.sample()
    return curve


def test_area_peak_and_mean_are_those_of_trapezoids() -> None:
    assert sampled([(0, 0), (1, 100), (3, 100), (4, 300)]).summary() == pytest.approx(
        {"seconds": 4, "peak_mb": 300, "mean_mb": (50 + 200 + 200) / 4, "area_mb_s": 450}
    )


def test_a_curve_of_no_length_has_no_area() -> None:
    assert sampled([(5, 7), (5, 9)]).summary() == {"seconds": 0, "peak_mb": 9, "mean_mb": 9, "area_mb_s": 0}


def test_it_watches_while_the_block_runs_and_stops_behind_it() -> None:
    level = [0]
    with MemoryCurve(lambda: level[0], interval_s=0.005) as curve:
        level[0] = 5_000_000
        deadline = time.monotonic() + 10
        while len(curve._samples) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        level[0] = 1_000_000
    count = len(curve._samples)
    assert curve.summary()["peak_mb"] == 5
    assert not curve._thread.is_alive()
    assert len(curve._samples) == count >= 4


def test_an_error_in_the_block_ends_the_watching_and_passes() -> None:
    with pytest.raises(ZeroDivisionError), MemoryCurve(lambda: 1) as curve:
        1 / 0  # noqa: B018
    assert not curve._thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the memory of a process in /proc")
def test_memory_with_the_cpu_is_that_of_the_process_and_falls_again() -> None:
    used = memory_of(torch.device("cpu"))
    assert used is not None
    before = used()
    block = np.ones(25_000_000)  # 200 MB
    held = used()
    del block
    assert before > 20e6
    assert 150e6 < held - before < 250e6
    assert used() - before < 50e6


def test_memory_is_unknown_where_the_system_does_not_tell_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_curve, "_STATM", tmp_path / "statm")
    used = memory_of(torch.device("cpu"))
    assert used is None
    with MemoryCurve(used) as curve:
        time.sleep(0.001)
    summary = curve.summary()
    assert summary["seconds"] > 0
    assert (summary["peak_mb"], summary["mean_mb"], summary["area_mb_s"]) == (0, 0, 0)
