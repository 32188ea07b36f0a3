"""What a worker does with its requests: superseding, cancelling, jobs, and the protocol on its streams."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import SegmentJob, to_dict
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.errors import Cancelled
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.methods import METHODS, method
from FewShotSegLib.progress import Control, Progress
from FewShotSegLib.worker.__main__ import Channel, Requests, Worker, give_way, main, read
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import QUICK, discs, write_discs
from Testing.Library.worker.conftest import a_click, a_long_job, answer_to, ask, wait_for

# ---------------------------------------------------------------------------------------------- without a process


def fed(*lines: str) -> tuple[Requests, list[dict[str, Any]]]:
    requests, output = Requests(), io.StringIO()
    read(io.StringIO("".join(line + "\n" for line in lines)), Channel(output), requests, _set())
    return requests, [json.loads(line) for line in output.getvalue().splitlines()]


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def queued(*given: dict[str, Any]) -> Requests:
    requests = Requests()
    for request in given:
        requests.add(dict(request))
    return requests


def predict(number: int, view: str = "red") -> dict[str, Any]:
    return {"id": number, "op": "predict", "view": view}


def test_the_newest_click_of_a_view_wins() -> None:
    requests = queued(predict(1), predict(2), predict(3))
    taken = [requests.next() for _ in range(3)]
    assert [(t or {}).get("superseded", False) for t in taken] == [True, True, False]


def test_clicks_in_another_view_are_answered() -> None:
    requests = queued(predict(1, "red"), predict(2, "green"))
    assert not any((requests.next() or {}).get("superseded") for _ in range(2))


def test_a_click_makes_preparing_a_slice_of_the_same_view_needless() -> None:
    requests = queued({"id": 1, "op": "encode", "view": "red"}, predict(2))
    assert (requests.next() or {}).get("superseded")
    assert not (requests.next() or {}).get("superseded")


def test_a_job_is_never_superseded() -> None:
    requests = queued({"id": 1, "op": "job"}, {"id": 2, "op": "job"}, predict(3))
    assert not any((requests.next() or {}).get("superseded") for _ in range(3))


def test_a_waiting_request_can_be_cancelled() -> None:
    requests = queued({"id": 1, "op": "job"})
    assert requests.add({"id": 2, "op": "cancel", "target": 1})
    assert (requests.next() or {})["cancelled"]


def test_cancelling_something_unknown_finds_nothing() -> None:
    _, answers = fed('{"id": 5, "op": "cancel", "target": 99}')
    assert answers == [{"id": 5, "type": "result", "result": {"found": False}}]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"id": 1}', "3"])
def test_a_line_that_is_no_request_is_answered(line: str) -> None:
    _, answers = fed(line)
    assert answers[0]["kind"] == "input"
    assert "Not a request" in answers[0]["message"]


def test_the_end_of_the_input_is_the_end_of_the_work() -> None:
    requests, _ = fed('{"id": 1, "op": "job"}')
    assert requests.next() is None


# ------------------------------------------------------------------------------------------------ with a process


def test_hello_tells_versions(a_client: WorkerClient) -> None:
    answer = ask(a_client, op="hello")
    assert answer["result"]["pid"] == a_client.pid != os.getpid()
    assert answer["result"]["versions"]["FewShotSegLib"]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"op": "propagate", "volume": "v", "prompts": [], "count": 2}, "at least one prompt"),
        ({"op": "propagate", "volume": "v", "direction": 2, "count": 2}, "-1, 0 (both) or 1"),
        ({"op": "predict", "volume": "unknown", "prompt": {}}, "No volume is called 'unknown'"),
        ({"op": "predict", "volume": "v", "prompt": {"axis": "k", "index": 99, "structure": "disc"}}, "k=99"),
        ({"op": "predict", "volume": "v", "prompt": {"points_ijk": [[500, 0, 2]]}}, "lies outside the volume"),
        ({"op": "predict", "volume": "v", "prompt": {"index": 2, "structure": "liver"}}, "knows no structure 'liver'"),
        ({"op": "encode", "volume": "v", "index": "2"}, "whole number"),
        ({"op": "volume", "volume": "w", "path": "nowhere.npy"}, "Cannot read the volume"),
        ({"op": "dance"}, "Unknown request 'dance'"),
        ({"op": "job", "job": {"kind": "walk"}}, '"kind" of a job'),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    request_: dict[str, Any], sentence: str, a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    answer = ask(a_client, **request_, **where)
    assert (answer["type"], answer["kind"]) == ("error", "input")
    assert sentence in answer["message"]


def test_many_clicks_are_answered_by_the_last_mask_only(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    answer_to(a_client, a_client.send_volume("v", volume.array, volume.affine))
    numbers = [
        a_client.submit({"op": "predict", "volume": "v", "view": "red", "prompt": a_click(k % 6), **where})
        for k in range(30)
    ]
    seen = wait_for(a_client, lambda message: message.get("id") == numbers[-1])
    kinds = {message["id"]: message["type"] for message in seen}
    assert kinds[numbers[-1]] == "result"
    assert set(kinds) >= set(numbers)
    assert sum(kind == "superseded" for kind in kinds.values()) >= 20


def test_a_job_runs_with_progress_and_its_record_comes_back(
    a_client: WorkerClient, where: dict[str, Any], tmp_path: Path
) -> None:
    image, _ = write_discs(tmp_path, "p", 1)
    job = SegmentJob((str(image),), str(tmp_path / "out"), **where)
    number = a_client.submit({"op": "job", "job": to_dict(job)})
    seen = wait_for(a_client, lambda message: message.get("id") == number and message["type"] != "progress")
    assert [m["step"] for m in seen if m["type"] == "progress" and m["total"]] == [1, 2, 3, 4, 5, 6]
    assert seen[-1]["result"]["outputs"].keys() == {"p.seg.nrrd"}
    assert load_labelmap(tmp_path / "out" / "p.seg.nrrd").structures == {1: "disc", 2: "square"}


def test_a_running_job_is_cancelled_and_the_worker_stays(
    a_client: WorkerClient, where: dict[str, Any], tmp_path: Path
) -> None:
    number = a_client.submit({"op": "job", "job": to_dict(a_long_job(tmp_path, where))})
    wait_for(a_client, lambda message: message.get("step", 0) >= 2)
    pid = a_client.pid
    a_client.cancel(number)
    answer = answer_to(a_client, number)
    assert (answer["type"], answer["kind"]) == ("error", "cancelled")
    assert list((tmp_path / "long").iterdir()) == []
    assert ask(a_client, op="hello")["result"]["pid"] == pid


def test_a_running_job_can_be_stopped_with_the_best_kept(
    a_client: WorkerClient, where: dict[str, Any], tmp_path: Path
) -> None:
    number = a_client.submit({"op": "job", "job": to_dict(a_long_job(tmp_path, where))})
    wait_for(a_client, lambda message: message.get("step", 0) >= 2)
    a_client.stop_and_keep_best(number)
    answer = answer_to(a_client, number)
    assert answer["result"]["metrics"]["stopped_by"] == "user"
    assert (tmp_path / "long" / "a.safetensors").exists()


def test_a_batch_names_what_failed_in_its_record_and_writes_the_table(
    a_client: WorkerClient, where: dict[str, Any], tmp_path: Path
) -> None:
    image, _ = write_discs(tmp_path, "p", 1)
    (tmp_path / "broken.nrrd").write_bytes(b"nothing")
    job = SegmentJob((str(image), str(tmp_path / "broken.nrrd")), str(tmp_path / "out"), **where)
    answer = ask(a_client, op="batch", job=to_dict(job))
    assert ["error" in record for record in answer["result"]["images"]] == [False, True]
    assert (tmp_path / "out" / "volumes.csv").exists()
    assert "another kind of job" in ask(a_client, op="batch", job=to_dict(a_long_job(tmp_path, where)))["message"]
    assert "At least one process" in ask(a_client, op="batch", job=to_dict(job), processes=0)["message"]


def test_what_a_job_will_take_is_measured(a_client: WorkerClient, where: dict[str, Any], tmp_path: Path) -> None:
    job = a_long_job(tmp_path, where)
    number = a_client.submit({"op": "measure", "job": to_dict(job)})
    seen = wait_for(a_client, lambda message: message.get("id") == number and message["type"] != "progress")
    assert seen[-1]["result"]["seconds"] > 1000 * seen[-1]["result"]["seconds_per_step"] > 0
    assert any(message.get("metrics", {}).get("done") for message in seen)
    assert not Path(job.out).exists()


def test_samples_are_drawn_to_look_at(a_client: WorkerClient, where: dict[str, Any], tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    answer = ask(a_client, op="preview", job=to_dict(a_long_job(tmp_path, where)), sheet=str(sheet), count=2)
    assert answer["result"] == {"sheet": str(sheet)}
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_what_libraries_print_does_not_disturb_the_protocol() -> None:
    code = (
        "import os, sys; from FewShotSegLib.worker.__main__ import guarded_streams; stream, output = guarded_streams();"
        "sys.stdout.write('chatter'); os.write(1, b'more chatter'); output.write('{}'); output.flush()"
    )
    import subprocess

    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "{}"
    assert "chatter" in done.stderr


def test_a_folder_is_described_in_short(a_client: WorkerClient, tmp_path: Path) -> None:
    write_discs(tmp_path / "data" / "hospital", "p1", 1)
    (tmp_path / "data" / "hospital" / "card.json").write_text('{"modality": "MR", "licence": "CC BY 4.0"}', "utf-8")
    found = ask(a_client, op="folder", path=str(tmp_path / "data"), holds="data sets")["result"]
    card = {"name": "hospital", "cases": 1, "structures": [], "modality": "MR", "licence": "CC BY 4.0"}
    assert found == {"data_sets": [card]}
    assert ask(a_client, op="folder", path=str(tmp_path / "data" / "hospital"), holds="volumes")["result"] == {
        "volumes": 1
    }
    refused = ask(a_client, op="folder", path=str(tmp_path / "data"), holds="volumes")
    assert (refused["kind"], "holds no volume" in refused["message"]) == ("input", True)


def test_the_methods_are_described_for_a_form(a_client: WorkerClient) -> None:
    described = {entry["name"]: entry for entry in ask(a_client, op="methods")["result"]["methods"]}
    assert set(described) == set(METHODS)
    lora = described["lora"]
    assert (lora["needs"], lora["label"]) == (["exemplars"], method("lora").LABEL)
    assert lora["options"] == json.loads(json.dumps(describe(method("lora").Recipe)))


def test_a_training_sends_pictures_of_what_the_model_answers(
    a_client: WorkerClient, where: dict[str, Any], tmp_path: Path
) -> None:
    job = replace(a_long_job(tmp_path, where), recipe={**QUICK, "steps": 2, "validate_every": 2})
    number = a_client.submit({"op": "job", "job": to_dict(job)})
    heard = wait_for(a_client, lambda message: message.get("id") == number and message["type"] == "result")
    pictures = [message["picture"] for message in heard if "picture" in message]
    assert [picture["shape"] for picture in pictures] == [[64, 256, 3]]
    assert len(base64.b64decode(pictures[0]["data"])) == 64 * 256 * 3


def worked(requests: Requests, **does: Any) -> list[dict[str, Any]]:
    """What a worker in this process sends for these requests, doing what is given."""
    output = io.StringIO()
    worker = Worker(Channel(output), requests)
    worker._does = {"hello": worker._hello} | {name: worker._watched(work) for name, work in does.items()}
    requests.add({"id": "last", "op": "shutdown"})
    worker.run()
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_every_request_has_one_answer_and_a_shutdown_ends_the_work() -> None:
    def work(request: dict[str, Any], report: Any) -> dict[str, Any]:
        report(Progress(1, 2, "Läsion"))
        return {"done": request.get("id")}

    requests = queued({"id": 1, "op": "work"}, {"id": "zwei", "op": "hello"}, {"op": "work"})
    answers = worked(requests, work=work)
    assert [(one["id"], one["type"]) for one in answers] == [
        (1, "progress"),
        (1, "result"),
        ("zwei", "result"),
        (None, "progress"),
        (None, "result"),
        ("last", "result"),
    ]
    assert (answers[0]["message"], answers[1]["result"]) == ("Läsion", {"done": 1})


def test_a_defect_is_answered_with_its_traceback_and_the_work_goes_on() -> None:
    def broken(request: dict[str, Any], report: Any) -> dict[str, Any]:
        return {"share": 1 / 0}

    failed, again, _ = worked(queued({"id": 1, "op": "work"}, {"id": 2, "op": "hello"}), work=broken)
    assert (failed["kind"], failed["message"]) == ("defect", "ZeroDivisionError: division by zero")
    assert "in broken" in failed["traceback"]
    assert again["type"] == "result"


def test_what_was_cancelled_while_it_waited_is_not_begun() -> None:
    requests = queued({"id": 1, "op": "work"})
    requests.add({"op": "cancel", "target": 1})
    (answer, _) = worked(requests, work=lambda request, report: pytest.fail("begun"))
    assert (answer["type"], answer["kind"]) == ("error", "cancelled")


@pytest.mark.parametrize(("op", "raised"), [("cancel", "cancelled"), ("stop_and_keep_best", None)])
def test_running_work_hears_at_its_next_report_what_was_asked(op: str, raised: str | None) -> None:
    requests = queued({"id": 1, "op": "work"})

    def work(request: dict[str, Any], report: Any) -> dict[str, Any]:
        assert not requests.add({"op": op, "target": 2})  # another request, which is not there
        assert requests.add({"op": op, "target": 1})
        report(Progress(1, 2))
        return {"stopped": report.stopped}

    answers = worked(requests, work=work)
    assert answers[1].get("kind") == raised
    assert answers[1].get("result", {"stopped": None}) == {"stopped": None if raised else True}


def test_the_end_of_the_input_cancels_what_runs_and_what_begins_then() -> None:
    requests, running, late = Requests(), Control(), Control()
    requests.start({"id": 1}, running)
    requests.close()
    requests.start({"id": 2}, late)
    for control in (running, late):
        with pytest.raises(Cancelled):
            control(Progress(1, 2))
    assert requests.next() is None


def test_several_threads_never_mix_their_lines() -> None:
    output = io.StringIO()
    channel = Channel(output)
    threads = [
        threading.Thread(target=lambda n=n: [channel.send(n, "result", text="x" * 50) for _ in range(100)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(100 * [0, 1, 2, 3])


@pytest.mark.parametrize("niceness", ["20", "-1", "much"])
def test_a_niceness_that_does_not_exist_is_refused(niceness: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--niceness", niceness])
    assert "--niceness" in capsys.readouterr().err


def test_a_process_gives_way_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "nice", given.append)
    monkeypatch.setattr(Path, "write_text", lambda self, text: given.append(int(text)))
    give_way(0)
    assert given == []
    give_way(5)
    assert given[:1] == ([5] if os.name != "nt" else [])
