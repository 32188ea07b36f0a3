"""The worker process and its client: clicks, jobs, superseding, cancelling, dying."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob, to_dict
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.methods import METHODS, method
from FewShotSegLib.worker.__main__ import Channel, Requests, read
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import QUICK, discs, write_discs

PATIENCE_S = 60.0
Messages = list[dict[str, Any]]


def wait_for(client: WorkerClient, wanted: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE_S) -> Messages:
    """Poll as a front end does, until a message fits; returns everything up to it."""
    deadline, seen = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        for message in client.poll():
            seen.append(message)
            if wanted(message):
                return seen
        time.sleep(0.01)
    raise AssertionError(f"nothing fitting came, only {seen[-3:]}")


def answer_to(client: WorkerClient, number: int) -> dict[str, Any]:
    def final(message: dict[str, Any]) -> bool:
        return message.get("type") == "dead" or (message.get("id") == number and message["type"] != "progress")

    return wait_for(client, final)[-1]


def ask(client: WorkerClient, **request: Any) -> dict[str, Any]:
    return answer_to(client, client.submit(request))


def a_click(index: int = 2, structure: str | None = "disc") -> dict[str, Any]:
    point = np.array([[22.0, 24.0, float(index)]])
    return Prompt(0, index, point, np.array([1]), structure=structure).to_dict()


@pytest.fixture(scope="module")
def a_shared_client() -> Iterator[WorkerClient]:
    """One process for the tests that leave it as it was; starting one with torch takes seconds."""
    with WorkerClient(environment={"OMP_NUM_THREADS": "1"}) as client:
        yield client


@pytest.fixture
def a_client(a_shared_client: WorkerClient, an_adapter_file: Path) -> WorkerClient:
    """The shared process knows the home of the test that started it; models are given to it by path."""
    return a_shared_client


@pytest.fixture
def where(an_adapter_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {"adapter": str(an_adapter_file), "base": str(tmp_path / "home" / "tiny.safetensors"), "device": "cpu"}


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


def test_polling_never_waits_and_needs_no_worker() -> None:
    client = WorkerClient()
    assert client.poll() == []
    assert not client.is_running
    client.close()


def test_hello_tells_versions(a_client: WorkerClient) -> None:
    answer = ask(a_client, op="hello")
    assert answer["result"]["pid"] == a_client.pid != os.getpid()
    assert answer["result"]["versions"]["FewShotSegLib"]


def test_a_click_is_answered_with_the_mask_of_the_library(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator, tmp_path: Path
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    answer = ask(a_client, op="predict", volume="v", prompt=a_click(), mask_path=str(tmp_path / "mask.npy"), **where)
    found = Prompt.from_dict({k: answer["result"][k] for k in ("axis", "index", "mask")})
    expected, iou = mask_of_the_library(volume, where)
    assert found.mask is not None
    assert np.array_equal(found.mask, expected)
    assert np.array_equal(np.load(tmp_path / "mask.npy"), expected)
    assert answer["result"]["iou"] == pytest.approx(iou, abs=1e-5)
    a_client.forget_volume("v")


def mask_of_the_library(volume: Volume, where: dict[str, Any]) -> tuple[Any, float]:
    import torch

    from FewShotSegLib.imaging.slice_frame import frame_of, to_network
    from FewShotSegLib.inference.load import load_predictor

    predictor = load_predictor(where["adapter"], where["base"], torch.device("cpu"))
    assert predictor.adapter is not None
    spec, frame = predictor.adapter.intensity, frame_of(volume, 0, 2, predictor.image_size)
    square = to_network(spec.apply(volume.array[2], spec.range_of(volume.array)), frame)
    masks = predictor.answer(predictor.encode([square])[0], Prompt.from_dict(a_click()), frame, [1])
    return predictor.on_voxels(masks, frame)[0] > 0, float(masks.iou[0])


def test_the_file_that_carries_a_volume_is_removed_once_it_was_read(
    a_client: WorkerClient, an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    answer_to(a_client, a_client.send_volume("v", volume.array, volume.affine))
    assert list(a_client._files().iterdir()) == []
    a_client.forget_volume("v")


def test_a_click_is_followed_to_the_neighbouring_slices(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    answer = ask(a_client, op="propagate", volume="v", prompts=[a_click(2)], direction=1, count=2, **where)
    slices = answer["result"]["slices"]
    assert [found["index"] for found in slices] == list(range(2, 2 + len(slices)))
    first = Prompt.from_dict({key: slices[0][key] for key in ("axis", "index", "mask")})
    expected, iou = mask_of_the_library(volume, where)
    assert first.mask is not None
    assert np.array_equal(first.mask, expected)
    assert slices[0]["iou"] == pytest.approx(iou, abs=1e-5)
    a_client.forget_volume("v")


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


def a_long_job(tmp_path: Path, where: dict[str, Any]) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "case", 0)
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    recipe = {**QUICK, "steps": 100_000}
    out = str(tmp_path / "long" / "a.safetensors")
    return AdaptJob(out, exemplars=(exemplar,), base=where["base"], recipe=recipe, device="cpu")


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


def test_the_slice_to_annotate_next_is_suggested(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    number = a_client.submit({"op": "suggest", "volume": "v", "known": [2], **where})
    seen = wait_for(a_client, lambda message: message.get("id") == number and message["type"] != "progress")
    found = seen[-1]["result"]
    assert found["axis"] == "k"
    assert set(found["doubts"]) == {"0", "4", "5"}
    assert found["doubts"][str(found["index"])] == max(found["doubts"].values())
    assert [message["step"] for message in seen if message.get("type") == "progress"] == [1, 2, 3]
    a_client.forget_volume("v")


def test_closing_during_a_job_ends_the_process_and_leaves_no_output(where: dict[str, Any], tmp_path: Path) -> None:
    client = WorkerClient(environment={"OMP_NUM_THREADS": "1"})
    client.submit({"op": "job", "job": to_dict(a_long_job(tmp_path, where))})
    wait_for(client, lambda message: message.get("step", 0) >= 1)
    pid = client.pid
    client.close()
    assert not is_alive(pid)
    assert list((tmp_path / "long").iterdir()) == []


def is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_dead_worker_is_reported_once_and_replaced_with_its_volumes(
    where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    import signal

    volume, _ = discs(an_rng)
    with WorkerClient(environment={"OMP_NUM_THREADS": "1"}) as client:
        answer_to(client, client.send_volume("v", volume.array, volume.affine))
        first = client.pid or 0
        os.kill(first, signal.SIGSTOP)  # so that the request cannot be answered before it dies
        number = client.submit({"op": "hello"})
        os.kill(first, signal.SIGKILL)
        message = wait_for(client, lambda message: message["type"] == "dead")[-1]
        assert number in message["ids"]
        assert message["returncode"] == -signal.SIGKILL
        assert client.poll() == []
        answer = ask(client, op="encode", volume="v", index=1, **where)
        assert answer["type"] == "result"
        assert client.pid != first


def a_python(tmp_path: Path, body: str) -> str:
    """An interpreter that ignores what it is asked to run and does something else."""
    script = tmp_path / "python"
    program = tmp_path / "program.py"
    program.write_text(body, encoding="utf-8")
    # Not "#!python": that line cannot hold a path with a space in it.
    script.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))}\n", encoding="utf-8")
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(os.name == "nt", reason="a script as interpreter")
def test_the_last_words_of_a_worker_that_cannot_start_are_passed_on(tmp_path: Path) -> None:
    client = WorkerClient(a_python(tmp_path, "import sys\nsys.exit('no module named torch')\n"))
    number = client.submit({"op": "hello"})
    message = wait_for(client, lambda message: message["type"] == "dead")[-1]
    assert message["ids"] == [number]
    assert message["stderr"] == ["no module named torch"]
    assert client.poll() == []


@pytest.mark.skipif(os.name == "nt", reason="a script as interpreter")
def test_a_worker_that_will_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    body = (
        "import json, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))\n"
        "print(json.dumps({'id': 1, 'type': 'result', 'child': child.pid}), flush=True)\n"
        "time.sleep(600)\n"
    )
    client = WorkerClient(a_python(tmp_path, body))
    child = ask(client, op="hello")["child"]
    pid = client.pid
    client.close(patience_s=0.1)
    assert not is_alive(pid)
    deadline = time.monotonic() + 10
    while is_alive(child) and not is_zombie(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child) or is_zombie(child)


def is_zombie(pid: int) -> bool:
    """Killed, and not yet taken note of by whatever is process 1 here."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_what_libraries_print_does_not_disturb_the_protocol() -> None:
    code = (
        "import os, sys; from FewShotSegLib.worker.__main__ import guarded_streams; stream, output = guarded_streams();"
        "sys.stdout.write('chatter'); os.write(1, b'more chatter'); output.write('{}'); output.flush()"
    )
    import subprocess

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "{}"
    assert "chatter" in done.stderr


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="Cannot start /no/such/python"):
        WorkerClient("/no/such/python").submit({"op": "hello"})


@pytest.mark.skipif(os.name == "nt", reason="Windows has priority classes")
def test_a_worker_lets_the_window_go_first() -> None:
    with WorkerClient(niceness=3) as client:
        ask(client, op="hello")
        assert client.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, client.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)


def test_the_client_does_without_torch() -> None:
    import subprocess

    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; import FewShotSegLib.worker.client; print([m for m in ('torch', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_volume_in_a_file_reads_as_it_was_written(a_client: WorkerClient, tmp_path: Path) -> None:
    image, _ = write_discs(tmp_path, "p", 1)
    volume = load_volume(image)
    np.save(tmp_path / "v.npy", volume.array)
    answer = ask(a_client, op="volume", volume="f", path=str(tmp_path / "v.npy"), affine=volume.affine.tolist())
    assert answer["result"]["shape"] == [6, 64, 64]
    assert (tmp_path / "v.npy").exists()


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
