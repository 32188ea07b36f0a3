"""What can be made again at any time: kept in files that only this user can read, and checked when they are used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from FewShotSegLib.errors import InputError

from .files import sha256_of_file, write_text_whole, written_whole

log = logging.getLogger(__name__)


@contextlib.contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """Yield a part file as `written_whole` does, and keep its digest beside it in `<name>.sha256`."""
    with written_whole(path, private=True) as part:
        yield part
        digest = sha256_of_file(part)
    write_text_whole(_seal_of(path), digest + "\n", private=True)


def is_sealed(path: Path) -> bool:
    """Whether the file is there as it was written; what is damaged is removed, which is said in the log."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, UnicodeDecodeError, InputError):
        if _seal_of(path).read_text(encoding="utf-8").strip() == sha256_of_file(path):
            return True
    log.warning("The cached file %s is damaged or not complete; it is made again.", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
