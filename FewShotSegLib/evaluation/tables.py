"""Scores as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from FewShotSegLib.io.files import write_text_whole

from .scoring import COLUMNS, Row, summarize


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write one line per row as CSV with the columns `COLUMNS`, numbers with 6 significant digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = asdict(row)
        writer.writerow([f"{v:.6g}" if isinstance(v := values[name], float) else v for name in COLUMNS])
    write_text_whole(path, stream.getvalue())


def write_summary(rows: Sequence[Row], path: str | Path) -> None:
    """Write `summarize(rows)` as JSON."""
    write_text_whole(path, json.dumps({"summary": summarize(rows)}, indent=2, ensure_ascii=False) + "\n")
