"""Slicer's event loop: its main thread keeps Python's lock while Qt works and while it waits for events.

Other threads of Python run only while Python code runs on the main thread, or sleeps there. PySide6 gives the lock back
at each turn of Qt, under which threads answer sooner than in Slicer; so Qt is called here as C++ calls it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import PySide6

_ALL_EVENTS, _WAIT = 0x00, 0x04
_MICROSECONDS = 1e6
_libc = ctypes.PyDLL(None)  # unlike CDLL, a PyDLL keeps the lock during a call
_qt = ctypes.PyDLL(str(Path(PySide6.__file__).parent / "Qt" / "lib" / "libQt6Core.so.6"))
# static void QCoreApplication::processEvents(QEventLoop::ProcessEventsFlags)
_process = _qt._ZN16QCoreApplication13processEventsE6QFlagsIN10QEventLoop17ProcessEventsFlagEE
_process.argtypes, _process.restype = [ctypes.c_int], None


def processEvents() -> None:
    """Let Qt handle what there is."""
    _process(_ALL_EVENTS)


def turn() -> None:
    """Wait until there is something to handle, as a timer that is due, and let Qt handle it."""
    _process(_WAIT)


def wait(seconds: float) -> None:
    """Do nothing, and let no other thread do anything."""
    _libc.usleep(round(seconds * _MICROSECONDS))
