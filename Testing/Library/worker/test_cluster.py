"""A Dask cluster: what comes back from it, and what becomes of workers that die."""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.progress import Progress
from FewShotSegLib.worker import cluster
from FewShotSegLib.worker.cluster import answers_of


@pytest.fixture
def a_scheduler() -> Any:
    """A real one with a worker thread in this process; starting processes would take seconds."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as local:
        yield local.scheduler_address


def twice(values: dict[str, Any]) -> dict[str, Any]:
    if values["number"] == 2:
        raise ZeroDivisionError("a defect of the cluster")
    return {"type": "result", "result": {"twice": 2 * values["number"]}}


def collected(work: Any, address: str, report: Any = lambda progress: None, count: int = 4, **options: Any) -> Any:
    requests = {number: {"number": number} for number in range(count)}
    chosen = {"processes": None, "gpus": 0} | options
    return dict(answers_of(work, requests, address, report=report, **chosen))


def test_answers_come_back_by_number_and_a_failed_future_is_one_of_them(a_scheduler: str) -> None:
    heard: list[Progress] = []
    found = collected(twice, a_scheduler, heard.append)
    assert {number: answer.get("result") for number, answer in found.items() if number != 2} == {
        number: {"twice": 2 * number} for number in (0, 1, 3)
    }
    assert found[2] == {
        "type": "dead",
        "returncode": None,
        "stderr": ["ZeroDivisionError: a defect of the cluster"],
    }
    assert heard[-1].step == heard[-1].total == 4


def test_a_worker_that_is_ready_gets_the_next_job_at_once(a_scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_WAIT_S", 30.0)
    started = time.monotonic()
    assert len(collected(twice, a_scheduler, count=20)) == 20
    assert time.monotonic() - started < 30.0


def test_the_scheduler_is_not_asked_for_its_workers_with_each_job(
    a_scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    asked: list[int] = []
    nthreads = Client.nthreads

    def counted(self: Any) -> Any:
        asked.append(1)
        return nthreads(self)

    monkeypatch.setattr(Client, "nthreads", counted)
    monkeypatch.setattr(cluster, "_LOOK_S", 1000.0)
    assert len(collected(twice, a_scheduler, count=50)) == 50
    assert len(asked) == 1


def test_cancelling_takes_the_waiting_jobs_back(a_scheduler: str) -> None:
    done: list[int] = []

    def slowly(values: dict[str, Any]) -> dict[str, Any]:
        done.append(values["number"])
        time.sleep(0.05)
        return {}

    def cancel(progress: Progress) -> None:
        if progress.step:
            raise Cancelled

    with pytest.raises(Cancelled):
        collected(slowly, a_scheduler, cancel, count=200)
    assert len(done) < 100


class Killed:
    """A future as Dask leaves it when its task has killed too many workers."""

    status = "error"

    def exception(self) -> Exception:
        from distributed.scheduler import KilledWorker

        return KilledWorker("job-1", "a worker", 2)

    def release(self) -> None:
        self.status = "released"


def test_a_job_that_kills_its_workers_is_said_to_have() -> None:
    future = Killed()
    answer = cluster._answer_of(future)
    assert "died 3 times" in answer["stderr"][0]
    assert future.status == "released"


def test_without_the_extra_or_a_scheduler_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No Dask scheduler answers at nonsense://nowhere"):
        collected(twice, "nonsense://nowhere")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install .FewShotSegLib\[dask\]."):
        collected(twice, "local")


class Dead:
    """A process that has ended."""

    def poll(self) -> int:
        return 3

    def terminate(self) -> None:
        pass

    def wait(self, timeout: float) -> int:
        return 3


def test_workers_that_die_are_started_again_until_none_of_them_gets_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def short_lived(self: Any, number: int) -> Dead:
        started.append(number)
        self._log.write(b"ImportError: no such module\n")
        return Dead()

    monkeypatch.setattr(cluster._Workers, "_started", short_lived)
    workers = cluster._Workers("tcp://127.0.0.1:1", count=2)
    for done in range(5):  # each time a request has ended, deaths begin to count anew
        for _ in range(cluster._MOST_DEATHS_IN_A_ROW):
            workers.keep_alive(done)
    assert len(started) == 2 + 2 * 5 * cluster._MOST_DEATHS_IN_A_ROW
    with pytest.raises(RuntimeError, match=r"die as soon as they are started\. ImportError: no such module"):
        workers.keep_alive(4)
    workers.close()


def test_a_worker_loads_what_it_needs_first_and_keeps_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def noted(command: list[str], env: dict[str, str], **options: Any) -> Dead:
        started.append((command, env))
        return Dead()

    monkeypatch.setattr(cluster.subprocess, "Popen", noted)
    monkeypatch.delenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", raising=False)
    cluster._Workers("tcp://127.0.0.1:1", count=3, gpus=2).close()
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "True")
    cluster._Workers("tcp://127.0.0.1:1", count=1).close()
    assert all(("--preload", "FewShotSegLib.jobs.run") in pairwise(command) for command, _ in started)
    assert [env.get("CUDA_VISIBLE_DEVICES") for _, env in started[:3]] == ["0", "1", "0"]
    profiles = [env["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] for _, env in started]
    assert profiles == ["False", "False", "False", "True"]  # who wants one asks for it


def dies_or_answers(values: dict[str, Any]) -> dict[str, Any]:
    if values["number"] == 1:
        os._exit(1)  # as the system kills a process that takes too much memory
    import dask

    return {"pid": os.getpid(), "profile": dask.config.get("distributed.worker.profile.enabled")}


@pytest.mark.slow
def test_a_killed_worker_of_a_real_cluster_takes_only_its_own_job_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    found = collected(dies_or_answers, "local", count=5, processes=2)
    assert found[1]["type"] == "dead"
    assert all(found[number]["profile"] is False for number in (0, 2, 3, 4))
    assert os.getpid() not in {found[number]["pid"] for number in (0, 2, 3, 4)}
