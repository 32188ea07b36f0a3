"""Scores as a table and as a summary."""

from __future__ import annotations

import csv
import json
import statistics

import pytest

from FewShotSegLib.evaluation.scoring import COLUMNS, summarize
from FewShotSegLib.evaluation.tables import write_rows, write_summary
from Testing.Library.evaluation.cases import some_rows


def test_the_csv_has_stable_columns_and_reads_back(tmp_path):
    rows = some_rows()
    write_rows(rows, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lines = list(reader)
    assert reader.fieldnames == list(COLUMNS)
    assert COLUMNS[:4] == ("case", "structure", "scope", "dsc")
    assert [line["case"] for line in lines] == [row.case for row in rows]
    assert [float(line["hd95_mm"]) for line in lines] == pytest.approx([row.hd95_mm for row in rows], rel=1e-5)


def test_the_summary_holds_mean_sd_median_and_n(tmp_path):
    rows = some_rows()
    write_summary(rows, tmp_path / "metrics.json")
    entries = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["summary"]
    assert entries == summarize(rows)
    dice = [row.dsc for row in rows if (row.structure, row.scope) == ("liver", "all_slices")]
    assert (entries[0]["structure"], entries[0]["scope"]) == ("liver", "all_slices")
    assert entries[0]["n"] == 2
    assert entries[0]["dsc"]["mean"] == pytest.approx(statistics.mean(dice))
    assert entries[0]["dsc"]["sd"] == pytest.approx(statistics.stdev(dice))
    assert entries[0]["dsc"]["median"] == pytest.approx(statistics.median(dice))
