"""What is left to be looked at after a batch: its results, the doubtful first, and what a person has said of each.

The results are read from the records beside them (NAME.result.json). What was said is kept in a table in the same
folder, and holds for the file that was looked at: a result that is made anew is to be looked at again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from FewShotSegLib.data.volume import AXES
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import sha256_of_file, write_text_whole
from FewShotSegLib.jobs.record import RECORD_SUFFIX, read_record

TABLE = "reviews.csv"
VERDICTS = ("accepted", "corrected", "skipped")
_COLUMNS = ("image", "file", "verdict", "date", "sha256")


@dataclass(frozen=True)
class Finding:
    """A volume of a batch. `doubt` is 1 minus the lowest confidence of its structures, 1 where it failed."""

    image: str
    file: Path
    """The segmentation; it need not exist where the volume failed."""
    flags: tuple[str, ...]
    doubt: float
    where: tuple[int, int] | None
    """Array axis and index of the slice that was least sure."""
    error: str = ""
    verdict: str = ""
    """One of `VERDICTS`, "" while nobody has looked at it."""

    @property
    def name(self) -> str:
        """How a person calls it."""
        return self.file.name.removesuffix(".seg.nrrd")


def findings(folder: str | Path) -> list[Finding]:
    """Return the volumes of a batch: those nobody has looked at first, of these the ones with most flags and doubt."""
    folder = Path(folder)
    said = _said(folder)
    found = [one for path in sorted(folder.glob(f"*{RECORD_SUFFIX}")) if (one := _finding(path, said)) is not None]
    return sorted(found, key=lambda one: (bool(one.verdict), not one.error, -len(one.flags), -one.doubt, one.name))


def review(finding: Finding, verdict: str) -> Finding:
    """Write down what a person says of a result, as its file is now; returns it with that."""
    if verdict not in VERDICTS:
        raise InputError(f"The verdict is one of {', '.join(VERDICTS)}, got {verdict!r}.")
    folder = finding.file.parent
    row = {"image": finding.image, "file": finding.file.name, "verdict": verdict}
    row |= {"date": datetime.now().isoformat(" ", "seconds"), "sha256": _digest(finding.file)}
    rows = [*(one for one in _rows(folder) if one["file"] != finding.file.name), row]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_whole(folder / TABLE, stream.getvalue())
    return replace(finding, verdict=verdict)


def _finding(path: Path, said: Mapping[str, Mapping[str, str]]) -> Finding | None:
    """The volume of a record, None for the record of something else."""
    record = read_record(path)
    if record is None or not isinstance(record.get("image"), str):
        return None
    file = path.with_name(f"{path.name.removesuffix(RECORD_SUFFIX)}.seg.nrrd")
    row = said.get(file.name)
    verdict = row["verdict"] if row is not None and row["sha256"] == _digest(file) else ""
    if "error" in record:
        return Finding(record["image"], file, (), 1.0, None, str(record["error"]["message"]), verdict)
    structures: Mapping[str, Any] = record["metrics"]["structures"]
    flags = tuple(f"{name} {flag}" for name, one in structures.items() for flag in one["flags"])
    sure = [one["confidence"] for one in structures.values() if one["confidence"] is not None]
    index = record.get("least_sure_slice")
    where = (AXES[record["axis"]], index) if index is not None else None
    return Finding(record["image"], file, flags, 1 - min(sure, default=1.0), where, "", verdict)


def _digest(file: Path) -> str:
    return sha256_of_file(file) if file.is_file() else ""


def _said(folder: Path) -> dict[str, dict[str, str]]:
    return {row["file"]: row for row in _rows(folder)}


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        text = (folder / TABLE).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        text = ""
    reader = csv.DictReader(io.StringIO(text))
    if set(_COLUMNS) - set(reader.fieldnames or ()):
        raise InputError(
            f"{folder / TABLE} cannot be read, perhaps because it was saved with other separators: save it as a "
            f"comma-separated UTF-8 file with the columns {', '.join(_COLUMNS)}, or move it away to begin a new one."
        )
    return [{name: row[name] or "" for name in _COLUMNS} for row in reader]
