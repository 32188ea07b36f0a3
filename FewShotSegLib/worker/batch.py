"""Many jobs: one after the other, in several processes, or on a Dask cluster; with a table of volumes and flags.

A batch can be run again after it was interrupted: images that were segmented and adapters that were made by the same
job are not made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from FewShotSegLib.data.job import AdaptJob, Job, SegmentJob, from_dict, to_dict
from FewShotSegLib.errors import Cancelled, InputError, of_the_system
from FewShotSegLib.io.jobs import with_paths_from
from FewShotSegLib.jobs.volumes_table import write_volumes
from FewShotSegLib.progress import Progress, Report, note, part_of, silent

from .client import WorkerClient

_PARTS = 1000  # of a job, in the progress of the batch
_WAIT_S = 0.05


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job: its record, or one sentence and whether the user can do something about it."""

    job: Job
    result: dict[str, Any] | None = None
    error: str = ""
    is_input_error: bool = True


def segment_images(
    job: SegmentJob,
    *,
    processes: int = 1,
    dask: str | None = None,
    report: Report = silent,
    raise_failures: bool = True,
) -> dict[str, Any]:
    """Segment the images of one job, several at a time, and write `volumes.csv` into its folder.

    Returns the record of the whole; its "table" is the file, which has a number in its name where somebody has changed
    the table of an earlier run. An image that fails does not stop the others; the failed ones are named at the end
    in an error or, without `raise_failures`, in the table and in the record only.
    """
    from FewShotSegLib.jobs.inputs import output_names
    from FewShotSegLib.jobs.run import run
    from FewShotSegLib.jobs.segment import SomeImagesFailed

    output_names(job.images)
    if processes == 1 and dask is None:
        try:
            result = run(job, report, raise_failures=raise_failures)
        except SomeImagesFailed as error:
            write_volumes(error.result["images"], Path(job.out) / "volumes.csv", overwrite=job.overwrite)
            raise
        table = write_volumes(result["images"], Path(job.out) / "volumes.csv", overwrite=job.overwrite)
        return {**result, "table": str(table)}
    outcomes = run_jobs([replace(job, images=(image,)) for image in job.images], processes, dask, report)
    records = [record for outcome in outcomes for record in _records(outcome)]
    table = write_volumes(records, Path(job.out) / "volumes.csv", overwrite=job.overwrite)
    result = {**_combined(job, outcomes, records), "table": str(table)}
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed and raise_failures:
        _raise(failed, result, len(outcomes))
    return result


def run_jobs(
    jobs: Sequence[Job], processes: int = 1, dask: str | None = None, report: Report = silent
) -> list[Outcome]:
    """Run jobs and return what became of each, in order. Cancelling ends the running ones and raises."""
    if processes < 1:
        raise InputError(f"At least one process is needed, got {processes}.")
    from FewShotSegLib.jobs.adapt import made_before

    jobs = [with_paths_from(job, Path.cwd()) for job in jobs]
    outcomes: dict[int, Outcome] = {}
    for number, job in enumerate(jobs):
        record = made_before(job) if isinstance(job, AdaptJob) else None
        if record is not None:
            outcomes[number] = Outcome(job, {**record, "skipped": True})
            report(note(f"{job.out} is there already, made by the same job; not made again."))
    left = {number: job for number, job in enumerate(jobs) if number not in outcomes}
    if dask is not None:
        outcomes |= _on_dask(left, dask, report)
    elif processes == 1:
        outcomes |= _one_by_one(left, report)
    else:
        outcomes |= _Pool(left, min(processes, max(len(left), 1)), report).run()
    return [outcomes[number] for number in range(len(jobs))]


def _one_by_one(jobs: dict[int, Job], report: Report) -> dict[int, Outcome]:
    outcomes = {}
    for done, (number, job) in enumerate(jobs.items()):
        outcomes[number] = _outcome(job, part_of(report, done, len(jobs), f"job {done + 1} of {len(jobs)}"))
    return outcomes


def _outcome(job: Job, report: Report) -> Outcome:
    from FewShotSegLib.jobs.run import run

    try:
        return Outcome(job, run(job, report))
    except Cancelled:
        raise
    except InputError as error:
        return Outcome(job, getattr(error, "result", None), str(error))
    except OSError as error:
        return Outcome(job, None, of_the_system(error))
    except Exception as error:
        return Outcome(job, None, f"{type(error).__name__}: {error}", is_input_error=False)


