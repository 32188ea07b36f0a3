"""The demo, with a model and a recipe so small that only its course is tested, not its result."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from FewShotSegLib.io.jobs import load_job
from FewShotSegLib.io.volumes import load_labelmap, load_volume


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


def test_the_job_of_the_demo_can_be_run_again(a_demo: tuple[Path, list[str]]) -> None:
    job = load_job(a_demo[0] / "jobs" / "adapt.json")
    assert job.kind == "adapt"
    assert Path(job.out).exists()
