"""A data set of three cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.benchmarks.datasets import PublicDataSet
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.io.volumes import save_volume

TOY = PublicDataSet(
    "toy", "toy/*_img.nii.gz", (r"_img\.", "_lab."), {1: "a", 2: "b"}, IntensitySpec("percentile", 0, 100), train=1
)


@pytest.fixture
def a_data_folder(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        labels = np.zeros((20, 16, 16), np.uint8)
        labels[3:12, 2:9, 2:9] = 1
        labels[8:14, 10:14, 10:14] = 2
        save_volume(
            Volume(rng.normal(size=labels.shape).astype(np.float32), np.eye(4)), tmp_path / f"toy/{number}_img.nii.gz"
        )
        save_volume(Volume(labels, np.eye(4)), tmp_path / f"toy/{number}_lab.nii.gz")
    return tmp_path
