"""Tell listeners that something happened, without Qt: signals on plain Python objects crash in PythonQt."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

_SHOWN_MS = 10_000
log = logging.getLogger(__name__)

Listener = Callable[..., Any]


class Signal:
    """Calls its listeners in the order they were connected.

    A listener that fails does not stop the others, nor the one who tells; see `guarded`.

    >>> heard = []
    >>> changed = Signal()
    >>> changed.connect(heard.append)
    >>> changed("mask")
    >>> heard
    ['mask']
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def connect(self, listener: Listener) -> None:
        """Call `listener` from now on; connecting it again changes nothing."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def disconnect(self, listener: Listener) -> None:
        """Do not call `listener` any more, also not later in a call that is under way."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def __call__(self, *arguments: Any) -> None:
        for listener in list(self._listeners):
            if listener in self._listeners:
                guarded(listener, *arguments)


def guarded(function: Listener | None, *arguments: Any) -> None:
    """Call `function`, if there is one. What it raises is no concern of the caller, but not hidden either: it is logged
    with its traceback, and said in a line on the error stream and in Slicer's status line.
    """
    if function is None:
        return
    try:
        function(*arguments)
    except Exception as error:
        log.exception("A listener failed: %r", function)
        sentence = f"{type(error).__name__}: {error}"
        sys.stderr.write(f"FewShotSeg: {function!r} failed: {sentence}\n")
        slicer.util.showStatusMessage(_("FewShotSeg has a defect: {error}").format(error=sentence), _SHOWN_MS)
