"""Scores as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from FewShotSegLib.io.files import write_text_whole

from .scoring import COLUMNS, Row, summarize


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write one line per row as CSV with the columns `COLUMNS`, numbers with 6 significant digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = asdict(row)
        writer.writerow([f"{v:.6g}" if isinstance(v := values[name], float) else as_cell(v) for name in COLUMNS])
    write_text_whole(path, stream.getvalue())


def write_summary(rows: Sequence[Row], path: str | Path) -> None:
    """Write `summarize(rows)` as JSON."""
    write_text_whole(path, json.dumps({"summary": summarize(rows)}, indent=2, ensure_ascii=False) + "\n")


def as_cell(value: Any) -> Any:
    """Return a value for a table cell: text that a spreadsheet would run as a formula is prefixed by an apostrophe.

    >>> as_cell("=1+1"), as_cell("liver"), as_cell(-3)
    ("'=1+1", 'liver', -3)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_SIGNS) else value


_FORMULA_SIGNS = tuple("=+-@\t\r\n")
