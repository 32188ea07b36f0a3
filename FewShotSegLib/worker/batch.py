"""Many jobs: sequentially, in several processes, or on a Dask cluster; with a table of volumes and flags.

A batch can be rerun after an interruption: images already segmented and adapters already trained by the same job are
not recomputed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from FewShotSegLib.data.job import WHOLE, AdaptJob, Job, Part, SegmentJob, from_dict, to_dict
from FewShotSegLib.errors import Cancelled, InputError, of_the_system
from FewShotSegLib.io.jobs import with_paths_from
from FewShotSegLib.jobs.kept import KeptPredictor
from FewShotSegLib.jobs.record import RECORD_SUFFIX, read_record
from FewShotSegLib.jobs.volumes_table import RunningTable, write_volumes
from FewShotSegLib.progress import Progress, Report, note, part_of, silent

from .client import WorkerClient
from .cluster import answers_of

_PARTS = 1000  # progress units per job in a batch
_WAIT_S = 0.01


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a job: its record, or an error message and whether the user can fix it."""

    job: Job
    result: dict[str, Any] | None = None
    error: str = ""
    is_input_error: bool = True


Take = Callable[[int, Outcome], None]
_OF_ITS_OWN = ("images", "warnings", "timings_s")  # the entries of each job's record that a batch keeps


def segment_images(
    job: SegmentJob,
    *,
    processes: int = 1,
    dask: str | None = None,
    part: Part = WHOLE,
    report: Report = silent,
    raise_failures: bool = True,
) -> dict[str, Any]:
    """Segment the images of one job, several in parallel, and write `volumes.csv` into its folder.

    Returns the combined record; its "table" is the file, which has a number in its name if the table of an earlier run
    was changed by a user. An image that fails does not stop the others; the failed ones are listed at the end in an
    error or, without `raise_failures`, in the table and in the record only. `dask` is "local" or the address of a
    scheduler. `part` selects some of the images, for which it writes a separate table.
    """
    from FewShotSegLib.jobs.inputs import output_names

    output_names(job.images)
    job = _part_of_job(job, part)
    table = Path(job.out) / part.table
    with RunningTable(table) as rows:
        if processes == 1 and dask is None:
            result, failure = _in_this_process(job, report, raise_failures, rows)
        else:
            result, failure = _spread(job, processes, dask, report, rows)
        table = write_volumes(result["images"], table, overwrite=job.overwrite)
    if failure is not None and raise_failures:
        raise failure
    return {**result, "table": str(table)}


Ended = tuple[dict[str, Any], Exception | None]  # the combined record, and the error of its failures


def _in_this_process(job: SegmentJob, report: Report, raise_failures: bool, rows: RunningTable) -> Ended:
    from FewShotSegLib.jobs.run import run
    from FewShotSegLib.jobs.segment import SomeImagesFailed

    try:
        return run(job, report, raise_failures=raise_failures, ended=rows.add), None
    except SomeImagesFailed as error:
        return error.result, error


def _spread(job: SegmentJob, processes: int, dask: str | None, report: Report, rows: RunningTable) -> Ended:
    common: dict[str, Any] = {"device": job.device}

    def ended(outcome: Outcome) -> Outcome:
        for record in _records(outcome):
            rows.add(record)
        if outcome.result is None:
            return outcome
        common.update((name, value) for name, value in outcome.result.items() if name not in _OF_ITS_OWN)
        return replace(outcome, result={name: outcome.result[name] for name in _OF_ITS_OWN})

    single = [replace(job, images=(image,)) for image in job.images]
    outcomes = run_jobs(single, processes, dask, report, ended=ended)
    result = _combined(job, common, outcomes)
    return result, _failure(outcomes, result)


def _part_of_job(job: SegmentJob, part: Part) -> SegmentJob:
    images = part.of(job.images)
    if not images:
        raise InputError(
            f"Part {part.number}/{part.count} has no image: there are {len(job.images)} in all. Choose fewer parts."
        )
    return replace(job, images=images)


