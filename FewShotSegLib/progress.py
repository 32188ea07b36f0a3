"""How long work tells its caller where it stands, and how the caller stops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FewShotSegLib.errors import Cancelled, StopAndKeepBest


@dataclass(frozen=True)
class Progress:
    """One report: `step` of `total` units of the current stage are done.

    `total` 0 means that the length is not known. `metrics` holds plain numbers, for example a loss. `picture`, uint8
    (H, W, 3), comes now and then with training: what the model answers as it is now.
    """

    step: int
    total: int
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    picture: np.ndarray[Any, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def fraction(self) -> float | None:
        """Share of the work done, in [0, 1]; None when the length is not known.

        >>> Progress(step=3, total=12).fraction
        0.25
        """
        return min(max(self.step / self.total, 0.0), 1.0) if self.total > 0 else None


STAGE = "Finished: "
"""What the message of a picture begins with that shows a finished stage; such pictures are kept beside the result."""

# The call is the cancellation point: a report may raise Cancelled, so it is made at least once per step or slice.
Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report nothing and never cancel: the default where nobody is watching."""


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
