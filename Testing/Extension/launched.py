"""Processes behind PythonSlicer, which is a launcher: what works is its child."""

from __future__ import annotations

from pathlib import Path


def pidBehind(launcher: int | None) -> int:
    """The process that a launcher has started, or the process itself where it is none (Linux)."""
    assert launcher is not None
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else launcher