def table_of_folder(folder: Path) -> tuple[Path, int]:
    """Write `volumes.csv` of all images with records in a folder, regardless of the part or machine they were made on.

    Returns the table and the number of images.
    """
    found = (read_record(path) for path in sorted(folder.glob(f"*{RECORD_SUFFIX}")))
    records = [record for record in found if record is not None and "image" in record]
    if not records:
        raise InputError(f"{folder} holds no record of a segmented image; give the output folder of segment.")
    table = folder / WHOLE.table
    write_volumes(records, table)
    return table, len(records)


def run_jobs(
    jobs: Sequence[Job],
    processes: int = 1,
    dask: str | None = None,
    report: Report = silent,
    *,
    ended: Callable[[Outcome], Outcome] = lambda outcome: outcome,
) -> list[Outcome]:
    """Run jobs and return their outcomes, in order. Cancelling ends the running ones and raises.

    `ended` is called with each outcome as its job is done, in any order, and returns what is kept of it.
    """
    if processes < 1:
        raise InputError(f"At least one process is needed, got {processes}.")
    from FewShotSegLib.jobs.adapt import made_before

    jobs = [with_paths_from(job, Path.cwd()) for job in jobs]
    outcomes: dict[int, Outcome] = {}

    def take(number: int, outcome: Outcome) -> None:
        outcomes[number] = ended(outcome)

    for number, job in enumerate(jobs):
        record = made_before(job) if isinstance(job, AdaptJob) else None
        if record is not None:
            take(number, Outcome(job, {**record, "skipped": True}))
            report(note(f"{job.out} is there already, made by the same job; not made again."))
    left = {number: job for number, job in enumerate(jobs) if number not in outcomes}
    processes_used = min(processes, max(len(left), 1))
    if dask is not None:
        _on_dask(left, dask, processes if processes > 1 else None, report, take)
    elif processes_used == 1:
        _one_by_one(left, report, take)
    else:
        _Pool(left, processes_used, report, take).run()
    return [outcomes[number] for number in range(len(jobs))]


def _one_by_one(jobs: dict[int, Job], report: Report, take: Take) -> None:
    kept: KeptPredictor[Any] = KeptPredictor()
    for done, (number, job) in enumerate(jobs.items()):
        take(number, _outcome(job, part_of(report, done, len(jobs), f"job {done + 1} of {len(jobs)}"), kept))


def _outcome(job: Job, report: Report, kept: KeptPredictor[Any]) -> Outcome:
    from FewShotSegLib.jobs.run import run

    try:
        return Outcome(job, run(job, report, kept=kept))
    except Cancelled:
        raise
    except InputError as error:
        return Outcome(job, getattr(error, "result", None), str(error))
    except OSError as error:
        return Outcome(job, None, of_the_system(error))
    except Exception as error:
        return Outcome(job, None, f"{type(error).__name__}: {error}", is_input_error=False)


