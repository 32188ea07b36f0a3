"""A worker loads a model once, and again when another one is asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from FewShotSegLib.data.job import ExemplarFiles, SegmentJob
from FewShotSegLib.jobs.kept import KeptPredictor


def test_the_same_adapter_is_loaded_once_and_another_one_anew(tmp_path: Path) -> None:
    loaded: list[str] = []
    kept: KeptPredictor[str] = KeptPredictor()

    def asked(job: SegmentJob, device: str = "cpu") -> str:
        def load() -> str:
            loaded.append(device)
            return f"predictor {len(loaded)}"

        return kept.get(job, device, load)

    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    job = SegmentJob(("p1.nrrd",), "out", str(path))
    assert asked(job) == asked(replace(job, images=("p2.nrrd",), axis="j")) == "predictor 1"
    assert asked(job, "cuda") == "predictor 2"
    assert asked(replace(job, base="vit_b"), "cuda") == "predictor 3"
    os.utime(path, ns=(1, 1))
    assert asked(replace(job, base="vit_b"), "cuda") == "predictor 4"
    supported = replace(job, support=(ExemplarFiles("a.nrrd", "a.seg.nrrd"),))
    assert asked(supported) != asked(supported)
