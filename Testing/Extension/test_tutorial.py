"""The tutorial's examples for Slicer's Python console, run as written, with less time to train a smaller model."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import slicer

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "slicer.md"


def examples() -> list[str]:
    section = TUTORIAL.read_text(encoding="utf-8").partition("## In Slicer's Python console")[2].partition("\n##")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def coarsePatients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample patients with the anatomy of the real ones on a sixth of the slices."""
    from FewShotSegLib.demo import phantom

    coarse = partial(phantom.patient, shape=(7, 80, 80), spacing_mm=(4.0, 4.0, 28.0))
    monkeypatch.setattr(phantom, "patient", coarse)


@pytest.fixture
def twoVolumes(coarsePatients: None, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working directory, with the files that the examples name."""
    from FewShotSegSlicer.Scene import SamplePatients

    node, _ = SamplePatients.load(2)
    for name in ("a.nrrd", "b.nii.gz"):
        slicer.util.saveNode(node, str(tmp_path / name))
    slicer.mrmlScene.Clear(0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_console_examples_run_as_written(panel: Any, twoVolumes: Path) -> None:
    adapting, batch = examples()
    adapting, count = re.subn(r"maxSeconds=\d+", 'maxSeconds=1, base="bundled-small"', adapting)
    assert count == 1
    names: dict[str, Any] = {"outputDir": str(twoVolumes / "out")}
    exec(adapting, names)
    assert Path(names["adapter"]).suffix == ".safetensors"
    segmentation = names["result"].GetSegmentation()
    found = [segmentation.GetNthSegment(number).GetName() for number in range(segmentation.GetNumberOfSegments())]
    assert "liver" in found
    exec(batch, names)
    table = Path(names["table"]).read_text(encoding="utf-8")
    assert "a.nrrd" in table
    assert "b.nii.gz" in table
    assert len(list((twoVolumes / "out").glob("*.seg.nrrd"))) == 2
