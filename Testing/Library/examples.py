"""Examples of what files of the library hold: an adapter with everything in it, and jobs of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob, AuxiliaryFiles, EvaluateJob, ExemplarFiles, SegmentJob


def an_adapter(**changes):
    rng = np.random.default_rng(0)
    tensors = {
        "blocks.1.lora_a": rng.normal(size=(4, 32)).astype(np.float32),
        "blocks.0.lora_b": rng.normal(size=(32, 4)).astype(np.float16),
        "tokens": rng.normal(size=(2, 2, 32)),
        "steps": np.array(7),
        "mask": np.array([True, False]),
        "nothing": np.zeros((0, 3), np.float32),
    }
    values = {
        "tensors": tensors,
        "method": "lora",
        "recipe": {"rank": 4, "blocks": (1, 2), "alpha": None},
        "base_model": "vit_b",
        "base_sha256": "ab" * 32,
        "structures": {6: "Leber", 1: "spleen"},
        "intensity": IntensitySpec("window", -125, 275),
        "image_size": 256,
        "seed": 3,
        "axis": 0,
        "provenance": {"exemplars": ["Fall é 1.nrrd"], "seconds": 12.5},
        "metrics": {"dice": {"Leber": 0.9}, "left_out": None},
    }
    return Adapter(**(values | changes))


ADAPT = AdaptJob(
    out="liver.safetensors",
    exemplars=(
        ExemplarFiles("a.nrrd", "a.seg.nrrd", axis="j", slices=(12, 14), structures={6: "liver", 1: "spleen"}),
        ExemplarFiles("b.nrrd", "b.seg.nrrd", slices="all", resample=True),
    ),
    targets=("c.nrrd",),
    auxiliary=(AuxiliaryFiles("other hospital", (ExemplarFiles("d.nrrd", "d.nii.gz"),)),),
    base="vit_b",
    recipe={"rank": 8, "synthesis": {"angle": [0.0, 20.0]}, "note": None},
    warm_start="old.safetensors",
    max_seconds=90.0,
    intensity={"kind": "window", "low": -160.0, "high": 240.0},
    seed=7,
    device="cpu",
)
SEGMENT = SegmentJob(images=("p 1.nrrd", "p2.nii.gz"), out="out", adapter="liver.safetensors", min_island_ml=0.5)
SUPPORTED = SegmentJob(
    images=("p.nrrd",),
    out="out",
    support=(ExemplarFiles("a.nrrd", "a.seg.nrrd", axis="k", slices=(3,)),),
    support_recipe={"subsets": 4},
    intensity={"kind": "window", "low": -160.0, "high": 240.0},
)
EVALUATE = EvaluateJob(pred="out", ref="reference", out="metrics.csv", structures={1: "Leber"}, tolerance_mm=1.0)
EVERY_KIND = pytest.mark.parametrize("job", [ADAPT, SEGMENT, SUPPORTED, EVALUATE], ids=lambda job: job.kind)


def minimal(kind: str, **changes: object) -> dict[str, object]:
    required: dict[str, dict[str, object]] = {
        "adapt": {"out": "a.safetensors"},
        "segment": {"images": ["i.nrrd"], "out": "o", "adapter": "a.safetensors"},
        "evaluate": {"pred": "p", "ref": "r", "out": "m.csv"},
    }
    return {"kind": kind, **required[kind], **changes}
