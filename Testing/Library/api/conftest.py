"""A patient on disk and in memory, small enough for a click to take milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.volume import Volume
from Testing.conftest import discs, write_discs


@pytest.fixture
def a_case(tmp_path: Path) -> tuple[Path, Path]:
    return write_discs(tmp_path, "ct", 0)


@pytest.fixture
def a_labelled_volume() -> tuple[Volume, np.ndarray]:
    return discs(np.random.default_rng(0))
