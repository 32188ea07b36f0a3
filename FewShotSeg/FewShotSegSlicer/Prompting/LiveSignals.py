"""What is told while the user clicks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Signal import Signal


@dataclass(frozen=True)
class LiveSignals:
    """One set for a segmenter and its sessions."""

    changed: Signal = field(default_factory=Signal)
    """(): prompts, masks or what can be undone changed."""
    failed: Signal = field(default_factory=Signal)
    """(message)"""
    timed: Signal = field(default_factory=Signal)
    """(seconds from a click to its mask in the segment)"""
    moved: Signal = field(default_factory=Signal)
    """(segmentId, axis, index): undo or redo changed something there."""
    accepted: Signal = field(default_factory=Signal)
    """(axis, index): the mask that prompts brought on a slice was accepted."""
    progressed: Signal = field(default_factory=Signal)
    """(the worker's progress message) during propagation"""

    @contextmanager
    def tellingErrors(self) -> Iterator[None]:
        """Tell by `failed` what the block raises and the user can put right."""
        try:
            yield
        except InputError as error:
            self.failed(str(error))
