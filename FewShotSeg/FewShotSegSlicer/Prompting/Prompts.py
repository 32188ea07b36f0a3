"""What the user pointed at, slice by slice, and how to take it back. Pure data: no MRML, no Qt, no worker.

Coordinates are RAS mm of the world. A slice is (axis, index): the array axis of (K, J, I) that is cut (0 = k, 1 = j,
2 = i), and the slice along it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from FewShotSegLib.data.prompt import SCRIBBLE_POINTS, along
from FewShotSegLib.data.volume import AXES, AXIS_LETTERS
from FewShotSegLib.errors import InputError

Point = tuple[float, float, float]
Slice = tuple[int, int]  # axis, index
Place = tuple[str, int, int]  # segment ID, axis, index


@dataclass(frozen=True)
class SlicePrompt:
    """Points with labels (1 inside, 0 outside) and a box by two opposite corners, on one slice for one segment.

    >>> SlicePrompt().withPoint((1, 2, 3), positive=True).withPoint((4, 5, 3), positive=False).labels
    (1, 0)
    """

    points_ras: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box_ras: tuple[Point, Point] | None = None

    def __post_init__(self) -> None:
        points = tuple(_point(point) for point in self.points_ras)
        labels = tuple(self.labels)
        if len(labels) != len(points) or any(label not in (0, 1) for label in labels):
            raise InputError(f"Each of {len(points)} points needs a label 1 (inside) or 0 (outside), got {labels}.")
        object.__setattr__(self, "points_ras", points)
        object.__setattr__(self, "labels", tuple(int(label) for label in labels))
        if self.box_ras is not None:
            if len(self.box_ras) != 2:
                raise InputError(f"A box is given by two opposite corners, got {len(self.box_ras)} points.")
            object.__setattr__(self, "box_ras", (_point(self.box_ras[0]), _point(self.box_ras[1])))

    @property
    def isEmpty(self) -> bool:
        """Whether there is neither a point nor a box."""
        return not self.points_ras and self.box_ras is None

    def withPoint(self, point_ras: Sequence[float], positive: bool) -> SlicePrompt:
        """Return the prompt with one more point, inside (positive) or outside."""
        return replace(
            self, points_ras=(*self.points_ras, _point(point_ras)), labels=(*self.labels, 1 if positive else 0)
        )

    def withPointMoved(self, number: int, point_ras: Sequence[float]) -> SlicePrompt:
        """Return the prompt with a point, counted from 0, at another place."""
        self._checkNumber(number)
        points = list(self.points_ras)
        points[number] = _point(point_ras)
        return replace(self, points_ras=tuple(points))

    def withoutPoint(self, number: int) -> SlicePrompt:
        """Return the prompt without a point, counted from 0."""
        self._checkNumber(number)
        kept = [n for n in range(len(self.points_ras)) if n != number]
        return replace(
            self, points_ras=tuple(self.points_ras[n] for n in kept), labels=tuple(self.labels[n] for n in kept)
        )

    def withBox(self, box_ras: tuple[Point, Point] | None) -> SlicePrompt:
        """Return the prompt with another box, or none."""
        return replace(self, box_ras=box_ras)

    def toDict(self, axis: int, index: int) -> dict[str, Any]:
        """Return JSON types, an entry of a prompt file of FewShotSegLib.data.prompt."""
        values: dict[str, Any] = {"axis": AXIS_LETTERS[axis], "index": index}
        if self.points_ras:
            values |= {"points_ras": [list(p) for p in self.points_ras], "point_labels": list(self.labels)}
        if self.box_ras is not None:
            values["box_ras"] = [list(corner) for corner in self.box_ras]
        return values

    def _checkNumber(self, number: int) -> None:
        if not 0 <= number < len(self.points_ras):
            raise InputError(f"There is no point {number}; the slice has {len(self.points_ras)} points, from 0.")


def sampled(line_ras: Sequence[Point], most: int = SCRIBBLE_POINTS) -> list[Point]:
    """Return points at equal distances along a line through points, with its ends; fewer than `most` on a short one.

    >>> sampled([(0, 0, 0), (1, 0, 0), (10, 0, 0)], most=3)
    [(0.0, 0.0, 0.0), (5.0, 0.0, 0.0), (10.0, 0.0, 0.0)]
    """
    line = np.asarray(line_ras, np.float64)
    if (line == line[0]).all():
        return [_point(line[0])]
    return [_point(point) for point in along(line, most)]


def _point(values: Sequence[float]) -> Point:
    try:
        r, a, s = (float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"A point is three numbers R, A, S in mm, got {values!r}.") from None
    if not all(math.isfinite(value) for value in (r, a, s)):
        raise InputError(f"A point is three finite numbers R, A, S in mm, got {values!r}.")
    return r, a, s


# -------------------------------------------------------------------------------------------------------------- store


class PromptStore:
    """The prompts of all segments of one segmentation, and which slices propagation has written.

    A propagated slice is remembered with a checksum of its mask, so that one that was edited since is known to be the
    user's own.
    """

    def __init__(self) -> None:
        self._prompts: dict[Place, SlicePrompt] = {}
        self._propagated: dict[Place, int] = {}

    def get(self, segmentId: str, axis: int, index: int) -> SlicePrompt:
        """Return the prompt of a slice, empty when there is none."""
        return self._prompts.get((segmentId, axis, index), SlicePrompt())

    def set(self, segmentId: str, axis: int, index: int, prompt: SlicePrompt) -> None:
        """Replace the prompt of a slice; an empty one removes it."""
        if prompt.isEmpty:
            self._prompts.pop((segmentId, axis, index), None)
        else:
            self._prompts[segmentId, axis, index] = prompt

    def slices(self, segmentId: str) -> list[Slice]:
        """Return (axis, index) of the slices with a prompt, in order."""
        return sorted((axis, index) for known, axis, index in self._prompts if known == segmentId)

    def segmentIds(self) -> list[str]:
        """Return the segments with a prompt or a propagated slice."""
        return sorted({key[0] for key in (*self._prompts, *self._propagated)})

    def remove(self, segmentId: str) -> None:
        """Forget a segment."""
        for known in (self._prompts, self._propagated):
            for key in [key for key in known if key[0] == segmentId]:
                del known[key]

    def clear(self) -> None:
        """Forget all prompts."""
        self._prompts.clear()
        self._propagated.clear()

    def propagated(self, segmentId: str) -> dict[Slice, int]:
        """Return {(axis, index): checksum} of the slices that propagation wrote."""
        return {key[1:]: checksum for key, checksum in self._propagated.items() if key[0] == segmentId}

    def setPropagated(self, segmentId: str, marks: Mapping[Slice, int]) -> None:
        """Replace what `propagated` returns."""
        for key in [key for key in self._propagated if key[0] == segmentId]:
            del self._propagated[key]
        self._propagated |= {(segmentId, *where): checksum for where, checksum in marks.items()}

    def toJson(self, segmentId: str) -> str:
        """Return the segment's prompts as text: a prompt file of FewShotSegLib, plus the propagated slices."""
        values: dict[str, Any] = {
            "prompts": [self.get(segmentId, *where).toDict(*where) for where in self.slices(segmentId)]
        }
        if marks := self.propagated(segmentId):
            values["propagated"] = [[AXIS_LETTERS[axis], index, mark] for (axis, index), mark in sorted(marks.items())]
        return json.dumps(values, separators=(",", ":"))

    def fromJson(self, segmentId: str, text: str) -> None:
        """Replace the segment's prompts by what `toJson` returned; `InputError`, and no change, for other text."""
        try:
            values = json.loads(text)
            prompts = {_sliceOf(entry): _promptOf(entry) for entry in values["prompts"]}
            marks = {(AXES[letter], int(index)): int(mark) for letter, index, mark in values.get("propagated", ())}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"The prompts saved with segment {segmentId} cannot be read ({error}).") from None
        self.remove(segmentId)
        for (axis, index), prompt in prompts.items():
            self.set(segmentId, axis, index, prompt)
        self.setPropagated(segmentId, marks)


def _sliceOf(entry: Mapping[str, Any]) -> Slice:
    return AXES[entry["axis"]], int(entry["index"])


def _promptOf(entry: Mapping[str, Any]) -> SlicePrompt:
    return SlicePrompt(entry.get("points_ras", ()), entry.get("point_labels", ()), entry.get("box_ras"))