class _Pool:
    """Pool of worker processes."""

    def __init__(self, jobs: dict[int, Job], processes: int, report: Report, take: Take) -> None:
        self.waiting = deque(jobs.items())
        self.jobs, self.report, self.take = jobs, report, take
        # Together they use each core once.
        threads = str(max((os.cpu_count() or 1) // processes, 1))
        self.clients = [WorkerClient(environment={"OMP_NUM_THREADS": threads}) for _ in range(processes)]
        self.busy: dict[WorkerClient, tuple[int, int]] = {}  # request id, job number
        self.fractions: dict[int, float] = {}  # of the running jobs
        self.ended = 0

    def run(self) -> None:
        try:
            while self.ended < len(self.jobs):
                ended = self.ended
                for client in self.clients:
                    self._give(client)
                    for message in client.poll():
                        self._take(client, message)
                self._tell()
                if self.ended == ended:  # otherwise a client is free for the next one
                    time.sleep(_WAIT_S)
        finally:
            for client in self.clients:
                client.close()

    def _give(self, client: WorkerClient) -> None:
        if client not in self.busy and self.waiting:
            number, job = self.waiting.popleft()
            self.busy[client] = client.submit({"op": "job", "job": to_dict(job), "keep": True}), number

    def _take(self, client: WorkerClient, message: dict[str, Any]) -> None:
        request, number = self.busy.get(client, (0, 0))
        kind = message.get("type")
        if kind != "dead" and message.get("id") != request:
            return
        if kind == "progress":
            self.fractions[number] = min(message["step"] / message["total"], 1.0) if message["total"] else 0.0
            return
        self.fractions.pop(number, None)
        del self.busy[client]
        self.ended += 1
        self.take(number, _outcome_from(self.jobs[number], message))

    def _tell(self) -> None:
        step = int(_PARTS * (self.ended + sum(self.fractions.values())))
        self.report(Progress(step, _PARTS * len(self.jobs), f"{self.ended} of {len(self.jobs)} jobs done"))


def _outcome_from(job: Job, message: dict[str, Any]) -> Outcome:
    if message["type"] == "result":
        return Outcome(job, message["result"])
    if message["type"] == "dead":
        last = " ".join(message["stderr"][-1:])
        code = message["returncode"]
        ended = "The worker process ended." if code is None else f"The worker process ended with code {code}."
        return Outcome(job, None, f"{ended} {last}", False)
    return Outcome(job, message.get("result"), message["message"], message["kind"] == "input")


def _on_dask(jobs: dict[int, Job], address: str, processes: int | None, report: Report, take: Take) -> None:
    """Run on a Dask cluster; its workers need this library and the same paths."""
    requests = {number: to_dict(job) for number, job in jobs.items()}
    gpus = _gpus(jobs.values())
    for number, answer in answers_of(run_as_json, requests, address, processes=processes, gpus=gpus, report=report):
        take(number, _outcome_from(jobs[number], answer))


def _gpus(jobs: Iterable[Job]) -> int:
    if all(job.device == "cpu" for job in jobs):
        return 0
    import torch

    return torch.cuda.device_count()


_KEPT: KeptPredictor[Any] = KeptPredictor()  # of this process, if it is a worker of a cluster


def run_as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Run a job given as JSON and respond like a worker; this runs on the cluster."""
    outcome = _outcome(from_dict(values), silent, _KEPT)
    if not outcome.error:
        return {"type": "result", "result": outcome.result}
    kind = "input" if outcome.is_input_error else "defect"
    return {"type": "error", "kind": kind, "message": outcome.error, "result": outcome.result}


# -------------------------------------------------------------------------------------------------------------- table


def _records(outcome: Outcome) -> list[dict[str, Any]]:
    """The records of the images of a segment job, including failed ones."""
    if outcome.result is not None:
        return list(outcome.result["images"])
    return [{"image": outcome.job.images[0], "error": {"message": outcome.error}}]  # type: ignore[union-attr]


def _combined(job: SegmentJob, common: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A combined record, as if one process had run the job; `common` has the entries shared by all records."""
    records = [record for outcome in outcomes for record in _records(outcome)]
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    warnings = list(dict.fromkeys(w for result in results for w in result["warnings"]))
    warnings += [f"{o.job.images[0]} failed: {o.error}" for o in outcomes if o.error]  # type: ignore[union-attr]
    seconds: dict[str, float] = {}
    for result in results:
        for name, value in result["timings_s"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    outputs = {name: sha for record in records for name, sha in record.get("outputs", {}).items()}
    whole = {**common, "job": to_dict(job), "timings_s": seconds, "warnings": warnings}
    return {**whole, "images": records, "outputs": outputs}


def _failure(outcomes: Sequence[Outcome], result: dict[str, Any]) -> Exception | None:
    from FewShotSegLib.jobs.segment import SomeImagesFailed

    failed = [outcome for outcome in outcomes if outcome.error]
    if not failed:
        return None
    sentences = "; ".join(f"{outcome.job.images[0]}: {outcome.error}" for outcome in failed)  # type: ignore[union-attr]
    sentence = f"{len(failed)} of {len(outcomes)} images were not segmented. {sentences}"
    if any(not outcome.is_input_error for outcome in failed):
        return RuntimeError(sentence)
    return SomeImagesFailed(sentence, result)
