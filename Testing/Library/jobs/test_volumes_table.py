"""The table of a batch, as a spreadsheet reads it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from FewShotSegLib.jobs.volumes_table import COLUMNS, write_volumes


def row(label: int, volume_ml: float, *flags: str) -> dict[str, Any]:
    return {"label": label, "volume_ml": volume_ml, "voxels": 7, "confidence": None, "flags": list(flags)}


def written(records: list[dict[str, Any]], path: Path) -> list[dict[str, str]]:
    write_volumes(records, path)
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert reader.fieldnames == list(COLUMNS)
    return rows


def test_there_is_a_line_for_each_structure_of_each_image(tmp_path: Path) -> None:
    structures = {"liver": row(1, 1500.25), "Milz, links": row(2, 0.5, "is empty", "touches the border of the image")}
    first = {"image": "Fälle/p 1.nrrd", "metrics": {"structures": structures}}
    second = {"image": "p2.nrrd", "skipped": True, "metrics": {"structures": {"liver": row(1, 3.0)}}}
    rows = written([first, second], tmp_path / "new folder" / "volumes.csv")
    assert [(one["image"], one["structure"], one["state"]) for one in rows] == [
        ("Fälle/p 1.nrrd", "liver", "segmented"),
        ("Fälle/p 1.nrrd", "Milz, links", "segmented"),
        ("p2.nrrd", "liver", "there already"),
    ]
    assert [float(one["volume_ml"]) for one in rows] == [1500.25, 0.5, 3.0]
    assert rows[1]["flags"] == "is empty; touches the border of the image"
    assert {one["confidence"] for one in rows} == {""}


def test_an_image_that_failed_has_one_line_with_the_reason(tmp_path: Path) -> None:
    failed = {"image": "p.nrrd", "error": {"kind": "input", "message": 'p.nrrd: 3 voxels, "NaN",\nare no numbers'}}
    (one,) = written([failed], tmp_path / "volumes.csv")
    assert (one["state"], one["structure"], one["volume_ml"]) == ("failed", "", "")
    assert one["error"] == 'p.nrrd: 3 voxels, "NaN",\nare no numbers'


def test_the_table_of_no_images_is_its_head(tmp_path: Path) -> None:
    assert written([], tmp_path / "volumes.csv") == []
