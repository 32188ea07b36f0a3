"""The predictor that a process keeps between jobs, so that a worker loads a model once and not for every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from FewShotSegLib.data.job import SegmentJob

P = TypeVar("P")


class KeptPredictor(Generic[P]):
    """Keeps the last predictor as long as jobs ask for the same adapter file, base model and device.

    A support set is looked at anew each time: what it holds is not known by its path.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._predictor: P | None = None

    def get(self, job: SegmentJob, device: str, load: Callable[[], P]) -> P:
        """Return the predictor for a job, made by `load` unless it is the one that is kept."""
        key = (job.adapter, _stamp(job.adapter), job.base, _stamp(job.base), device)
        if job.support:
            return load()
        if self._predictor is None or key != self._key:
            self._key, self._predictor = None, None  # the old one goes before there is memory for the next
            self._predictor = load()
            self._key = key
        return self._predictor


def _stamp(path: str | None) -> tuple[int, int] | None:
    """What changes when a file does; None where there is no such file."""
    if path is None or not Path(path).is_file():
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size
