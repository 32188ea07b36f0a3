"""Folders for files that processes hand each other. What a killed process has left behind, the next one removes.

A process holds a lock in its folder for as long as it lives; the operating system takes the lock away with the process,
however that ends.
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
        # Locked before it gets its name: a folder with a lock that nobody holds is an abandoned one.
        unnamed = self.folder / "new"
        self._lock = unnamed.open("wb")
        take(self._lock)
        unnamed.rename(self.folder / _LOCK)
        self._process = os.getpid()
        atexit.register(self.remove)

    def remove(self) -> None:
        if os.getpid() == self._process:  # not in a process that was forked from it
            self._lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)


_own: _Own | None = None


def process_folder() -> Path:
    """Return the folder of this process, which goes with it; only this user can read it."""
    global _own
    if _own is None or not _own.folder.is_dir():  # somebody tidied up
        _own = _Own()
    return _own.folder


def new_folder() -> Path:
    """Return a new, empty folder in `process_folder`."""
    return Path(tempfile.mkdtemp(dir=process_folder()))


def is_in_use(folder: Path) -> bool:
    """Whether the process whose `process_folder` this is, or was, still runs; in doubt, it does."""
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
    """Remove the folders of processes that ended without doing so, and return them."""
    there = [folder for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if (folder / _LOCK).is_file()]
    abandoned = [folder for folder in there if not is_in_use(folder)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
    return abandoned
