"""Temporary folders for files exchanged between processes. Leftovers of a killed process are removed by the next one.

A process holds a lock in its folder for its lifetime; the operating system releases the lock when the process ends, in
whatever way.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from FewShotSegLib.io.locks import take

_PREFIX = "fewshotseg-"
_LOCK = "in use"


class _Own:
    """The folder of this process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Locked before it is renamed: a folder with an unheld lock is abandoned.
        unnamed = self.folder / "new"
        self._lock = unnamed.open("wb")
        take(self._lock)
        unnamed.rename(self.folder / _LOCK)
        self._process = os.getpid()
        atexit.register(self.remove)

    def remove(self) -> None:
        if os.getpid() == self._process:  # not in a forked child
            self._lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)


_own: _Own | None = None


def process_folder() -> Path:
    """Return the temporary folder of this process, readable by this user only. Abandoned ones are removed."""
    global _own
    if _own is None or not _own.folder.is_dir():  # cleaned up by someone else
        remove_abandoned()
        _own = _Own()
    return _own.folder


def new_folder() -> Path:
    """Return a new, empty folder in `process_folder`."""
    return Path(tempfile.mkdtemp(dir=process_folder()))


def is_in_use(folder: Path) -> bool:
    """Whether the process whose `process_folder` this is, or was, is still running; true in doubt."""
    if _own is not None and folder == _own.folder:
        return True
    try:
        with (folder / _LOCK).open("rb+") as lock:
            return take(lock) != "taken"
    except FileNotFoundError:
        return folder.is_dir()
    except OSError:
        return True


def remove_abandoned() -> list[Path]:
    """Remove the folders of processes that exited without doing so, and return them."""
    there = [folder for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if (folder / _LOCK).is_file()]
    abandoned = [folder for folder in there if not is_in_use(folder)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
    return abandoned
