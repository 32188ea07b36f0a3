"""Process trees, terminated as a whole on every system."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


def options(*, gives_way: bool = False) -> dict[str, Any]:
    """Options for `subprocess.Popen`: its children die with it, Ctrl-C does not reach it, no console window opens.

    `gives_way` lowers the priority, where that is an option (Windows).
    """
    if os.name != "nt":
        return {"start_new_session": True}
    flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
    if gives_way:
        flags |= subprocess.BELOW_NORMAL_PRIORITY_CLASS  # type: ignore[attr-defined]
    return {"creationflags": flags}


def end_tree(process: subprocess.Popen[Any], *, by_force: bool) -> None:
    """End a running process that was started with `options`, and its children, which would otherwise be left behind."""
    if process.poll() is not None:
        return  # its PID may have been reused
    if os.name == "nt":
        command = ["taskkill", *(["/F"] if by_force else []), "/T", "/PID", str(process.pid)]
        window = subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]  # otherwise a console flashes up
        subprocess.run(command, check=False, capture_output=True, creationflags=window)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)
