"""Adapter metadata without file names, which are often patient names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.io.names import stem

from .inputs import files_read

_SHORT = 3  # shorter names are replaced as complete texts only, not within sentences


def without_names(adapter: Adapter, job: AdaptJob) -> Adapter:
    """Return the adapter with "exemplar 1", "image 2", ... where recipe, provenance and metrics name the job's files.

    Other paths are reduced to their last part. Names of data sets and structures are kept.
    """
    clean = _cleaner(_aliases(adapter, job))
    parts = {name: _walked(getattr(adapter, name), clean) for name in ("recipe", "provenance", "metrics")}
    return replace(adapter, **parts)


def _aliases(adapter: Adapter, job: AdaptJob) -> dict[str, str]:
    """{name of a file or of its case: its alias}."""
    aliases: dict[str, str] = {}
    for number, exemplar in enumerate(adapter.provenance.get("exemplars", []), start=1):
        aliases.update(dict.fromkeys(_names_of(str(exemplar.get("name", ""))), f"exemplar {number}"))
    for number, path in enumerate(dict.fromkeys(_files_of(job)), start=1):
        for name in _names_of(path):
            aliases.setdefault(name, f"image {number}")
    return {name: alias for name, alias in aliases.items() if name}


def _files_of(job: AdaptJob) -> Iterator[str]:
    """The files that a job reads, including those in its folders."""
    for path in map(Path, files_read(job)):
        if path.is_dir():
            yield from (str(file) for file in sorted(path.rglob("*")) if file.is_file())
        elif path.suffix:
            yield str(path)


def _names_of(path: str) -> list[str]:
    name = Path(path).name
    return [path, name, stem(Path(name))] if name else []


def _cleaner(aliases: Mapping[str, str]) -> Callable[[str], str]:
    long = sorted((name for name in aliases if len(name) >= _SHORT), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, long))})(?![\w-])") if long else None

    def clean(text: str) -> str:
        if text in aliases:
            return aliases[text]
        if pattern is not None:
            text = pattern.sub(lambda match: aliases[match[0]], text)
        return Path(text).name if Path(text).is_absolute() else text

    return clean


def _walked(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {clean(key): _walked(part, clean) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_walked(part, clean) for part in value]
    return clean(value) if isinstance(value, str) else value
