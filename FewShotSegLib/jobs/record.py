"""The record next to the outputs of a job: the job, versions, outputs, and every warning.

An adapter is bit-identical for the same job; its record is not, because it contains times.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from FewShotSegLib.data.digests import sha256_of_json
from FewShotSegLib.data.job import Job, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import sha256_of_file, write_text_whole
from FewShotSegLib.io.jobs import with_paths_from
from FewShotSegLib.io.json_files import read_table
from FewShotSegLib.version import __version__

_PACKAGES = ("numpy", "scipy", "torch", "SimpleITK", "safetensors")


def record_of(job: Job, device: str, timings: Mapping[str, float], warnings: Iterable[str]) -> dict[str, Any]:
    """The part of a record common to all jobs; outputs and metrics are added."""
    return {
        "job": to_dict(with_paths_from(job, Path.cwd())),
        "versions": versions(),
        "device": device,
        "threads": _threads(),
        "seed": job.seed,
        "timings_s": dict(timings),
        "warnings": list(warnings),
    }


def versions() -> dict[str, str]:
    """Versions of this library, its numerical dependencies, Python and the system."""
    found = {"FewShotSegLib": __version__, "python": platform.python_version(), "system": platform.platform()}
    return found | dict(_versions_of(_PACKAGES))


@functools.cache
def _versions_of(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those installed. Cached per process: in a batch the lookup took a tenth of a small volume's time."""
    found = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return tuple(found)


def _threads() -> int | None:
    import sys

    torch = sys.modules.get("torch")  # the summation order affects the last bit; not worth an import
    return int(torch.get_num_threads()) if torch is not None else None


RECORD_SUFFIX = ".result.json"


_OF_THE_JOB = ("job", "versions", "device", "threads", "seed")


def own_part(record: Mapping[str, Any]) -> dict[str, Any]:
    """The image-specific part of a record: the rest is the job's, and for ten thousand images takes 40 MB."""
    return {name: value for name, value in record.items() if name not in _OF_THE_JOB}


def result_path(out: Path, stem: str) -> Path:
    return out / f"{stem}{RECORD_SUFFIX}"


def write_record(record: Mapping[str, Any], path: Path) -> None:
    write_text_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, or None if there is no readable one: it is then rewritten."""
    try:
        return read_table(path, str(path))
    except InputError:
        return None


def known_digests(record: Mapping[str, Any] | None) -> set[str]:
    """The SHA-256 of every output listed in a record."""
    record = record or {}
    outputs, replaced = record.get("outputs"), record.get("replaced")
    sums = [*outputs.values()] if isinstance(outputs, Mapping) else []
    sums += replaced if isinstance(replaced, list) else []
    return {value for value in sums if isinstance(value, str)}


_MOST_HASHED = 4 << 30  # bytes


def inputs_digest(paths: Iterable[str | Path]) -> str | None:
    """SHA-256 over the contents of files and folders, regardless of time stamps; None for more than 4 GB, which would
    take minutes to read, and if something cannot be read."""
    files: list[Path] = []
    try:
        for path in map(Path, paths):
            files += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        if sum(file.stat().st_size for file in files) > _MOST_HASHED:
            return None
        return sha256_of_json([[file.name, sha256_of_file(file)] for file in files])
    except (OSError, InputError):
        return None


def is_complete(record: Mapping[str, Any] | None, folder: Path) -> bool:
    """Whether every output in a record exists in the folder, unchanged."""
    outputs = record.get("outputs") if record else None
    if not isinstance(outputs, dict) or not outputs:
        return False
    return all((folder / name).is_file() and sha256_of_file(folder / name) == sha for name, sha in outputs.items())
