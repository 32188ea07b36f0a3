"""Files that are either whole or absent, and checksums."""

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
    """Return the suffix that decides the file format, in the case it was written in: the last one, or a known pair.

    >>> known_suffix(Path("patient.7.nii.gz")), known_suffix(Path("a.seg.nrrd")), known_suffix(Path("v1.0.mha"))
    ('.nii.gz', '.seg.nrrd', '.mha')
    """
    for pair in (".nii.gz", ".seg.nrrd", ".seg.dcm", ".rtstruct.dcm"):
        if path.name.lower().endswith(pair) and len(path.name) > len(pair):
            return path.name[-len(pair) :]
    return path.suffix


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Yield a part file beside `path`; it takes the place of `path` only after the block has ended well.

    The part file has reached the disk before it is renamed, so a killed process or a power cut leaves the old file or
    the new one, never half of one. Its name cannot be foreseen and nobody else has it: two writers of one file leave
    what one of them has written. What killed processes have left in the folder is removed. With `private` only this
    user can read the file. Missing folders are made. An exception removes the part file; an operating system error
    (disk full, read-only folder) becomes an `InputError` that names the path and the reason.
    """
    path = Path(path)
    part, lock = path, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, lock = _new_part(path, 0o600 if private else 0o666)
        yield part
        _flush_to_disk(part)
        if os.name == "nt":
            lock.close()  # Windows renames no open file
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
_swept: set[Path] = set()  # folders that this process has tidied up


def _new_part(path: Path, mode: int) -> tuple[Path, IO[bytes]]:
    """Return a new, empty file beside `path` with its suffix, and the lock that says that somebody works on it."""
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
        lock.close()  # another process was tidying up just now


def _remove_abandoned_parts(folder: Path) -> None:
    """Remove the part files of processes that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - a folder may hold a hundred thousand files
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
    """Write `text` as UTF-8 with `\\n` line ends, whole or not at all; `private` as for `written_whole`.

    What UTF-8 cannot hold (names of files in another encoding) is written as \\udcff.
    """
    with written_whole(path, private=private) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
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
    """Return whether writing failed: errors about some other file, read inside the block, keep their own words."""
    if not isinstance(error.filename, str | bytes):
        return True
    named = Path(os.fsdecode(error.filename))
    return named in (path, part, *path.parents) or _PART.fullmatch(named.name) is not None


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"Cannot write {path}: {reason}. Choose a folder that can be written to and has enough free space."
