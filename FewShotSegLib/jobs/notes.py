"""What is said while a job runs, with the warnings and pictures that its record keeps."""

from __future__ import annotations

import contextlib
import logging
import threading
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

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """What the library logs as a warning in this thread, such as what was left out, is told and kept."""
        logger, handler = logging.getLogger("FewShotSegLib"), _Heard(self)
        before, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = before

    def part(self, number: int, count: int, name: str) -> Notes:
        """Notes of one of `count` equal parts of the work, with warnings of its own; `number` counts from 0."""
        return Notes(part_of(self._report, number, count, name))


class _Heard(logging.Handler):
    """Hands warnings of its thread to notes, and everything else on to where it would have gone."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes, self._thread = notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING and record.thread == self._thread:
            self._notes.warn(record.getMessage())
        else:
            logging.getLogger().handle(record)


@contextlib.contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds the block takes to `timings[name]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - started, 3)
