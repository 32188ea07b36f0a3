"""Predictor cache between jobs, so that a worker loads a model once and not for every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from FewShotSegLib.data.job import SegmentJob

P = TypeVar("P")


class KeptPredictor(Generic[P]):
    """Keeps the last predictor as long as jobs request the same adapter file, base model and device.

    A support set is fitted anew each time: its content is not identified by its path.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._predictor: P | None = None

    def get(self, job: SegmentJob, device: str, load: Callable[[], P]) -> P:
        """Return the predictor for a job, made by `load` unless cached."""
        key = (job.adapter, _stamp(job.adapter), job.base, _stamp(job.base), device)
        if job.support:
            return load()
        if self._predictor is None or key != self._key:
            self._key, self._predictor = None, None  # free the old one before loading the next
            self._predictor = load()
            self._key = key
        return self._predictor


def _stamp(path: str | None) -> tuple[int, int] | None:
    """A stamp that changes when the file does; None if it does not exist."""
    if path is None or not Path(path).is_file():
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size
