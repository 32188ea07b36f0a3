"""Results of a benchmark: one line of JSON each, so that an interrupted run resumes; and tables of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def results_in(record: Path) -> list[dict[str, Any]]:
    """Return the results in a file, oldest first; empty if it does not exist."""
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []


def add_result(record: Path, result: Mapping[str, Any]) -> None:
    """Append a result to a file."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
