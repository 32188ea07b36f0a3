"""The demo, with a model and a recipe so small that only its course is tested, not its result."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.demo.run import run_demo
from FewShotSegLib.io.jobs import load_job
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.sam import registry
from Testing.conftest import save_tiny_compact

SMALL = {"steps": 3, "image_size": 64, "batch_size": 1, "validate_every": 3, "guard": "off"}
COARSE = {"shape": (20, 80, 80), "spacing_mm": (4.0, 4.0, 10.0)}


@pytest.fixture(scope="module")
def a_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOTSEG_HOME", str(folder / "home"))
        save_tiny_compact(folder / "tiny.safetensors")
        registry.add(folder / "tiny.safetensors", "compact", "tiny")
        lines = run_demo(folder / "out", seed=1, base="tiny", recipe=SMALL, patient=COARSE)
    return folder / "out", lines


def test_the_demo_leaves_what_it_promises(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    for name in (
        "adapter.safetensors",
        "adapter.result.json",
        "metrics.csv",
        "synthesized.png",
        "report.html",
        "segmented/patient-3.seg.nrrd",
        "segmented/patient-4.seg.nrrd",
        "unseen/patient-3.nrrd",
    ):
        assert (out / name).is_file(), name


def test_three_slices_are_annotated_and_nothing_else_is_written_of_them(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    annotated = 0
    for path in (out / "exemplars").glob("*.seg.nrrd"):
        annotated += int(load_labelmap(path).volume.array.any(axis=(1, 2)).sum())
    assert annotated == 3


def test_segmentations_lie_on_the_grid_of_their_images(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    labelmap = load_labelmap(out / "segmented" / "patient-3.seg.nrrd")
    assert labelmap.volume.same_geometry(load_volume(out / "unseen" / "patient-3.nrrd"))
    assert set(labelmap.structures.values()) >= {"liver", "spleen"}


def test_the_table_agrees_with_the_metrics(a_demo: tuple[Path, list[str]]) -> None:
    out, lines = a_demo
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["scope"] == "oracle_slices"]
    liver = np.mean([float(row["dsc"]) for row in rows if row["structure"] == "liver"])
    line = next(line for line in lines if line.startswith("liver"))
    assert line.split()[-1] == f"{liver:.2f}"


def test_the_report_stands_alone(a_demo: tuple[Path, list[str]]) -> None:
    text = (a_demo[0] / "report.html").read_text(encoding="utf-8")
    assert [link for link in re.findall(r'(?:src|href|srcset)="([^"]{5})', text) if link != "data:"] == []
    assert text.count("<img") >= 3 + 2 * 9 + 2
    for expected in ("patient-4", "right kidney", "synthetic", "adapted, no clicks"):
        assert expected in text


def test_the_job_of_the_demo_can_be_run_again(a_demo: tuple[Path, list[str]]) -> None:
    job = load_job(a_demo[0] / "jobs" / "adapt.json")
    assert job.kind == "adapt"
    assert Path(job.out).exists()
