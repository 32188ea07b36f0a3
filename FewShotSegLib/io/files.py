"""Atomic file writes, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from FewShotSegLib.errors import InputError

from .locks import take


def known_suffix(path: Path) -> str:
    """Return the suffix that determines the file format, case preserved: the last one, or a known pair.

    >>> known_suffix(Path("patient.7.nii.gz")), known_suffix(Path("a.seg.nrrd")), known_suffix(Path("v1.0.mha"))
    ('.nii.gz', '.seg.nrrd', '.mha')
    """
    for pair in (".nii.gz", ".seg.nrrd", ".seg.dcm", ".rtstruct.dcm"):
        if path.name.lower().endswith(pair) and len(path.name) > len(pair):
            return path.name[-len(pair) :]
    return path.suffix


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Yield a part file next to `path`; it replaces `path` only after the block has succeeded.

    The part file is synced to disk before it is renamed, so a killed process or a power failure leaves either the old
    file or the new one, never a partial one. Its name is random and exclusive: of two writers of one file, one wins.
    Part files left in the folder by killed processes are removed. With `private` only this user can read the file.
    Missing folders are created. An exception removes the part file; an operating system error (disk full, read-only
    folder) becomes an `InputError` that names the path and the reason.
    """
    path = Path(path)
    part, lock = path, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, lock = _new_part(path, 0o600 if private else 0o666)
        yield part
        _flush_to_disk(part)
        if os.name == "nt":
            lock.close()  # Windows cannot rename an open file
        os.replace(part, path)  # noqa: PTH105 - one name for the step, on every Python version
    except BaseException as error:
        if lock is not None:
            lock.close()
            _remove(part)
        if isinstance(error, OSError) and _is_about(error, path, part):
            raise InputError(_cannot_write(path, error)) from error
        raise
    finally:
        if lock is not None:
            lock.close()


def check_writable(path: Path) -> None:
    """Raise `InputError` now rather than after minutes of work when `path` cannot be written; leaves nothing behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"Cannot write {path}: it is a folder. Choose a file name.")
        part, lock = _new_part(path, 0o600)
        lock.close()
        part.unlink()
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error


_PART = re.compile(r"\.fewshotseg-[0-9a-f]{16}\.part(\..+)?")
_swept: set[Path] = set()  # folders already cleaned up by this process


def _new_part(path: Path, mode: int) -> tuple[Path, IO[bytes]]:
    """Return a new, empty file next to `path` with its suffix, and the lock that marks it as in use."""
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        _remove_abandoned_parts(folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        part = path.with_name(f".fewshotseg-{secrets.token_hex(8)}.part{known_suffix(path)}")
        lock = os.fdopen(os.open(part, flags, mode), "r+b")
        if os.name == "nt":
            return part, lock
        taken = take(lock)
        if taken == "unknown" or (taken == "taken" and os.fstat(lock.fileno()).st_nlink):
            return part, lock
        lock.close()  # another process was cleaning up just now


def _remove_abandoned_parts(folder: Path) -> None:
    """Remove the part files of processes that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - a folder may contain a hundred thousand files
            if _PART.fullmatch(name) is None:
                continue
            with contextlib.suppress(OSError):
                if os.name == "nt":  # an open file cannot be removed there
                    (folder / name).unlink()
                    continue
                with os.fdopen(os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW), "r+b") as lock:
                    if take(lock) == "taken":
                        (folder / name).unlink()


def write_text_whole(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write `text` as UTF-8 with `\\n` line endings, atomically; `private` as for `written_whole`.

    What is not valid UTF-8 (file names in another encoding) is written as \\udcff.
    """
    with written_whole(path, private=private) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _is_about(error: OSError, path: Path, part: Path) -> bool:
    """Return whether writing failed: errors about other files, read inside the block, keep their own messages."""
    if not isinstance(error.filename, str | bytes):
        return True
    named = Path(os.fsdecode(error.filename))
    return named in (path, part, *path.parents) or _PART.fullmatch(named.name) is not None


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"Cannot write {path}: {reason}. Choose a folder that can be written to and has enough free space."
