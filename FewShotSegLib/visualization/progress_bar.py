"""Progress bars, in a terminal or a notebook."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from FewShotSegLib.progress import Progress, Report

log = logging.getLogger(__name__)

_LAYOUT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining} {postfix}"


def is_counted(progress: Progress) -> bool:
    """Whether a report has a step count; all others are messages."""
    return progress.kind == "step" and progress.total > 0


def stage_of(message: str) -> str:
    """Return a message without its numbers, which change at every step.

    >>> stage_of("slice 3 of 40") == stage_of("slice 17 of 40")
    True
    """
    return "".join(letter for letter in message if not letter.isdigit())


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """Return loss and score formatted for display next to a bar.

    >>> shown_metrics({"loss": 0.12345, "done": 0.5})
    'loss 0.123'
    """
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in ("loss", "score") if name in metrics)


class ProgressBar:
    """A bar per stage of the work. `file`: output stream; None: the default of notebook or terminal."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._bar: Any = None
        self._stage: tuple[str, int] | None = None

    def __call__(self, progress: Progress) -> None:
        """Show a counted report."""
        stage = (stage_of(progress.message), progress.total)
        if stage != self._stage or self._bar is None:
            self._start(stage)
        self._bar.set_description_str(progress.message, refresh=False)
        self._bar.set_postfix_str(shown_metrics(progress.metrics), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def _start(self, stage: tuple[str, int]) -> None:
        self.close()
        self._stage = stage
        if self._file is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=stage[1], file=self._file, bar_format=_LAYOUT, dynamic_ncols=True)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without widgets silently gets a terminal bar
            from tqdm.auto import tqdm as automatic

        self._bar = automatic(total=stage[1], dynamic_ncols=True)

    def close(self) -> None:
        """Close the bar in its current state."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def is_watched() -> bool:
    """Whether the session is interactive: a terminal, or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextlib.contextmanager
def reporting(progress: bool | Report | None) -> Iterator[Report]:
    """Yield the progress callback for work started from Python.

    `progress` None: a bar in interactive sessions. True or False: a bar or none. A function: it gets every report.
    Without a function, warnings become Python warnings and notes go to the log.
    """
    if callable(progress):
        yield progress
        return
    bar = ProgressBar() if (is_watched() if progress is None else progress) else None

    def told(progress: Progress) -> None:
        if progress.kind == "warning":
            warnings.warn(progress.message, stacklevel=2)
        elif not is_counted(progress):
            log.info(progress.message)
        elif bar is not None:
            bar(progress)

    try:
        yield told
    finally:
        if bar is not None:
            bar.close()
