"""What a signal, a button or another process asks of running work, turned into what its report raises."""

from __future__ import annotations

from .errors import Cancelled, StopAndKeepBest
from .progress import Progress, Report, silent

# The stage in which stopping early still leaves something to keep; methods report it under this name.
KEEPABLE = "adapting"


class Control:
    """A report that can be told to stop, from any thread and from a signal handler (plain flags: nothing to wait for).

    Cancelling ends the work at its next report. Stopping and keeping the best ends training at its next step; before
    training has begun it waits for it.
    """

    def __init__(self, report: Report = silent) -> None:
        self._report = report
        self.cancelled = False
        self.stopped = False

    def cancel(self) -> None:
        self.cancelled = True

    def stop_and_keep_best(self) -> None:
        self.stopped = True

    def __call__(self, progress: Progress) -> None:
        """Pass the report on, then raise what was asked for."""
        self._report(progress)
        if self.cancelled:
            raise Cancelled("Cancelled on request.")
        if self.stopped and progress.message == KEEPABLE:
            raise StopAndKeepBest
