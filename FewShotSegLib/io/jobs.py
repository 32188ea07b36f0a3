"""Jobs as JSON files, with paths relative to the folder of the file."""

from __future__ import annotations

import json
import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from FewShotSegLib.data.job import Job, from_dict, to_dict
from FewShotSegLib.errors import InputError

from .files import write_text_whole
from .json_files import read_json

J = TypeVar("J")


def load_job(path: str | os.PathLike[str]) -> Job:
    """Return the job in a JSON file; relative paths are resolved against the folder of that file."""
    path = Path(path)
    values = read_json(path, f"the job {path}")
    try:
        job = from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return with_paths_from(job, path.absolute().parent)


def save_job(job: Job, path: str | os.PathLike[str]) -> None:
    """Write the job as JSON with absolute paths, so that it is independent of the file's location."""
    values = to_dict(with_paths_from(job, Path.cwd()))
    write_text_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def with_paths_from(job: J, folder: Path) -> J:
    """Return the job with relative paths resolved against `folder`. Model names stay names."""
    changes = {entry.name: _resolved(entry, getattr(job, entry.name), folder) for entry in fields(job)}  # type: ignore[arg-type]
    return replace(job, **changes)  # type: ignore[type-var]


def _resolved(entry: Any, value: Any, folder: Path) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolved(entry, element, folder) for element in value)
    if is_dataclass(value):
        return with_paths_from(value, folder)
    is_path = entry.metadata.get("path") and isinstance(value, str)
    if not is_path or (entry.name == "base" and not _looks_like_a_file(value)):
        return value
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError:
        raise InputError(f"{value} names the folder of a user who is not known here; write the path in full.") from None


def _looks_like_a_file(base: str) -> bool:
    """Distinguish a model file from the name of a registered model, which has neither suffix nor separator.

    >>> [_looks_like_a_file(base) for base in ("vit_b", "sam.pth", "models/sam")]
    [False, True, True]
    """
    return bool(Path(base).suffix) or len(Path(base).parts) > 1 or base.startswith("~")
