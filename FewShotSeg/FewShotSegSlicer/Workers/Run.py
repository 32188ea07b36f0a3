"""One request to the job worker: how far it is, and what became of it."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.visualization.progress_bar import shown_metrics
from FewShotSegSlicer.Signal import guarded

from .Workers import Workers

_WINDOW_S = 30.0  # of the past, from which the rest is estimated: speed changes between stages
_SHORTEST_S = 1.0

ProgressMessage = Mapping[str, Any]


class RunProgress(dict[str, Any]):
    """A progress message of the worker, with "fraction" (of all the work, or None) and "remaining_s" (or None).

    As text it is a line to print.
    """

    def __str__(self) -> str:
        share = f"{100 * self['fraction']:3.0f} %  " if self["fraction"] is not None else ""
        shown = shown_metrics(self["metrics"])
        numbers = f", {shown}" if shown else ""
        left = f", about {durationInWords(self['remaining_s'])} left" if self["remaining_s"] is not None else ""
        return f"{share}{self['message']}{numbers}{left}"


class Run:
    """A job on its way. `result` is there when it ended well, `error` (a sentence) and `errorKind` when it did not.

    onDone(result) and onError(kind, message) are called once, progress(RunProgress) for each step, from the poll of the
    workers; kinds are those of `Workers`.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        progress: Callable[[RunProgress], Any] | None = None,
        onDone: Callable[[Any], Any] | None = None,
        onError: Callable[[str, str], Any] | None = None,
        maxSeconds: float | None = None,
    ) -> None:
        self.result: Any = None
        self.record: dict[str, Any] | None = None
        """What the worker answered."""
        self.error: str | None = None
        self.errorKind: str | None = None
        self.progress: RunProgress | None = None
        """The last message."""
        self.history: list[RunProgress] = []
        """Messages with a loss or a score, for a plot; without pictures."""
        self._workers, self._number = workers, 0
        self._onProgress, self._onDone, self._onError = progress, onDone, onError
        self._isRunning = True
        self._rest = RemainingTime(maxSeconds)
        self._finish: Callable[[dict[str, Any]], Any] = lambda record: record
        self._explain: Callable[[str, str], str] = lambda kind, message: message
        self._last: list[Callable[[], Any]] = []

    def start(
        self,
        request: Mapping[str, Any],
        finish: Callable[[dict[str, Any]], Any],
        explain: Callable[[str, str], str] | None = None,
    ) -> None:
        """Send the request. `finish(record)` makes the result; `explain(kind, message)` may add to an error."""
        self._finish, self._explain = finish, explain or self._explain
        self._number = self._workers.request(
            "job", request, onResult=self._take, onError=self._fail, onProgress=self._hear
        )

    def atEnd(self, cleanUp: Callable[[], Any]) -> None:
        """Have something done when the run has ended, whatever became of it."""
        self._last.append(cleanUp)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences of the worker that the user should read, each once: of the run, then of its images."""
        record = self.record or {}
        parts = [record, *record.get("images", ())]
        return tuple(dict.fromkeys(sentence for part in parts for sentence in part.get("warnings", ())))

    @property
    def isRunning(self) -> bool:
        """Whether it has neither ended nor failed."""
        return self._isRunning

    @property
    def canKeepBest(self) -> bool:
        """Whether training has got to where stopping leaves something to keep."""
        return self._isRunning and self.progress is not None and bool(self.progress.get("can_stop"))

    def cancel(self) -> None:
        """Give it up; it ends with an error of the kind "cancelled", and nothing half made is left."""
        if self._isRunning:
            self._workers.cancel("job", self._number)

    def stopAndKeepBest(self) -> None:
        """End training well, with the best state so far."""
        if not self._isRunning:
            return
        if not self.canKeepBest:
            raise InputError('There is nothing to keep yet: wait for the stage "adapting", or cancel.')
        self._workers.stopAndKeepBest(self._number)

    def drop(self, why: str, isToldOf: bool = True) -> None:
        """Take note that the workers are gone. Where the callers are going too, they are not told."""
        if not isToldOf:
            self._onError = None
        if self._isRunning:
            self._fail("cancelled", f"Cancelled: {why}.")

    def valueOrError(self) -> Any:
        """The result of an ended run, or what went wrong raised: `InputError`, `Cancelled` or `RuntimeError`."""
        if self.error is None:
            return self.result
        kinds = {"input": InputError, "cancelled": Cancelled}
        raise kinds.get(self.errorKind or "", RuntimeError)(self.error)

    def _hear(self, message: dict[str, Any]) -> None:
        fraction = fractionOf(message)
        self._rest.note(fraction, time.monotonic())
        self.progress = RunProgress(message, fraction=fraction, remaining_s=self._rest.seconds)
        if message["metrics"]:
            self.history.append(RunProgress({key: self.progress[key] for key in self.progress if key != "picture"}))
        guarded(self._onProgress, self.progress)

    def _take(self, record: dict[str, Any]) -> None:
        self.record = record
        try:
            self.result = self._finish(record)
        except InputError as error:
            self._fail("input", str(error))
        except Exception as error:
            self._fail("defect", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        else:
            self._end()
            guarded(self._onDone, self.result)

    def _fail(self, kind: str, message: str) -> None:
        self.errorKind, self.error = kind, self._explain(kind, message)
        self._end()
        guarded(self._onError, kind, self.error)

    def _end(self) -> None:
        self._isRunning = False
        for cleanUp in self._last:
            guarded(cleanUp)


def fractionOf(message: ProgressMessage) -> float | None:
    """The share of all the work that is done, in [0, 1]; where the worker does not say, that of the current stage."""
    if "done" in message["metrics"]:
        return float(message["metrics"]["done"])
    return min(message["step"] / message["total"], 1.0) if message["total"] and message["step"] else None


class RemainingTime:
    """How long the rest will take, judging by the last half minute."""

    def __init__(self, maxSeconds: float | None = None) -> None:
        self.seconds: float | None = None
        self._maxSeconds = maxSeconds
        self._seen: deque[tuple[float, float]] = deque()  # time, fraction
        self._startedAt: float | None = None

    def note(self, fraction: float | None, now_s: float) -> None:
        """Take note that a fraction of the work is done at a time."""
        if fraction is None:
            return
        if self._seen and fraction < self._seen[-1][1]:
            self._seen.clear()  # another stage, counted anew
        if self._startedAt is None:
            self._startedAt = now_s
        self._seen.append((now_s, fraction))
        while self._seen[-1][0] - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        self.seconds = self._estimate()

    def _estimate(self) -> float | None:
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if after <= before or last - first < _SHORTEST_S:
            return None
        rest = (last - first) * (1 - after) / (after - before)
        if self._maxSeconds is None or self._startedAt is None:
            return rest
        return max(min(rest, self._maxSeconds - (last - self._startedAt)), 0.0)


def durationInWords(seconds: float) -> str:
    """Return a duration for a person.

    >>> [durationInWords(s) for s in (4.2, 61, 3605, 7500)]
    ['4 s', '1 min 1 s', '1 h 0 min', '2 h 5 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
