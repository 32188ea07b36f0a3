"""Cache files: readable by this user only, and verified when they are used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from FewShotSegLib.errors import InputError

from .files import sha256_of_file, write_text_whole, written_whole

log = logging.getLogger(__name__)


@contextlib.contextmanager
def sealed(path: Path, identity: str = "") -> Iterator[Path]:
    """Yield a part file like `written_whole`, and store its digest next to it in `<name>.sha256`, with the `identity`
    of its inputs, as far as not determined by its name."""
    with written_whole(path, private=True) as part:
        yield part
        digest = sha256_of_file(part)
    _seal(path, digest, identity)


def is_sealed(path: Path, identity: str = "") -> bool:
    """Whether the file exists unmodified and with this identity.

    Files that are corrupt or were made from other inputs are removed, which is logged. Files of earlier versions have
    no seal, and get one.
    """
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, UnicodeDecodeError, InputError):
        digest = sha256_of_file(path)
        if not _seal_of(path).exists():
            _seal(path, digest, identity)
        if _seal_of(path).read_text(encoding="utf-8") == _text_of(digest, identity):
            return True
    log.warning("The cached file %s is damaged, or was made from something else; it is made again.", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return False


def _seal(path: Path, digest: str, identity: str) -> None:
    write_text_whole(_seal_of(path), _text_of(digest, identity), private=True)


def _text_of(digest: str, identity: str) -> str:
    return f"{digest} {identity}".strip() + "\n"


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
