"""The tools for pointing: clicks and boxes in the slice views, points that can be dragged and removed, hotkeys.

tool = PromptTool(live)
tool.install()                    # in enter()
tool.mode = "positive"
tool.remove()                     # in exit()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import SliceViews
from FewShotSegSlicer.Signal import Signal

from .LiveSegmenter import LiveSegmenter
from .PromptView import Mode, PromptView

HOTKEYS = {
    "P": "points inside",
    "N": "points outside",
    "D": "box",  # dragged; B and F go through the slices in Slicer's views
    "Esc": "no tool",
    "A": "accept the mask",  # not Return: it belongs to the field that is typed in
    "Del": "remove the point under the mouse, or the last one",
    "X": "clear the slice",
    "Z": "undo",
    "Ctrl+Z": "undo",
    "Y": "redo",
    "Ctrl+Y": "redo",
}
"""Keys and what they do; undo and redo as in the Segment Editor."""


class PromptTool:
    """Prompts in all slice views; with Ctrl, a click counts for the other sign.

    What a click cannot do is told by `live.failed`.
    """

    def __init__(self, live: LiveSegmenter) -> None:
        self.live = live
        self.modeChanged = Signal()
        """(mode)"""
        self._mode: Mode = "none"
        self._views: list[PromptView] = []
        self._target: Any = None
        self._shortcuts: list[Any] = []
        self.keys: dict[str, str] = {}
        """The key that does what one of `HOTKEYS` should do, "" for none; another one where that belongs to others."""
        self._isInstalled = False

    @property
    def mode(self) -> Mode:
        """What a click in a slice view does; with "none" it does what it does in Slicer."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise InputError(f"The mode is one of {', '.join(get_args(Mode))}, got {mode!r}.")
        if mode != self._mode:
            self._mode = mode
            self.modeChanged(mode)

    def install(self) -> None:
        """Begin to listen to the slice views, and to show prompts in them."""
        layoutManager = slicer.app.layoutManager()
        if self._isInstalled or layoutManager is None:  # without a main window there are no views
            return
        self._isInstalled, self._target = True, self.live.target
        self._followLayout()
        layoutManager.connect("layoutChanged(int)", self._followLayout)
        self.live.changed.connect(self._onChanged)
        self.live.moved.connect(self._onMoved)

    def remove(self) -> None:
        """Leave the views as they were; what is shown in the segment is kept."""
        if not self._isInstalled:
            return
        self.live.changed.disconnect(self._onChanged)
        self.live.moved.disconnect(self._onMoved)
        slicer.app.layoutManager().disconnect("layoutChanged(int)", self._followLayout)
        for view in self._views:
            view.close()
        self._views, self._isInstalled = [], False
        self.live.leave()

    def _followLayout(self, _layout: int = 0) -> None:
        """Watch the views that there are now: a layout may bring some, and take some away."""
        if not self._isInstalled:
            return
        layoutManager = slicer.app.layoutManager()
        names = layoutManager.sliceViewNames()
        for view in [view for view in self._views if view.name not in names]:
            view.close()
            self._views.remove(view)
        known = {view.name for view in self._views}
        for name in [name for name in names if name not in known]:
            self._views.append(PromptView(name, layoutManager.sliceWidget(name), self.live, self._modeOfClick))

    def _modeOfClick(self, interactor: Any) -> Mode:
        """Return what a click does now: with Ctrl the other sign, and nothing while markups are being placed."""
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction.GetCurrentInteractionMode() == interaction.Place:
            return "none"
        opposite: dict[Mode, Mode] = {"positive": "negative", "negative": "positive"}
        return opposite.get(self._mode, self._mode) if interactor.GetControlKey() else self._mode

    def _onChanged(self) -> None:
        if self.live.target is not self._target:
            self._target = self.live.target
            for view in self._views:
                view.update()
        for view in self._views:
            view.draw()

    def _onMoved(self, _segmentId: str, axis: int, index: int) -> None:
        target = self.live.target
        if target is not None and not any(view.where == (axis, index) for view in self._views):
            SliceViews.jumpToSlice(target.volumeNode, axis, index)

    # -------------------------------------------------------------------------------------------------------- hotkeys

    def installHotkeys(self, parent: Any) -> None:
        """Make the hotkeys work in a window, until `removeHotkeys`.

        Of a key that two have, Qt tells neither: what another module has taken is left to it, and Shift with the same
        key is taken instead, if that is free.
        """
        import qt

        self.removeHotkeys()
        taken, actions = keysIn(parent), self._actions()
        self.keys = {key: next((k for k in _choices(key) if k not in taken), "") for key in HOTKEYS}
        for wanted, key in self.keys.items():
            if key:
                shortcut = qt.QShortcut(parent)
                shortcut.setKey(qt.QKeySequence(key))
                shortcut.connect("activated()", self._guarded(actions[wanted]))
                self._shortcuts.append(shortcut)

    def removeHotkeys(self) -> None:
        """Take the hotkeys away."""
        for shortcut in self._shortcuts:
            shortcut.disconnect("activated()")
            shortcut.setEnabled(False)
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    def _actions(self) -> dict[str, Callable[[], Any]]:
        live = self.live
        return {
            "P": lambda: self._toggle("positive"),
            "N": lambda: self._toggle("negative"),
            "D": lambda: self._toggle("box"),
            "Esc": lambda: self._toggle("none"),
            "A": live.accept,
            "Del": self.removePoint,
            "X": self.clear,
            "Z": live.undo,
            "Ctrl+Z": live.undo,
            "Y": live.redo,
            "Ctrl+Y": live.redo,
        }

    def _guarded(self, action: Callable[[], Any]) -> Callable[[], None]:
        def act() -> None:
            with self.live.signals.tellingErrors():
                action()

        return act

    def _toggle(self, mode: Mode) -> None:
        self.mode = "none" if mode == self._mode else mode

    def removePoint(self) -> None:
        """Remove the point under the mouse, or else the last one of the slice that was worked on."""
        if any(view.removePointUnderMouse() for view in self._views):
            return
        where = self.live.activeSlice
        if where is not None and (points := self.live.promptOn(*where).points_ras):
            self.live.removePoint(*where, len(points) - 1)

    def clear(self) -> None:
        """Remove the prompts of the slice that was worked on."""
        if self.live.activeSlice is not None:
            self.live.clear(*self.live.activeSlice)


def keysIn(window: Any) -> set[str]:
    """Return the keys that somebody listens to in a window now, as Qt writes them."""
    import qt

    shortcuts = [one.key for one in window.findChildren(qt.QShortcut) if one.enabled]
    actions = [one.shortcut for one in window.findChildren(qt.QAction) if one.enabled and one.visible]
    return {key.toString() for key in (*shortcuts, *actions)}


def _choices(key: str) -> tuple[str, ...]:
    """The key itself, and what it is replaced with; what has Ctrl in it has a key without anyway."""
    return (key,) if "+" in key else (key, f"Shift+{key}")
