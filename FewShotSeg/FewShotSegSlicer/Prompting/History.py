"""What was done on slices, so that it can be undone and redone: one step per prompt or propagation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .Prompts import Place, Slice, SlicePrompt

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class SliceState:
    """A slice at one moment: its prompt and the mask (2-D, the other two array axes) that was previewed for it.

    Without a mask nothing was previewed: the segment held what had been accepted. `isOwed`: the answer to the prompt
    had not come yet.
    """

    prompt: SlicePrompt
    mask: Mask | None = None
    isOwed: bool = False


@dataclass(eq=False)
class PromptStep:
    """One change of a slice's prompt, with what was shown before and after it.

    `isAccepted`: the mask was accepted, which is what has to be taken back first.
    """

    segmentId: str
    axis: int
    index: int
    before: SliceState
    after: SliceState
    isAccepted: bool = False

    @property
    def place(self) -> Place:
        return self.segmentId, self.axis, self.index


@dataclass(eq=False)
class PropagationStep:
    """Masks {index: mask} that propagation wrote, and the marks of `PromptStore.propagated` before and after."""

    segmentId: str
    axis: int
    index: int
    """The slice to look at, among those written."""
    masks: dict[int, Mask] = field(repr=False)
    before: dict[Slice, int]
    after: dict[Slice, int]

    @property
    def place(self) -> Place:
        return self.segmentId, self.axis, self.index


Step = PromptStep | PropagationStep


class History:
    """Steps that can be taken back, and done again until a new one is made."""

    def __init__(self, limit: int = 300) -> None:
        """`limit`: steps that are kept. A mask of 512 x 512 takes 256 KiB, and a step adds one."""
        self._limit = limit
        self._done: list[Step] = []
        self._undone: list[Step] = []

    @property
    def last(self) -> Step | None:
        """The step that `undo` would take back."""
        return self._done[-1] if self._done else None

    @property
    def next(self) -> Step | None:
        """The step that `redo` would do again."""
        return self._undone[-1] if self._undone else None

    def push(self, step: Step) -> None:
        """Add a step; what was taken back cannot be done again any more."""
        self._undone.clear()
        self._done.append(step)
        del self._done[: -self._limit]

    def undo(self) -> Step | None:
        """Return the last step after moving it to those that can be done again; None when there is none."""
        if not self._done:
            return None
        self._undone.append(self._done.pop())
        return self._undone[-1]

    def redo(self) -> Step | None:
        """Return the step that was last taken back, which counts as done again; None when there is none."""
        if not self._undone:
            return None
        self._done.append(self._undone.pop())
        return self._done[-1]

    def clear(self) -> None:
        """Forget all steps."""
        self._done.clear()
        self._undone.clear()