class _Pool:
    """Worker processes that take the next job when they have done one."""

    def __init__(self, jobs: dict[int, Job], processes: int, report: Report) -> None:
        self.waiting = list(jobs.items())
        self.jobs, self.report = jobs, report
        # Together they use the cores once.
        threads = str(max((os.cpu_count() or 1) // processes, 1))
        self.clients = [WorkerClient(environment={"OMP_NUM_THREADS": threads}) for _ in range(processes)]
        self.busy: dict[WorkerClient, tuple[int, int]] = {}  # request id, job number
        self.fractions: dict[int, float] = {}
        self.outcomes: dict[int, Outcome] = {}

    def run(self) -> dict[int, Outcome]:
        try:
            while len(self.outcomes) < len(self.jobs):
                for client in self.clients:
                    self._give(client)
                    for message in client.poll():
                        self._take(client, message)
                self._tell()
                time.sleep(_WAIT_S)
        finally:
            for client in self.clients:
                client.close()
        return self.outcomes

    def _give(self, client: WorkerClient) -> None:
        if client not in self.busy and self.waiting:
            number, job = self.waiting.pop(0)
            self.busy[client] = client.submit({"op": "job", "job": to_dict(job)}), number

    def _take(self, client: WorkerClient, message: dict[str, Any]) -> None:
        request, number = self.busy.get(client, (0, 0))
        kind = message.get("type")
        if kind != "dead" and message.get("id") != request:
            return
        if kind == "progress":
            self.fractions[number] = min(message["step"] / message["total"], 1.0) if message["total"] else 0.0
            return
        self.fractions[number] = 1.0
        del self.busy[client]
        self.outcomes[number] = _outcome_from(self.jobs[number], message)

    def _tell(self) -> None:
        step = int(_PARTS * sum(self.fractions.values()))
        self.report(Progress(step, _PARTS * len(self.jobs), f"{len(self.outcomes)} of {len(self.jobs)} jobs done"))


def _outcome_from(job: Job, message: dict[str, Any]) -> Outcome:
    if message["type"] == "result":
        return Outcome(job, message["result"])
    if message["type"] == "dead":
        last = " ".join(message["stderr"][-1:])
        return Outcome(job, None, f"The worker process ended with code {message['returncode']}. {last}", False)
    return Outcome(job, message.get("result"), message["message"], message["kind"] == "input")


def _on_dask(jobs: dict[int, Job], address: str, report: Report) -> dict[int, Outcome]:
    """Run on the cluster whose scheduler is at `address`; its workers need this library and the same paths."""
    try:
        from dask.distributed import Client
    except ModuleNotFoundError:
        raise InputError(
            'Dask is not installed: pip install "dask[distributed]", or use several processes instead.'
        ) from None
    with Client(address) as cluster:
        futures = {n: cluster.submit(run_as_json, to_dict(job), pure=False) for n, job in jobs.items()}
        try:
            while not all(future.done() for future in futures.values()):
                done = sum(future.done() for future in futures.values())
                report(Progress(done, len(jobs), f"{done} of {len(jobs)} jobs done"))
                time.sleep(_WAIT_S)
        except BaseException:
            cluster.cancel(list(futures.values()))
            raise
        return {number: _outcome_from(jobs[number], future.result()) for number, future in futures.items()}


def run_as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Run a job given as JSON and answer as a worker does; what runs on the cluster."""
    outcome = _outcome(from_dict(values), silent)
    if not outcome.error:
        return {"type": "result", "result": outcome.result}
    kind = "input" if outcome.is_input_error else "defect"
    return {"type": "error", "kind": kind, "message": outcome.error, "result": outcome.result}


# -------------------------------------------------------------------------------------------------------------- table


def _records(outcome: Outcome) -> list[dict[str, Any]]:
    """The records of the images of a segment job, also of one that failed."""
    if outcome.result is not None:
        return list(outcome.result["images"])
    return [{"image": outcome.job.images[0], "error": {"message": outcome.error}}]  # type: ignore[union-attr]


def _combined(job: SegmentJob, outcomes: Sequence[Outcome], records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record for all, as if one process had done the job."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    warnings = list(dict.fromkeys(w for result in results for w in result["warnings"]))
    warnings += [f"{o.job.images[0]} failed: {o.error}" for o in outcomes if o.error]  # type: ignore[union-attr]
    first = results[0] if results else {"device": job.device}
    seconds: dict[str, float] = {}
    for result in results:
        for name, value in result["timings_s"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    outputs = {name: sha for record in records for name, sha in record.get("outputs", {}).items()}
    whole = {**first, "job": to_dict(job), "timings_s": seconds, "warnings": warnings}
    return {**whole, "images": records, "outputs": outputs}


def _raise(failed: Sequence[Outcome], result: dict[str, Any], count: int) -> None:
    from FewShotSegLib.jobs.segment import SomeImagesFailed

    sentences = "; ".join(f"{outcome.job.images[0]}: {outcome.error}" for outcome in failed)  # type: ignore[union-attr]
    if any(not outcome.is_input_error for outcome in failed):
        raise RuntimeError(f"{len(failed)} of {count} images were not segmented. {sentences}")
    raise SomeImagesFailed(f"{len(failed)} of {count} images were not segmented. {sentences}", result)
