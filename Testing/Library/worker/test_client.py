"""The front end's side: a worker is started, stopped, replaced when it dies, and does not outlive its client."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.worker import client as of_worker
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import discs
from Testing.Library.worker.conftest import a_long_job, answer_to, ask, wait_for


def test_polling_never_waits_and_needs_no_worker() -> None:
    client = WorkerClient()
    assert client.poll() == []
    assert not client.is_running
    client.close()


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


@pytest.mark.skipif(os.name == "nt", reason="a script as interpreter")
def test_a_large_answer_comes_within_few_polls_of_a_thread_that_keeps_pythons_lock(tmp_path: Path) -> None:
    """Slicer's main thread keeps it while Qt waits for events; only in a poll can other threads do anything."""
    body = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    answer = {'id': json.loads(line)['id'], 'type': 'result', 'result': 'x' * 400_000}\n"
        "    print(json.dumps(answer), flush=True)\n"
    )
    counts: list[int] = []
    with WorkerClient(a_python(tmp_path, body)) as client:
        answer_to(client, client.submit({}))
        for _ in range(5):
            client.submit({})
            counts.append(0)
            while not client.poll():
                ctypes.PyDLL(None).usleep(20_000)  # a PyDLL keeps the lock
                counts[-1] += 1
    assert sorted(counts)[2] <= 4


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
    root = Path(__file__).resolve().parents[3]
    code = (
        "import sys; import FewShotSegLib.worker.client; print([m for m in ('torch', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_runs_no_code_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "SimpleITK", "argparse"):
        text = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise ImportError('planted')\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", "")]))
    with WorkerClient() as client:
        client.submit({"op": "hello"})
        until = time.monotonic() + 60
        messages: list[dict[str, Any]] = []
        while not messages and time.monotonic() < until:
            messages += client.poll()
            time.sleep(0.02)
    assert messages[0]["type"] == "result", messages
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_worker_do_not_spin_unless_somebody_wants_it(
    chosen: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(of_worker, "_Process", lambda command, environment, gives_way: seen.append(environment))
    WorkerClient()._start()
    assert seen[0]["OMP_WAIT_POLICY"] == expected
