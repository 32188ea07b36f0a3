"""Two real worker processes, and processes that are not what they should be."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegSlicer.Workers.Workers import Workers

PATIENCE_S = 60.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Heard:
    """What the callbacks of a request heard, as (what, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def callbacks(self) -> dict[str, Any]:
        names = ("onResult", "onError", "onProgress", "onSuperseded")
        return {name: self._hearing(name) for name in names}

    def _hearing(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, arguments))

    @property
    def ending(self) -> tuple[str, tuple[Any, ...]] | None:
        return next((call for call in self.calls if call[0] != "onProgress"), None)


def pollUntil(workers: Workers, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        workers.poll()
        time.sleep(0.005)


def asked(workers: Workers, worker: Any, **request: Any) -> tuple[str, tuple[Any, ...]]:
    heard = Heard()
    workers.request(worker, request, **heard.callbacks())
    pollUntil(workers, lambda: heard.ending)
    assert heard.ending is not None
    return heard.ending


def isWaitedFor(workers: Workers, worker: str) -> bool:
    """Whether a request to this worker is still to be answered."""
    return any(name == worker for name, _number in workers._waiting)


def aPython(folder: Path, program: str) -> str:
    """An interpreter that runs `program`, whatever it is asked to run."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    script = folder / "python"
    command = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(folder / 'program.py'))}"
    script.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Real ones, shared by the tests that leave them as they were; children of the launcher, as in Slicer."""
    shared = Workers(environment=ONE_THREAD)
    yield shared
    shared.close()


def test_jobs_leave_a_core_to_clicks_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(workers: Workers, worker: str) -> str | None:
        return workers._clients[worker]._environment.get("OMP_NUM_THREADS")

    spared = Workers()
    assert (threads(spared, "job"), threads(spared, "prompt")) == ("7", None)
    assert threads(Workers(environment={"OMP_NUM_THREADS": "3"}), "job") == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(Workers(), "job") == "5"


def test_clicks_and_jobs_are_answered_by_two_processes(workers: Workers) -> None:
    pids = {asked(workers, worker, op="hello")[1][0]["pid"] for worker in ("prompt", "job")}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_request_is_answered_by_poll_and_never_before(workers: Workers) -> None:
    heard = Heard()
    workers.request("prompt", {"op": "hello"}, **heard.callbacks())
    assert isWaitedFor(workers, "prompt")
    assert not isWaitedFor(workers, "job")
    time.sleep(0.5)
    assert heard.calls == []
    pollUntil(workers, lambda: heard.calls)
    assert not isWaitedFor(workers, "prompt")


def test_a_mistake_is_told_as_one_sentence(workers: Workers) -> None:
    what, (kind, message) = asked(workers, "prompt", op="encode", volume="nobody", index=0)
    assert (what, kind) == ("onError", "input")
    assert message == "No volume is called 'nobody' here; send it first."


def test_handing_over_a_large_volume_never_waits_and_what_needs_it_comes_after(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def slow(*arguments: Any) -> None:
        time.sleep(0.5)
        save(*arguments)

    asked(workers, "prompt", op="hello")
    monkeypatch.setattr(np, "save", slow)
    started = time.monotonic()
    workers.sendVolume("large", np.zeros((2, 4, 4), np.int16), np.eye(4))
    assert time.monotonic() - started < 0.25
    what, (kind, message) = asked(workers, "prompt", op="encode", volume="large", index=9)
    assert (what, kind) == ("onError", "input")
    assert "9" in message, "the volume was not there yet"
    workers.forgetVolume("large")


def test_a_volume_that_cannot_be_written_is_tried_again_for_what_needs_it(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        workers.sendVolume("v", np.zeros((2, 4, 4), np.int16), np.eye(4))
        what, (kind, message) = asked(workers, "prompt", op="encode", volume="v", index=9)
    assert (what, kind) == ("onError", "input")
    sentence = "Cannot hand the volume to the worker: No space left on device. Make room in the temporary folder."
    assert message == sentence
    _what, (_kind, message) = asked(workers, "prompt", op="encode", volume="v", index=9)
    assert "9" in message
    workers.forgetVolume("v")


def test_of_a_defect_the_traceback_follows_the_sentence(workers: Workers) -> None:
    heard: list[tuple[str, str]] = []
    number = workers.request("prompt", {"op": "hello"}, onError=lambda *error: heard.append(error))
    answer = {"kind": "defect", "message": "KeyError: 'x'", "traceback": "Traceback (most recent call last): ..."}
    workers._end("prompt", number, "error", answer)
    ((kind, message),) = heard
    sentence, traceback = message.split("\n\n", 1)
    assert (kind, sentence) == ("defect", "KeyError: 'x'")
    assert traceback.startswith("Traceback")


def test_a_volume_is_known_to_the_worker_it_was_sent_to(workers: Workers) -> None:
    workers.sendVolume("w", np.zeros((2, 4, 4), np.int16), np.eye(4), worker="job")
    assert asked(workers, "job", op="forget", volume="w")[1][0] == {"known": True}
    assert asked(workers, "prompt", op="forget", volume="w")[1][0] == {"known": False}


def test_older_clicks_of_a_view_are_told_that_they_are_superseded(workers: Workers) -> None:
    workers.sendVolume("v", np.zeros((2, 4, 4), np.int16), np.eye(4))
    # Loads the model: the clicks have to wait.
    workers.request("prompt", {"op": "encode", "volume": "v", "index": 0, "base": "bundled-small"})
    request = {"op": "predict", "view": "red", "volume": "nobody", "prompt": {}}
    heard = [Heard() for _ in range(20)]
    for one in heard:
        workers.request("prompt", request, **one.callbacks())
    pollUntil(workers, lambda: all(one.ending for one in heard))
    endings = [one.ending[0] for one in heard if one.ending]
    assert endings == ["onSuperseded"] * 19 + ["onError"]
    workers.forgetVolume("v")


def test_a_callback_that_fails_is_logged_and_the_others_are_called(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    workers.request("prompt", {"op": "hello"}, onResult=lambda result: 1 / 0)
    workers.request("prompt", {"op": "hello"}, **heard.callbacks())
    pollUntil(workers, lambda: heard.ending)
    assert "ZeroDivisionError" in caplog.text


def test_nobody_is_called_after_close() -> None:
    workers, heard = Workers(environment=ONE_THREAD), Heard()
    workers.request("job", {"op": "hello"}, **heard.callbacks())
    workers.close()
    workers.poll()
    assert heard.calls == []
    assert not isWaitedFor(workers, "job")


def test_a_python_that_is_not_there_is_told_by_the_next_poll() -> None:
    workers, heard = Workers("/nowhere/python"), Heard()
    workers.request("job", {"op": "hello"}, **heard.callbacks())
    assert heard.calls == []
    workers.poll()
    assert heard.calls == [("onError", ("input", heard.calls[0][1][1]))]
    assert "Cannot start /nowhere/python" in heard.calls[0][1][1]
    assert not isWaitedFor(workers, "job")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_process_is_explained_to_all_who_wait_and_replaced() -> None:
    workers = Workers(environment=ONE_THREAD)
    try:
        pid = asked(workers, "job", op="hello")[1][0]["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it dies
        heard = [Heard(), Heard()]
        for one in heard:
            workers.request("job", {"op": "hello"}, **one.callbacks())
        os.kill(pid, signal.SIGKILL)
        pollUntil(workers, lambda: all(one.ending for one in heard))
        for one in heard:
            what, (kind, message) = one.ending or ("", ("", ""))
            assert (what, kind) == ("onError", "dead")
            assert "most often because memory ran out: close other programs" in message
        assert asked(workers, "job", op="hello")[1][0]["pid"] != pid
    finally:
        workers.close()


@pytest.mark.skipif(os.name == "nt", reason="a script as interpreter")
@pytest.mark.parametrize(
    ("lastWords", "advice"),
    [
        ("ModuleNotFoundError: No module named 'torch'", "Press Install"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "Memory ran out"),
        ("Illegal instruction", "Its last words: Illegal instruction"),
    ],
)
def test_the_last_words_of_a_process_become_advice(lastWords: str, advice: str, tmp_path: Path) -> None:
    workers = Workers(aPython(tmp_path, f"import sys\nsys.exit({lastWords!r})\n"))
    what, (kind, message) = asked(workers, "prompt", op="hello")
    assert (what, kind) == ("onError", "dead")
    assert advice in message
    workers.close()
