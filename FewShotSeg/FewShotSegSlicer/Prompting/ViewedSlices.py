"""Which slices of the volume the views show, and which of them is worked on."""

from __future__ import annotations

from collections.abc import Callable

from .Prompts import Slice


class ViewedSlices:
    """Views are told apart by name; "" stands for the console, which works without one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._byView: dict[str, Slice] = {}
        self.active: Slice | None = None
        """The slice that was last clicked on or scrolled to."""
        self.changedAt = clock()

    def __contains__(self, where: Slice) -> bool:
        return where in self._byView.values()

    def inOrder(self) -> list[Slice]:
        """Return the viewed slices, the active one first."""
        return sorted(self._byView.values(), key=lambda where: where != self.active)

    def show(self, where: Slice, view: str) -> None:
        """Take note of the slice that a view shows; cheap, also where it is the same as before."""
        if self._byView.get(view) == where:
            return
        isScrolled = view in self._byView
        self._byView[view] = where
        if isScrolled or not view or self.active is None:  # of views that appear together, the first
            self.active = where
        if view:
            self._byView.pop("", None)  # where the console worked without views
        self.changedAt = self._clock()

    def close(self, view: str) -> None:
        """Take note that a view shows no slice of the volume any more."""
        if self._byView.pop(view, None) is not None:
            self.changedAt = self._clock()

    def workOn(self, where: Slice) -> None:
        """Make a slice the active one; without a view that shows it, it counts as viewed."""
        self.active = where
        if where not in self:
            self._byView[""] = where

    def closeAll(self) -> None:
        """Take note that no view shows the volume any more; the active slice stays."""
        self._byView.clear()

    def forget(self) -> None:
        """Take note that the slices of another volume will come."""
        self.closeAll()
        self.active = None
