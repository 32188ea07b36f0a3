"""Messages of a running job, with the warnings and images that its record keeps."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from FewShotSegLib.errors import Cancelled, StopAndKeepBest
from FewShotSegLib.progress import Progress, Report, note, part_of, warning


class Notes:
    """A progress callback that collects the warnings passed to it, and the images of finished stages by title."""

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
        """Show a message to the user; not recorded."""
        self(note(sentence))

    def warn(self, sentence: str) -> None:
        """Show a warning to the user and record it."""
        self(warning(sentence))

    def warn_if(self, sentence: str) -> None:
        """Show a warning to the user and record it, unless it is empty."""
        if sentence:
            self.warn(sentence)

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Show and record what the library logs as a warning in this thread, such as skipped items."""
        _LISTENER.add(self)
        try:
            yield
        finally:
            _LISTENER.remove(self)

    def part(self, number: int, count: int, name: str) -> Notes:
        """Notes of one of `count` equal parts of the work, with separate warnings; `number` is 0-based."""
        return Notes(part_of(self._report, number, count, name))


class _Listener(logging.Handler):
    """Passes the warnings of a thread to the notes listening to it, and everything else to the usual handlers."""

    def __init__(self) -> None:
        super().__init__()
        self._hearing: dict[int, list[Notes]] = {}  # thread -> its notes, the innermost last
        self._guard = threading.Lock()

    def add(self, notes: Notes) -> None:
        logger = logging.getLogger("FewShotSegLib")
        with self._guard:
            if not self._hearing:
                logger.addHandler(self)
                logger.propagate = False
            self._hearing.setdefault(threading.get_ident(), []).append(notes)

    def remove(self, notes: Notes) -> None:
        logger, thread = logging.getLogger("FewShotSegLib"), threading.get_ident()
        with self._guard:
            self._hearing[thread].remove(notes)
            if not self._hearing[thread]:
                del self._hearing[thread]
            if not self._hearing:
                logger.removeHandler(self)
                logger.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        notes = self._hearing.get(record.thread or 0)
        if record.levelno != logging.WARNING or not notes:
            logging.getLogger().handle(record)
            return
        with contextlib.suppress(StopAndKeepBest, Cancelled):  # the next step will raise it where it can be handled
            notes[-1].warn(record.getMessage())


_LISTENER = _Listener()


@contextlib.contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds the block takes to `timings[name]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - started, 3)
