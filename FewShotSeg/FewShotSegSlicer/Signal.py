"""Tell listeners that something happened, without Qt: signals on plain Python objects crash in PythonQt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Listener = Callable[..., Any]


class Signal:
    """Calls its listeners in the order they were connected.

    A listener that fails is logged and does not stop the others, nor the one who tells.

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
    """Call `function`, if there is one; what it raises is logged: it is no concern of the caller."""
    if function is None:
        return
    try:
        function(*arguments)
    except Exception:
        log.exception("A listener failed: %r", function)
