"""Many images and jobs: the table, the failures, the second run, and every way of spreading the work."""

from __future__ import annotations

import csv
import os
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, Job, SegmentJob
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.jobs.segment import SomeImagesFailed
from FewShotSegLib.jobs.volumes_table import COLUMNS
from FewShotSegLib.worker.batch import _outcome_from, run_jobs, segment_images
from Testing.conftest import QUICK, Listener, write_discs


@pytest.fixture
def a_job(an_adapter_file: Path, tmp_path: Path) -> SegmentJob:
    images = tuple(str(write_discs(tmp_path / "images", f"p{number}", number)[0]) for number in (1, 2, 3))
    return SegmentJob(images, str(tmp_path / "out"), str(an_adapter_file), device="cpu")


def rows_of(job: SegmentJob) -> list[dict[str, str]]:
    with (Path(job.out) / "volumes.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_a_line_per_image_and_structure_with_volumes_in_ml(a_job: SegmentJob) -> None:
    segment_images(a_job)
    rows = rows_of(a_job)
    assert tuple(rows[0]) == COLUMNS
    assert [(Path(row["image"]).stem, row["structure"]) for row in rows] == [
        (name, structure) for name in ("p1", "p2", "p3") for structure in ("disc", "square")
    ]
    for row in rows:
        labels = load_labelmap(Path(a_job.out) / f"{Path(row['image']).stem}.seg.nrrd").volume.array
        assert float(row["volume_ml"]) == pytest.approx((labels == int(row["label"])).sum() * 0.004)
        assert ("is empty" in row["flags"]) == (float(row["volume_ml"]) == 0)
        assert row["state"] == "segmented"


def test_a_second_run_makes_nothing_again_and_gives_the_same_table(a_job: SegmentJob) -> None:
    segment_images(a_job)
    first = rows_of(a_job)
    segment_images(a_job)
    second = rows_of(a_job)
    assert {row["state"] for row in second} == {"there already"}
    assert [{**row, "state": ""} for row in first] == [{**row, "state": ""} for row in second]


def test_failures_are_in_the_table_and_named_at_the_end(a_job: SegmentJob) -> None:
    Path(a_job.images[1]).write_bytes(b"nothing")
    with pytest.raises(SomeImagesFailed, match=r"1 of 3 images .*p2\.nrrd"):
        segment_images(a_job)
    failed = [row for row in rows_of(a_job) if row["state"] == "failed"]
    assert [Path(row["image"]).name for row in failed] == ["p2.nrrd"]
    assert failed[0]["error"]
    assert len(rows_of(a_job)) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_failures_can_be_left_to_the_table(a_job: SegmentJob, processes: int) -> None:
    Path(a_job.images[1]).write_bytes(b"nothing")
    result = segment_images(a_job, processes=processes, raise_failures=False)
    assert ["error" in record for record in result["images"]] == [False, True, False]
    assert [row["state"] for row in rows_of(a_job)] == ["segmented"] * 2 + ["failed"] + ["segmented"] * 2
    assert any("p2.nrrd failed" in warning for warning in result["warnings"])


def test_several_processes_give_the_same_files_and_a_failure_stays_alone(
    a_job: SegmentJob, tmp_path: Path, a_listener: Listener
) -> None:
    Path(a_job.images[1]).write_bytes(b"nothing")
    many = replace(a_job, out=str(tmp_path / "many"))
    for job, processes in ((a_job, 1), (many, 2)):
        with pytest.raises(SomeImagesFailed):
            segment_images(job, processes=processes, report=a_listener)
    for name in ("p1.seg.nrrd", "p3.seg.nrrd"):
        assert (tmp_path / "many" / name).read_bytes() == (Path(a_job.out) / name).read_bytes()
    assert rows_of(many) == rows_of(a_job)
    assert any("jobs done" in message for message in a_listener.messages)


def test_cancelling_a_batch_ends_its_processes(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from FewShotSegLib.worker import batch

    clients = []

    class Watched(batch.WorkerClient):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            clients.append(self)

    monkeypatch.setattr(batch, "WorkerClient", Watched)
    with pytest.raises(Cancelled):
        segment_images(a_job, processes=2, report=Listener(0, Cancelled()))
    assert len(clients) == 2
    assert not any(client.is_running for client in clients)


def test_jobs_of_all_kinds_run_one_after_the_other(a_job: SegmentJob, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    for image in a_job.images:
        labelmap = Path(image).with_name(Path(image).stem + ".seg.nrrd")
        labelmap.rename(reference / labelmap.name)
    evaluate = EvaluateJob(a_job.out, str(reference), str(tmp_path / "m.csv"))
    bad = EvaluateJob(a_job.out, str(tmp_path / "nowhere"), str(tmp_path / "n.csv"))
    outcomes = run_jobs([a_job, bad, evaluate])
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].is_input_error
    assert (tmp_path / "m.csv").exists()


def an_adapt_job(tmp_path: Path) -> AdaptJob:
    image, labelmap = write_discs(tmp_path / "exemplar", "case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    return AdaptJob(str(tmp_path / "b.safetensors"), exemplars=(files,), base="tiny", recipe=QUICK, device="cpu")


def test_an_adapter_that_the_same_job_has_made_is_not_made_again(an_adapter_file: Path, tmp_path: Path) -> None:
    job = an_adapt_job(tmp_path)

    def was_made(job: Job) -> bool:
        return not (run_jobs([job])[0].result or {}).get("skipped")

    assert was_made(job)
    assert not was_made(job)
    assert was_made(replace(job, seed=1))
    image = Path(job.exemplars[0].image)
    stamp, other = image.stat().st_mtime, write_discs(tmp_path / "other", "case", 7)[0]
    os.utime(image, (stamp + 1e6, stamp + 1e6))
    assert not was_made(replace(job, seed=1))  # contents count, not times
    image.write_bytes(other.read_bytes())
    os.utime(image, (stamp - 1e6, stamp - 1e6))
    assert was_made(replace(job, seed=1))
    Path(job.out).unlink()
    assert was_made(replace(job, seed=1))
    Path(job.out).write_bytes(b"changed by somebody")
    assert "is there already" in run_jobs([replace(job, seed=1)])[0].error


def test_a_defect_in_one_job_is_told_apart_from_bad_input(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("FewShotSegLib.jobs.segment.segment", broken)
    outcome = run_jobs([a_job])[0]
    assert not outcome.is_input_error
    assert "ZeroDivisionError" in outcome.error


def test_without_dask_the_user_is_told_how_to_get_it(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(InputError, match=r"pip install .dask\[distributed\]."):
        segment_images(a_job, dask="tcp://somewhere:8786")


class FakeFuture:
    def __init__(self, value: Any) -> None:
        self.value = value

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value


class FakeCluster:
    """Stands in for dask.distributed.Client: runs what it is given at once, JSON in and JSON out."""

    addresses: list[str] = []  # noqa: RUF012 - one list for all of them, to look into

    def __init__(self, address: str) -> None:
        self.addresses.append(address)

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Any, values: dict[str, Any], *, pure: bool) -> FakeFuture:
        import json

        assert not pure
        return FakeFuture(json.loads(json.dumps(function(json.loads(json.dumps(values))))))


def test_a_dask_cluster_does_the_same(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("dask.distributed")
    module.Client = FakeCluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask", types.ModuleType("dask"))
    monkeypatch.setitem(sys.modules, "dask.distributed", module)
    Path(a_job.images[2]).write_bytes(b"nothing")
    with pytest.raises(SomeImagesFailed, match=r"p3\.nrrd"):
        segment_images(a_job, dask="tcp://scheduler:8786")
    assert FakeCluster.addresses == ["tcp://scheduler:8786"]
    assert [row["state"] for row in rows_of(a_job)] == ["segmented"] * 4 + ["failed"]


def test_less_than_one_process_is_refused(a_job: SegmentJob) -> None:
    with pytest.raises(InputError, match="At least one process"):
        run_jobs([a_job], processes=0)


@pytest.mark.parametrize(
    ("message", "error", "mine"),
    [
        ({"type": "result", "result": {"a": 1}}, "", True),
        (
            {"type": "error", "kind": "input", "message": "No such file.", "result": {"images": []}},
            "No such file.",
            True,
        ),
        ({"type": "error", "kind": "defect", "message": "ValueError: a defect"}, "ValueError: a defect", False),
        (
            {"type": "dead", "returncode": -9, "stderr": ["loading", "Killed"]},
            "The worker process ended with code -9. Killed",
            False,
        ),
        ({"type": "dead", "returncode": 1, "stderr": []}, "The worker process ended with code 1. ", False),
    ],
)
def test_what_a_worker_says_last_is_what_became_of_its_job(message: dict[str, Any], error: str, mine: bool) -> None:
    job = EvaluateJob("p", "r", "m.csv")
    outcome = _outcome_from(job, message)
    assert (outcome.job, outcome.error, outcome.is_input_error) == (job, error, mine)
    assert outcome.result == message.get("result")
