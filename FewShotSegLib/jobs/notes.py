"""What is said while a job runs, with the warnings and pictures that its record keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from FewShotSegLib.progress import STAGE, Progress, Report

# Progress messages that begin so are kept in the record.
WARNING = "Warning: "


class Notes:
    """A report that remembers the warnings that went through it, and the pictures of finished stages by title."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.warnings: list[str] = []
        self.pictures: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.message.startswith(WARNING):
            self._keep(progress.message.removeprefix(WARNING))
        if progress.picture is not None and progress.message.startswith(STAGE):
            self.pictures[progress.message.removeprefix(STAGE)] = progress.picture
        self._report(progress)

    def say(self, sentence: str) -> None:
        """Tell the user; not kept."""
        self._report(Progress(0, 0, sentence))

    def warn(self, sentence: str) -> None:
        """Tell the user and keep it."""
        self._keep(sentence)
        self._report(Progress(0, 0, WARNING + sentence))

    def _keep(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def part(self, number: int, count: int, name: str) -> Notes:
        """Notes of one of `count` equal parts of the work, with warnings of its own; `number` counts from 0."""

        def report(progress: Progress) -> None:
            total = progress.total or 1
            message = f"{name}: {progress.message}" if count > 1 and not progress.message.startswith(WARNING) else ""
            step = number * total + min(progress.step, total)
            whole = replace(progress, step=step, total=total * count) if progress.total else progress
            self._report(replace(whole, message=message or progress.message))

        return Notes(report)


@contextlib.contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds the block takes to `timings[name]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - started, 3)
