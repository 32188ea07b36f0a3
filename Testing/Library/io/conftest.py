"""What the tests of DICOM files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.volume import Volume
from Testing.Library.io.dicom_series import OBLIQUE, SHAPE, write_series


@pytest.fixture
def a_series(tmp_path: Path) -> Path:
    """The folder of an oblique series of SHAPE."""
    rng = np.random.default_rng(0)
    return write_series(tmp_path / "series é", Volume(rng.integers(-100, 300, SHAPE).astype(np.int16), OBLIQUE))
