"""The benchmark of a GPU where there is none, and what it counts as a launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from FewShotSegLib.benchmarks import speed, speed_gpu
from FewShotSegLib.errors import InputError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No GPU that PyTorch can use was found"):
        speed.main(["--device", "cuda", "--out", str(tmp_path / "speed")])
    assert not list(tmp_path.iterdir())


def test_every_question_of_the_processor_s_table_has_one_for_the_gpu() -> None:
    assert set(speed_gpu.MEASUREMENTS) == {"predicting", "adapting", "encoding", "training", "networks", "choosing"}
    assert "cudaGraphLaunch" in speed_gpu.LAUNCHES
