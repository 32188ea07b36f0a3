"""What is said while a job runs, with the warnings and pictures that its record keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from FewShotSegLib.progress import Progress, Report, note, part_of, warning


class Notes:
    """A report that remembers the warnings that went through it, and the pictures of finished stages by title."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.warnings: list[str] = []
        self.pictures: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.kind == "warning" and progress.message not in self.warnings:
            self.warnings.append(progress.message)
        if progress.kind == "stage" and progress.picture is not None:
            self.pictures[progress.message] = progress.picture
        self._report(progress)

    def say(self, sentence: str) -> None:
        """Tell the user; not kept."""
        self(note(sentence))

    def warn(self, sentence: str) -> None:
        """Tell the user and keep it."""
        self(warning(sentence))

    def warn_if(self, sentence: str) -> None:
        """Tell the user and keep it, where there is something to tell."""
        if sentence:
            self.warn(sentence)

    def part(self, number: int, count: int, name: str) -> Notes:
        """Notes of one of `count` equal parts of the work, with warnings of its own; `number` counts from 0."""
        return Notes(part_of(self._report, number, count, name))


@contextlib.contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds the block takes to `timings[name]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - started, 3)
