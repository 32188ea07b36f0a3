"""Many images and jobs: the table, the failures, the second run, and every way of spreading the work."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, Job, Part, SegmentJob
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.jobs.segment import SomeImagesFailed
from FewShotSegLib.jobs.volumes_table import COLUMNS
from FewShotSegLib.worker import batch
from FewShotSegLib.worker.batch import _outcome_from, run_jobs, segment_images, table_of_folder
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


def test_failures_can_be_left_to_the_table(a_job: SegmentJob) -> None:
    Path(a_job.images[1]).write_bytes(b"nothing")
    result = segment_images(a_job, raise_failures=False)
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


def as_on_a_cluster(monkeypatch: pytest.MonkeyPatch, dies: int | None = None) -> dict[str, Any]:
    """Do what a cluster does, JSON in and JSON out and the last first; the worker of request `dies` is killed."""
    asked: dict[str, Any] = {}

    def answers(work: Any, requests: dict[int, Any], address: str, **options: Any) -> Any:
        asked.update(options, address=address)
        for number in reversed(requests):
            values = json.loads(json.dumps(requests[number]))
            dead = {"type": "dead", "returncode": None, "stderr": ["Its workers died 3 times."]}
            yield number, dead if number == dies else json.loads(json.dumps(work(values)))

    monkeypatch.setattr(batch, "answers_of", answers)
    return asked


def test_a_cluster_does_the_same_in_any_order(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = as_on_a_cluster(monkeypatch)
    Path(a_job.images[2]).write_bytes(b"nothing")
    with pytest.raises(SomeImagesFailed, match=r"p3\.nrrd"):
        segment_images(a_job, dask="tcp://scheduler:8786")
    assert asked["address"] == "tcp://scheduler:8786"
    assert (asked["processes"], asked["gpus"]) == (None, 0)
    assert [row["state"] for row in rows_of(a_job)] == ["segmented"] * 4 + ["failed"]


def test_a_worker_of_a_cluster_that_was_killed_takes_only_its_own_image_along(
    a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_cluster(monkeypatch, dies=1)
    result = segment_images(a_job, dask="local", processes=2, raise_failures=False)
    assert ["error" in record for record in result["images"]] == [False, True, False]
    assert [row["state"] for row in rows_of(a_job)] == ["segmented"] * 2 + ["failed"] + ["segmented"] * 2
    assert "Its workers died 3 times" in rows_of(a_job)[2]["error"]


def test_rows_are_written_as_images_end_and_stay_when_the_batch_is_killed(
    a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_cluster(monkeypatch)
    running = Path(a_job.out) / "volumes.running.csv"
    seen: list[int] = []
    add = batch.RunningTable.add

    def killed_at_the_third(self: Any, record: dict[str, Any]) -> None:
        seen.append(len(running.read_text(encoding="utf-8").splitlines()))
        if len(seen) == 3:
            raise KeyboardInterrupt
        add(self, record)

    monkeypatch.setattr(batch.RunningTable, "add", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        segment_images(a_job, dask="local")
    assert seen == [1, 3, 5]
    assert not (Path(a_job.out) / "volumes.csv").exists()
    monkeypatch.setattr(batch.RunningTable, "add", add)
    segment_images(a_job, dask="local")
    assert not running.exists()
    assert len(rows_of(a_job)) == 6


@pytest.mark.parametrize("dask", [None, "local"])
def test_a_batch_keeps_of_its_images_what_is_their_own(
    a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch, dask: str | None
) -> None:
    as_on_a_cluster(monkeypatch)
    result = segment_images(a_job, dask=dask)
    assert result["job"]["images"] == list(a_job.images)
    assert {"versions", "device", "threads", "seed", "outputs", "timings_s"} <= set(result)
    for image, record in zip(a_job.images, result["images"], strict=True):
        assert record["image"] == image
        assert {"metrics", "outputs", "timings_s", "warnings"} <= set(record)
        assert not {"job", "versions"} & set(record)  # of ten thousand images they would take 40 MB
        file = Path(a_job.out) / f"{Path(image).stem}.result.json"
        assert {"job", "versions"} <= set(json.loads(file.read_text(encoding="utf-8")))


def test_parts_do_every_image_once_and_their_tables_are_joined(a_job: SegmentJob) -> None:
    for number in (1, 2):
        segment_images(a_job, part=Part(number, 2))
    assert {path.name for path in Path(a_job.out).glob("*.csv")} == {"volumes.1-of-2.csv", "volumes.2-of-2.csv"}
    table, count = table_of_folder(Path(a_job.out))
    assert (table.name, count) == ("volumes.csv", 3)
    joined = rows_of(a_job)
    segment_images(a_job)
    assert [{**row, "state": ""} for row in joined] == [{**row, "state": ""} for row in rows_of(a_job)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_share_all_images_without_overlap(count: int) -> None:
    images = [str(number) for number in range(10)]
    shares = [Part(number + 1, count).of(images) for number in range(count)]
    assert sorted(image for share in shares for image in share) == images
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_and_tables_that_make_no_sense_are_refused(a_job: SegmentJob, tmp_path: Path) -> None:
    for number, count in ((0, 2), (3, 2), (1, 0)):
        with pytest.raises(InputError, match="from 1 to n"):
            Part(number, count)
    with pytest.raises(InputError, match="Part 4/4 has no image: there are 3"):
        segment_images(a_job, part=Part(4, 4))
    with pytest.raises(InputError, match="no record of a segmented image"):
        table_of_folder(tmp_path)


def test_a_model_is_loaded_once_for_all_images_of_a_process(a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from FewShotSegLib.jobs import segment

    loaded: list[str | None] = []
    load = segment.load_any_predictor

    def counted(adapter: str | None, *others: Any) -> Any:
        loaded.append(adapter)
        return load(adapter, *others)

    monkeypatch.setattr(segment, "load_any_predictor", counted)
    run_jobs([replace(a_job, images=(image,)) for image in a_job.images])
    assert len(loaded) == 1


def test_no_encoded_slice_of_an_image_is_kept_when_the_next_one_comes(
    a_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.inference.embedding_cache import EmbeddingCache

    kept: list[int] = []
    put = EmbeddingCache.put

    def counted(self: Any, *arguments: Any) -> None:
        put(self, *arguments)
        kept.append(len(self))

    monkeypatch.setattr(EmbeddingCache, "put", counted)
    segment_images(a_job)
    assert kept
    assert max(kept) <= 6  # the slices of one


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
        (
            {"type": "dead", "returncode": None, "stderr": ["Its workers died 3 times."]},
            "The worker process ended. Its workers died 3 times.",
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
