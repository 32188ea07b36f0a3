"""Jobs on a Dask cluster: that of an address, or one on this computer for the time of the batch.

A worker that dies takes the image it was at with it, and nothing else: Dask gives that image to another worker, and
gives it up after its third death. Needs the extra `dask`. The workers of an address need this library, the same paths,
and best `--preload FewShotSegLib.jobs.run`, which loads PyTorch before the first image comes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.progress import Progress, Report

Answer = dict[str, Any]
LOCAL = "local"
_HERE = "127.0.0.1"  # nobody else on the network can send work to it
_WAIT_S = 0.05
_PATIENCE_S = 10.0  # for the workers to end
_MOST_DEATHS = 2  # that a job may cause before it is given up


def answers_of(
    work: Callable[[dict[str, Any]], Answer],
    requests: Mapping[int, dict[str, Any]],
    address: str,
    *,
    processes: int | None,
    gpus: int,
    report: Report,
) -> Iterator[tuple[int, Answer]]:
    """Yield number and answer of each request as it ends; what `work` answers is passed on as it is.

    `address` is that of a scheduler, or "local": `processes` workers on this computer (default: one for each of the
    `gpus`, or for every two cores). A request whose worker died is answered by {"type": "dead", "returncode",
    "stderr"}, as a worker process of this library would be.
    """
    with _client(address, processes, gpus) as client:
        yield from _answers(client, work, requests, report)


def _answers(
    client: Any, work: Callable[[dict[str, Any]], Answer], requests: Mapping[int, dict[str, Any]], report: Report
) -> Iterator[tuple[int, Answer]]:
    """Answers as they come, with no more requests under way than there are threads.

    Dask blames the death of a worker on every task it was given, also on those that had not begun: after a few deaths
    it would give up all that wait. So none waits at a worker.
    """
    waiting, done = deque(requests.items()), 0
    busy: dict[int, Any] = {}
    try:
        while waiting or busy:
            threads = max(sum(client.nthreads().values()), 1)
            while waiting and len(busy) < threads:
                number, request = waiting.popleft()
                busy[number] = client.submit(work, request, pure=False)
            ended = [number for number, future in busy.items() if future.done()]
            for number in ended:
                done += 1
                yield number, _answer_of(busy.pop(number))
            report(Progress(done, len(requests), f"{done} of {len(requests)} jobs done"))
            if not ended:
                time.sleep(_WAIT_S)
    finally:
        client.cancel(list(busy.values()))


def _answer_of(future: Any) -> Answer:
    """The answer in a future that has ended, also in one that failed; the cluster may forget it then."""
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


@contextlib.contextmanager
def _client(address: str, processes: int | None, gpus: int) -> Iterator[Any]:
    try:
        import dask
        from distributed import Client
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
        with client:
            yield client
        return
    with dask.config.set({"distributed.scheduler.allowed-failures": _MOST_DEATHS}):
        cluster = _local_cluster(processes, gpus)
        try:
            with Client(cluster) as client:
                yield client
        finally:
            with contextlib.suppress(TimeoutError):  # a worker that is just being started again keeps it waiting
                cluster.close(timeout=_PATIENCE_S)


def _local_cluster(processes: int | None, gpus: int) -> Any:
    """Workers with a thread each; with GPUs each sees one of them."""
    from distributed import Nanny, Scheduler, SpecCluster

    count = processes or gpus or max((os.cpu_count() or 1) // 2, 1)
    threads = str(max((os.cpu_count() or 1) // count, 1))
    workers = {}
    for number in range(count):
        environment = {"OMP_NUM_THREADS": threads}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        options = {
            "host": _HERE,
            "nthreads": 1,
            "env": environment,
            "preload": ["FewShotSegLib.jobs.run"],
            "silence_logs": logging.ERROR,
        }
        workers[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": _HERE, "dashboard": False}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)
