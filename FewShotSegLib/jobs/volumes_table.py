"""The table of a batch: a row for each volume, with flags for those to look at first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from FewShotSegLib.evaluation.tables import as_cell
from FewShotSegLib.io.files import write_text_whole

from .outputs import Outputs, unused
from .record import versions

COLUMNS = ("image", "structure", "label", "volume_ml", "voxels", "confidence", "flags", "state", "error")


def write_volumes(records: Iterable[dict[str, Any]], path: Path, *, overwrite: bool = False) -> Path:
    """Write one line per image and structure, and one for each image that failed; returns the file.

    A table in this place that somebody else has written or changed stays, and the new one gets a number.
    """
    text = _table(records)
    with Outputs(path.with_name(f".{path.name}.result.json"), overwrite=overwrite) as outputs:
        if outputs.changed([path.name]) and not overwrite:
            path = unused(path)
        write_text_whole(outputs.place(path.name), text)
        outputs.finish({"job": {"kind": "table"}, "versions": versions()})
    return path


def _table(records: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        common = {"image": record["image"], "state": _state(record)}
        if "error" in record:
            writer.writerow(_cells({**common, "state": "failed", "error": record["error"]["message"]}))
        for structure, row in record.get("metrics", {}).get("structures", {}).items():
            writer.writerow(_cells({**common, "structure": structure, **row, "flags": "; ".join(row["flags"])}))
    return stream.getvalue()


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return {name: as_cell(value) for name, value in row.items()}


def _state(record: dict[str, Any]) -> str:
    if record.get("changed"):
        return "changed since, kept"
    return "there already" if record.get("skipped") else "segmented"
