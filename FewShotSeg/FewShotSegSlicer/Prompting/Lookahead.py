"""Has slices encoded before they are clicked on: what is viewed first, its neighbours when nothing else is to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from FewShotSegLib.data.volume import AXIS_LETTERS
from FewShotSegSlicer.Workers.Workers import Workers

from .Prompts import Slice
from .Question import Model

NEIGHBOURS = 4  # on each side: about a turn of the wheel
_REMEMBERED = 100  # encoded slices; the worker keeps at least as many of every base model


class Lookahead:
    """At most one slice is being encoded at a time, so that a click waits for at most one."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._encoded: deque[tuple[str, Model, Slice]] = deque(maxlen=_REMEMBERED)
        self._underWay: tuple[str, Model, Slice] | None = None
        self._gaveUp = False

    def forget(self) -> None:
        """Start afresh, as after a worker died or a volume or model was chosen."""
        self._encoded.clear()
        self._underWay, self._gaveUp = None, False

    def know(self, volume: str, model: Model, where: Slice) -> None:
        """Take note of a slice that was encoded for a click."""
        self._encoded.append((volume, model, where))

    def encode(self, volume: str, model: Model, slices: Iterable[Slice]) -> None:
        """Have the first of the slices encoded that is not yet, unless one is being encoded."""
        if self._underWay is not None or self._gaveUp:
            return
        wanted = next((key for where in slices if (key := (volume, model, where)) not in self._encoded), None)
        if wanted is None:
            return
        self._underWay = wanted
        axis, index = wanted[2]
        request = {"op": "encode", "volume": volume, "view": "live", "axis": AXIS_LETTERS[axis], "index": index}
        self._workers.request(
            "prompt",
            request | model.toDict(),
            onResult=lambda result: self._done(wanted, isEncoded=True),
            onSuperseded=lambda: self._done(wanted, isEncoded=False),
            onError=lambda kind, message: self._fail(wanted),
        )

    def _done(self, key: tuple[str, Model, Slice], isEncoded: bool) -> None:
        if isEncoded:
            self._encoded.append(key)
        if key == self._underWay:
            self._underWay = None

    def _fail(self, key: tuple[str, Model, Slice]) -> None:
        """Say nothing: the click that needs this slice will hear why. Until something changes it is not tried again."""
        if key == self._underWay:
            self._underWay, self._gaveUp = None, True


def neighbours(axis: int, index: int, count: int) -> Iterator[Slice]:
    """Yield the slices next to one of `count`, nearest first.

    >>> list(neighbours(0, 1, 4))
    [(0, 2), (0, 0), (0, 3)]
    """
    for distance in range(1, NEIGHBOURS + 1):
        for other in (index + distance, index - distance):
            if 0 <= other < count:
                yield axis, other
