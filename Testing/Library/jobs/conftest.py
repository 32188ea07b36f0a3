"""Jobs on discs, a step from running."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob
from Testing.conftest import QUICK, write_discs


@pytest.fixture
def an_adapt_job(a_tiny_base: str, tmp_path: Path) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "exemplar case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    out = str(tmp_path / "out" / "organs.safetensors")
    return AdaptJob(out, exemplars=(files,), base=a_tiny_base, recipe=QUICK, seed=3, device="cpu")


@pytest.fixture
def a_segment_job(an_adapter_file: Path, tmp_path: Path) -> SegmentJob:
    images = tuple(str(write_discs(tmp_path, name, seed)[0]) for name, seed in (("p1", 1), ("p2", 2)))
    return SegmentJob(images, str(tmp_path / "segmented"), str(an_adapter_file), device="cpu")


def files_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}
