"""The demo, run once."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.demo.run import run_demo
from FewShotSegLib.sam import registry
from Testing.conftest import save_tiny_compact

SMALL = {"steps": 3, "image_size": 64, "batch_size": 1, "validate_every": 3, "guard": "off"}
COARSE = {"shape": (20, 80, 80), "spacing_mm": (4.0, 4.0, 10.0)}


@pytest.fixture(scope="package")
def a_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOTSEG_HOME", str(folder / "home"))
        save_tiny_compact(folder / "tiny.safetensors")
        registry.add(folder / "tiny.safetensors", "compact", "tiny")
        lines = run_demo(folder / "out", seed=1, base="tiny", recipe=SMALL, patient=COARSE)
    return folder / "out", lines
