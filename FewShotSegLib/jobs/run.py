"""`run(job)`: the entry point to all file-based work of this library. Outputs are atomic."""

from __future__ import annotations

from typing import Any

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, Job
from FewShotSegLib.devices import choose_device
from FewShotSegLib.progress import Report, silent
from FewShotSegLib.training.data_parallel import joined

from .adapt import adapt_job
from .evaluate import evaluate_job
from .kept import KeptPredictor
from .notes import Notes
from .seeding import own_randomness
from .segment import RecordTaken, segment_job


def run(
    job: Job,
    report: Report = silent,
    *,
    raise_failures: bool = True,
    ended: RecordTaken | None = None,
    kept: KeptPredictor[Any] | None = None,
) -> dict[str, Any]:
    """Run the job and return its record, which is also written next to the outputs as `<name>.result.json`.

    `report` may raise `Cancelled` or, in training, `StopAndKeepBest`. An image that cannot be segmented does not stop
    the others; at the end an error is raised or, without `raise_failures`, only recorded. `ended` is called with the
    record of each image when it is done; `kept` caches a predictor between jobs.
    """
    notes = Notes(report)
    with notes.hearing():
        if isinstance(job, EvaluateJob):
            return evaluate_job(job, notes)
        device = choose_device(job.device, notes.say)
        if isinstance(job, AdaptJob):
            with joined(device) as own_device, own_randomness(job.seed, own_device):
                return adapt_job(job, own_device, notes)
        with own_randomness(job.seed, device):
            return segment_job(job, device, notes, raise_failures, ended or _ignored, kept or KeptPredictor())


def _ignored(record: dict[str, Any]) -> None:
    pass
