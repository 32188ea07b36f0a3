"""The demo, with a model and a recipe so small that only its course is tested, not its result."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.demo import run as demo
from FewShotSegLib.demo.page import Patient
from FewShotSegLib.io.jobs import load_job
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.progress import Progress
from Testing.conftest import Listener


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


def test_slices_are_annotated_along_the_organs_without_the_aorta() -> None:
    labels = np.zeros((50, 4, 4), np.uint8)
    labels[10:31, 1, 1], labels[:, 2, 2] = 1, 5
    assert demo._slices_at(labels, (0.0, 0.3, 1.0)) == (10, 16, 30)


def test_nothing_but_the_annotated_slices_reaches_the_adapter(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    job = load_job(out / "jobs" / "adapt.json")
    for files in job.exemplars:
        labels = load_labelmap(files.labelmap).volume.array
        assert tuple(np.flatnonzero(labels.any(axis=(1, 2)))) == files.slices


def test_there_is_one_click_on_every_structure_of_every_slice(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    volume = load_volume(out / "unseen" / "patient-3.nrrd")
    truth = load_labelmap(out / "reference" / "patient-3.seg.nrrd")
    clicks = load_prompts(out / "prompts" / "patient-3.json", volume)
    value_of = {name: value for value, name in truth.structures.items()}
    asked = [(prompt.index, value_of[prompt.structure or ""]) for prompt in clicks]
    held = [(k, int(v)) for k, labels in enumerate(truth.volume.array) for v in np.unique(labels) if v]
    assert sorted(asked) == sorted(held)
    for prompt, (index, value) in zip(clicks, asked, strict=True):
        ((i, j, _),) = prompt.points_ijk.astype(int)
        depth = ndimage.distance_transform_edt(np.pad(truth.volume.array[index] == value, 1))[1:-1, 1:-1]
        assert depth[j, i] == depth.max()


def test_the_history_has_every_step_with_a_loss_and_the_report_hears_all() -> None:
    listener, history = Listener(), list[Progress]()
    remember = demo._remembering(listener, history)
    for progress in (Progress(0, 2, "loading"), Progress(1, 2, "adapting", {"loss": 0.5}), Progress(2, 2, "adapting")):
        remember(progress)
    assert [progress.step for progress in history] == [1]
    assert len(listener.heard) == 3


def test_records_of_an_earlier_demo_go_and_its_pictures_stay(tmp_path: Path) -> None:
    for name in ("p.result.json", "p.seg.nrrd"):
        (tmp_path / name).touch()
    assert demo._emptied(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["p.seg.nrrd"]


@pytest.mark.parametrize("annotated", [(1,), (0, 2)])
def test_of_an_exemplar_only_the_annotated_slices_are_kept(annotated: tuple[int, ...]) -> None:
    truth = Labelmap(Volume(np.ones((3, 2, 2), np.uint8), np.eye(4)), {1: "liver"})
    patient = Patient("p", truth.volume, truth, Path("p.nrrd"), Path("p.seg.nrrd"), annotated)
    kept = demo._only_annotated(patient).volume.array
    assert tuple(np.flatnonzero(kept.any(axis=(1, 2)))) == annotated


def test_the_report_gives_every_score_on_the_slices_of_a_structure_and_on_all(a_demo: tuple[Path, list[str]]) -> None:
    out, _ = a_demo
    page = (out / "report.html").read_text(encoding="utf-8")
    for file in ("metrics-with-clicks-base.csv", "metrics-with-clicks-adapted.csv", "metrics.csv"):
        with (out / file).open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["structure"] == "liver"]
        means = [
            np.mean([float(row["dsc"]) for row in rows if row["scope"] == scope])
            for scope in ("oracle_slices", "all_slices")
        ]
        assert f">{means[0]:.2f} / {means[1]:.2f}<" in page, file
    clicks = len(load_prompts(out / "prompts" / "patient-3.json", load_volume(out / "unseen" / "patient-3.nrrd")))
    assert f"{clicks} clicks on patient-3" in page


def test_exemplars_are_shown_as_annotations_and_results_as_predictions(a_demo: tuple[Path, list[str]]) -> None:
    page = (a_demo[0] / "report.html").read_text(encoding="utf-8")
    exemplars, results = page.split("Patients it has never seen")
    assert "annotation</span>" in exemplars
    assert "reference</span>" not in exemplars
    assert "prediction</span>" in results
    assert "reference</span>" in results
