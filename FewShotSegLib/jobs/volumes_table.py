"""The table of a batch: a row per volume, with flags for those to review first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.tables import as_cell
from FewShotSegLib.io.files import check_writable, write_text_whole

from .outputs import Outputs, unused
from .record import versions

COLUMNS = ("image", "structure", "label", "volume_ml", "voxels", "confidence", "flags", "state", "error")


def write_volumes(records: Iterable[dict[str, Any]], path: Path, *, overwrite: bool = False) -> Path:
    """Write one line per image and structure, and one per failed image; returns the file.

    An existing table that was written or changed by others is kept, and the new one gets a number.
    """
    text = _as_csv(_HEAD) + "".join(_as_csv(_rows_of(record)) for record in records)
    with Outputs(path.with_name(f".{path.name}.result.json"), overwrite=overwrite) as outputs:
        if outputs.changed([path.name]) and not overwrite:
            path = unused(path)
        write_text_whole(outputs.place(path.name), text)
        outputs.finish({"job": {"kind": "table"}, "versions": versions()})
    return path


class RunningTable:
    """The rows of a running batch, written as its images are done.

    They are in `NAME.running.csv` next to the final table, and removed once that exists: a killed batch leaves what was
    known by then.
    """

    def __init__(self, table: Path) -> None:
        self.path = table.with_name(f"{table.stem}.running.csv")
        check_writable(self.path)
        self._stream = self.path.open("w", encoding="utf-8", newline="")
        self._write(_as_csv(_HEAD))

    def add(self, record: dict[str, Any]) -> None:
        """Write the rows of an image."""
        self._write(_as_csv(_rows_of(record)))

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def __enter__(self) -> RunningTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stream.close()
        if kind is None or issubclass(kind, InputError):
            self.path.unlink(missing_ok=True)


_HEAD = [{name: name for name in COLUMNS}]


def _as_csv(rows: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _rows_of(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    common = {"image": record["image"], "state": _state(record)}
    if "error" in record:
        yield _cells({**common, "state": "failed", "error": record["error"]["message"]})
    for structure, row in record.get("metrics", {}).get("structures", {}).items():
        yield _cells({**common, "structure": structure, **row, "flags": "; ".join(row["flags"])})


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return {name: as_cell(value) for name, value in row.items()}


def _state(record: dict[str, Any]) -> str:
    if record.get("changed"):
        return "changed since, kept"
    return "there already" if record.get("skipped") else "segmented"
