"""Files that are either whole or absent, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from FewShotSegLib.errors import InputError


def part_path(path: Path) -> Path:
    """Return the sibling that a file is written to before it gets its name; it keeps the suffix.

    >>> part_path(Path("out/a.seg.nrrd")).name
    'a.part.seg.nrrd'
    >>> part_path(Path("out/liver v1.2.nii.gz")).name
    'liver v1.2.part.nii.gz'
    """
    suffix = known_suffix(path)
    return path.with_name(f"{path.name[: len(path.name) - len(suffix)]}.part{suffix}")


def known_suffix(path: Path) -> str:
    """Return the suffix that decides the file format, in the case it was written in: the last one, or a known pair.

    >>> known_suffix(Path("patient.7.nii.gz")), known_suffix(Path("a.seg.nrrd")), known_suffix(Path("v1.0.mha"))
    ('.nii.gz', '.seg.nrrd', '.mha')
    """
    for pair in (".nii.gz", ".seg.nrrd", ".seg.dcm"):
        if path.name.lower().endswith(pair) and len(path.name) > len(pair):
            return path.name[-len(pair) :]
    return path.suffix


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a part file beside `path`; it takes the place of `path` only after the block has ended well.

    The part file has reached the disk before it is renamed, so a killed process or a power cut leaves the old file or
    the new one, never half of one. Missing folders are made. An exception removes the part file; an operating system
    error (disk full, read-only folder) becomes an `InputError` that names the path and the reason.
    """
    path = Path(path)
    part = part_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writers from C++ libraries report a refused folder in their own words; open() says it as an OSError.
        part.open("wb").close()
        yield part
        _flush_to_disk(part)
        os.replace(part, path)  # noqa: PTH105 - one name for the step, on every Python version
    except BaseException as error:
        _remove(part)
        if isinstance(error, OSError) and _is_about(error, path, part):
            raise InputError(_cannot_write(path, error)) from error
        raise


def write_text_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


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
    return Path(os.fsdecode(error.filename)) in (path, part, *path.parents)


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"Cannot write {path}: {reason}. Choose a folder that can be written to and has enough free space."
