"""Jobs on a Dask cluster: an existing one by its address, or a local one for the duration of the batch.

A worker that dies loses only the image it was processing: Dask reassigns that image to another worker, and gives it up
after its third death. Requires the extra `dask`. Workers of an existing cluster need this library, the same paths, and
preferably `--preload FewShotSegLib.jobs.run`, which loads PyTorch before the first image.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.progress import Progress, Report

from .client import WAITING

Answer = dict[str, Any]
LOCAL = "local"
# Dask's profiler samples each worker 100 times a second, and keeps an hour: 180 MB more with 1,000 small volumes.
_WITHOUT_PROFILE = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
_HERE = "127.0.0.1"  # not reachable from the network
_WAIT_S = 0.05
_LOOK_S = 1.0  # polling interval of the number of workers
_PATIENCE_S = 10.0  # for the workers to exit
_MOST_DEATHS_IN_A_ROW = 6  # of a worker, without any finished request
_FOLDER = Path(__file__).resolve().parents[2]  # contains the package, which may not be installed in a worker's Python
_MOST_DEATHS = 2  # that a job may cause before it is abandoned


def answers_of(
    work: Callable[[dict[str, Any]], Answer],
    requests: Mapping[int, dict[str, Any]],
    address: str,
    *,
    processes: int | None,
    gpus: int,
    report: Report,
) -> Iterator[tuple[int, Answer]]:
    """Yield number and response of each request as it is done; the response of `work` is passed on unchanged.

    `address` is that of a scheduler, or "local": `processes` workers on this computer (default: one per entry of
    `gpus`, or per two cores). A request whose worker died gets the response {"type": "dead", "returncode", "stderr"},
    like from a worker process of this library.
    """
    with _client(address, processes, gpus) as (client, workers):
        yield from _answers(client, workers, work, requests, report)


def _answers(
    client: Any,
    workers: _Workers,
    work: Callable[[dict[str, Any]], Answer],
    requests: Mapping[int, dict[str, Any]],
    report: Report,
) -> Iterator[tuple[int, Answer]]:
    """Yield responses as they arrive, with no more requests in flight than there are threads.

    Dask blames the death of a worker on every task assigned to it, including queued ones: after a few deaths it would
    give up all of those. So none are queued at a worker.
    """
    waiting, done = deque(requests.items()), 0
    threads, look_again = 1, 0.0
    busy: dict[int, Any] = {}
    one_has_ended = threading.Event()
    try:
        while waiting or busy:
            workers.keep_alive(done)
            if time.monotonic() >= look_again:  # a query to the scheduler, which is busy
                threads, look_again = max(sum(client.nthreads().values()), 1), time.monotonic() + _LOOK_S
            while waiting and len(busy) < threads:
                number, request = waiting.popleft()
                busy[number] = client.submit(work, request, pure=False)
                busy[number].add_done_callback(lambda future: one_has_ended.set())
            ended = [number for number, future in busy.items() if future.done()]
            for number in ended:
                done += 1
                yield number, _answer_of(busy.pop(number))
            report(Progress(done, len(requests), f"{done} of {len(requests)} jobs done"))
            if not ended:
                one_has_ended.wait(_WAIT_S)  # returns at once, as its worker is now idle
                one_has_ended.clear()
    finally:
        client.cancel(list(busy.values()))


def _answer_of(future: Any) -> Answer:
    """The response of a finished future, also of a failed one; the cluster may release it then."""
    error = future.exception() if future.status == "error" else None
    answer = future.result() if future.status == "finished" else None
    if answer is not None:
        future.release()
        return dict(answer)
    if type(error).__name__ == "KilledWorker":
        reason = f"Its workers died {_MOST_DEATHS + 1} times; too little memory is the usual reason."
    else:
        reason = f"{type(error).__name__}: {error}" if error is not None else f"Dask gave it up ({future.status})."
    future.release()
    return {"type": "dead", "returncode": None, "stderr": [reason]}


class _Workers:
    """Worker processes on this computer, with one thread each; restarted when they die.

    Dask's own nannies give up a worker that dies during startup, and a batch would wait for it forever.
    """

    def __init__(self, scheduler: str = "", count: int = 0, gpus: int = 0) -> None:
        self._scheduler, self._gpus = scheduler, gpus
        self._threads = str(max((os.cpu_count() or 1) // max(count, 1), 1))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the workers
        self._processes = {number: self._started(number) for number in range(count)}
        self._deaths, self._done = 0, 0

    def _started(self, number: int) -> subprocess.Popen[bytes]:
        environment = {**_WITHOUT_PROFILE, **WAITING, **os.environ, "OMP_NUM_THREADS": self._threads}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_FOLDER), os.environ.get("PYTHONPATH")]))
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % self._gpus)
        words = [self._scheduler, "--host", _HERE, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        words += ["--preload", "FewShotSegLib.jobs.run"]
        words += ["--death-timeout", "60"]  # workers do not outlive a killed batch
        command = [sys.executable, "-m", "distributed.cli.dask_worker", *words]
        nothing = subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing, stderr=self._log)

    def keep_alive(self, done: int) -> None:
        """Restart dead workers; `done` is the number of finished requests."""
        if done > self._done:
            self._deaths, self._done = 0, done
        for number, process in self._processes.items():
            if process.poll() is not None:
                self._deaths += 1
                if self._deaths > _MOST_DEATHS_IN_A_ROW * len(self._processes):
                    raise RuntimeError(f"The workers of the cluster die as soon as they are started. {self._last()}")
                self._processes[number] = self._started(number)

    def _last(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Stop all workers."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()


@contextlib.contextmanager
def _client(address: str, processes: int | None, gpus: int) -> Iterator[tuple[Any, _Workers]]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise InputError(
            'Dask is not installed: pip install "FewShotSegLib[dask]", or use several processes instead.'
        ) from None
    if address != LOCAL:
        try:
            client = Client(address, timeout="30s")
        except (OSError, ValueError) as error:
            raise InputError(
                f'No Dask scheduler answers at {address} ({error}); give its address, or "local".'
            ) from None
        with client, contextlib.closing(_Workers()) as none:
            yield client, none
        return
    count = processes or gpus or max((os.cpu_count() or 1) // 2, 1)
    with (
        dask.config.set(
            {"distributed.scheduler.allowed-failures": _MOST_DEATHS, "distributed.worker.profile.enabled": False}
        ),
        LocalCluster(n_workers=0, host=_HERE, dashboard_address=f"{_HERE}:0", silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
        contextlib.closing(_Workers(cluster.scheduler_address, count, gpus)) as workers,
    ):
        yield client, workers
