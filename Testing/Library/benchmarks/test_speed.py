"""The rules of the speed benchmark. Nothing is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.benchmarks.speed import iou_at_mean, main
from FewShotSegLib.errors import InputError


def test_maps_are_compared_where_both_are_above_the_mean_of_the_first() -> None:
    first = np.array([[0, 0, 0, 4], [0, 1, 2, 3]], np.float32)
    second = np.array([[0, 0.5, 0, 3], [0, 9, 2, 0]], np.float32)
    assert iou_at_mean(first, second) == [1.0, pytest.approx(1 / 3)]


def test_an_unknown_measurement_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown measurement warp; allowed are encoding, training, synthesis"):
        main(["--only", "encoding", "warp", "--out", str(tmp_path / "speed")])
    assert not list(tmp_path.iterdir())


def test_a_number_of_threads_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 or more, got 0"):
        main(["--threads", "0", "--out", str(tmp_path / "speed")])
