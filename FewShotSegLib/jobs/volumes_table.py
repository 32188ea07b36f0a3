"""The table of a batch: a row for each volume, with flags for those to look at first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from FewShotSegLib.io.files import write_text_whole

COLUMNS = ("image", "structure", "label", "volume_ml", "voxels", "confidence", "flags", "state", "error")


def write_volumes(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one line per image and structure, and one for each image that failed."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        common = {"image": record["image"], "state": "there already" if record.get("skipped") else "segmented"}
        if "error" in record:
            writer.writerow({**common, "state": "failed", "error": record["error"]["message"]})
        for structure, row in record.get("metrics", {}).get("structures", {}).items():
            writer.writerow({**common, "structure": structure, **row, "flags": "; ".join(row["flags"])})
    write_text_whole(path, stream.getvalue())
