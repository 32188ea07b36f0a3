"""File locks that the operating system releases when the process that holds them ends, in whatever way."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from FewShotSegLib.errors import InputError

Taken = Literal["taken", "held", "unknown"]

_WAIT_S = 0.02


def take(lock: IO[bytes]) -> Taken:
    """Lock a file until it is closed: "taken", "held" by another process, or "unknown" if the file system has no
    locks."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "held" if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK) else "unknown"
    return "taken"


@contextlib.contextmanager
def locked(path: Path, patience_s: float = 10.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs: mutual exclusion between processes.

    The file is not removed. `InputError` if another process holds it for longer than `patience_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o600), "r+b") as lock:
        until = time.monotonic() + patience_s
        while take(lock) == "held":
            if time.monotonic() > until:
                raise InputError(f"Another process holds {path}; wait until it has ended, then try again.")
            time.sleep(_WAIT_S)
        yield
