"""Progress reports of long-running work, and how the caller stops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .errors import Cancelled, StopAndKeepBest

Picture = np.ndarray[Any, Any]
ProgressKind = Literal["step", "note", "warning", "stage"]


@dataclass(frozen=True)
class Progress:
    """One report. Its meaning is given by `kind`, never by the wording of `message`.

    step: `step` of `total` units of the current stage are done, `message` names the stage. `total` 0 means that the
    length is unknown. note: a message for the user. warning: a message that the record of the run keeps. stage: a stage
    has finished, `message` is the title of the `picture` of its result; such images are kept with the result.

    `metrics` holds plain numbers, for example a loss. `picture`, uint8 (H, W, 3), is also included in some training
    steps: the model's current predictions. `can_stop`: there is something worth keeping, so that a report may raise
    `StopAndKeepBest`.
    """

    step: int
    total: int
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    picture: Picture | None = field(default=None, repr=False, compare=False)
    kind: ProgressKind = "step"
    can_stop: bool = False

    @property
    def fraction(self) -> float | None:
        """Fraction of the work done, in [0, 1]; None if the length is unknown.

        >>> Progress(step=3, total=12).fraction
        0.25
        """
        return min(max(self.step / self.total, 0.0), 1.0) if self.total > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """All but the picture, as JSON types."""
        return {
            "kind": self.kind,
            "step": self.step,
            "total": self.total,
            "message": self.message,
            "metrics": dict(self.metrics),
            "can_stop": self.can_stop,
        }


# The call is the cancellation point: a report may raise Cancelled, so it is made at least once per step or slice.
Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report nothing and never cancel: the default without a listener."""


def note(sentence: str) -> Progress:
    """A message for the user that is not recorded."""
    return Progress(0, 0, sentence, kind="note")


def warning(sentence: str) -> Progress:
    """A message for the user that is recorded."""
    return Progress(0, 0, sentence, kind="warning")


def stage_picture(title: str, picture: Picture) -> Progress:
    """The result of a finished stage, as an image (H, W, 3)."""
    return Progress(0, 0, title, picture=picture, kind="stage")


def part_of(report: Report, number: int, count: int, name: str) -> Report:
    """Return the callback of one of `count` equal parts of the work; `number` is 0-based, `name` prefixes the stage.

    >>> heard = []
    >>> part_of(heard.append, 1, 2, "b.nrrd")(Progress(3, 12, "slice 3"))
    >>> heard[0].message, heard[0].fraction
    ('b.nrrd: slice 3', 0.625)
    """
    if count == 1:
        return report

    def told(progress: Progress) -> None:
        if progress.kind == "step" and progress.total:
            step = round(_PARTS * (number + (progress.fraction or 0.0)))
            progress = replace(progress, step=step, total=_PARTS * count)
        report(progress if progress.kind == "warning" else replace(progress, message=f"{name}: {progress.message}"))

    return told


_PARTS = 1000  # progress units per part of the work


def with_share_done(report: Report, start: float, end: float) -> Report:
    """Return a callback for training in whose metrics `done` runs from `start` to `end`: the fraction of all training
    that is done, for several successive trainings.

    >>> heard = []
    >>> with_share_done(heard.append, 0.5, 1.0)(Progress(3, 12, "adapting", {"loss": 0.1}))
    >>> heard[0].metrics["done"]
    0.625
    """

    def told(progress: Progress) -> None:
        if progress.metrics:
            share = progress.metrics.get("done", progress.fraction or 0.0)
            progress = replace(progress, metrics={**progress.metrics, "done": start + (end - start) * share})
        report(progress)

    return told


class Control:
    """A callback that can be told to stop, from any thread or signal handler (plain flags, nonblocking).

    Cancelling ends the work at its next report. Stopping and keeping the best waits until there is something to keep,
    then ends training at its next step.
    """

    def __init__(self, report: Report = silent) -> None:
        self._report = report
        self.cancelled = False
        self.stopped = False

    def cancel(self) -> None:
        """Cancel: nothing is kept."""
        self.cancelled = True

    def stop_and_keep_best(self) -> None:
        """End training early and keep its best state."""
        self.stopped = True

    def __call__(self, progress: Progress) -> None:
        """Pass the report on, then raise the requested exception."""
        self._report(progress)
        if self.cancelled:
            raise Cancelled("Cancelled on request.")
        if self.stopped and progress.can_stop:
            raise StopAndKeepBest
