"""JSON files, read within the limits of `data.json_text`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from FewShotSegLib.data.json_text import MOST_BYTES, parsed_json, parsed_table
from FewShotSegLib.errors import InputError


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Return the JSON value in a file; `what` is its name in messages, such as "the job a.json"."""
    return parsed_json(_content(Path(path), what), what[:1].upper() + what[1:])


def read_table(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return the JSON object in a file; anything else is rejected."""
    return parsed_table(_content(Path(path), what), what[:1].upper() + what[1:])


def _content(path: Path, what: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"Cannot read {what}: it is no file.")
        with path.open("rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"Cannot read {what}: {error.strerror or error}.") from None
    except ValueError as error:  # a null byte in the name
        raise InputError(f"Cannot read {what}: {error}.") from None
