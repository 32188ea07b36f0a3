"""The panel with a fake logic, and what it starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.io.adapters import save_adapter
from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from Testing.Extension.panels import METRICS, Case


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    monkeypatch.setattr(Dependencies, "missing", lambda: ())
    (tmp_path / "tiny.safetensors").write_bytes(b"never opened")
    registry.add(tmp_path / "tiny.safetensors", "compact", "tiny")
    return Case(request.getfixturevalue("panel"), monkeypatch)


@pytest.fixture
def adapter(case: Case) -> str:
    """An adapter for "disc" and "square" in the folder of adapters; only its card is ever read."""
    path = case.logic.adapterFolder.folder / "organs.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    intensity = IntensitySpec.from_dict({"kind": "window", "low": -160.0, "high": 240.0})
    source = {"name": "CT.nrrd", "annotated_slices": [1, 3]}
    made = Adapter(
        {"weight": np.zeros(1)},
        method="lora",
        recipe={},
        base_model="tiny",
        base_sha256="0" * 64,
        structures={1: "disc", 2: "square"},
        intensity=intensity,
        image_size=64,
        seed=0,
        axis=0,
        provenance={"exemplars": [source]},
        metrics=METRICS,
    )
    save_adapter(made, path)
    case.logic.adapterFolder.noteNew(path)
    return str(path)


@pytest.fixture
def readyToAdapt(case: Case) -> Case:
    case.load()
    case.press(case.ui.addSliceButton)
    case.show("adapt")
    return case
