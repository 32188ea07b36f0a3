"""Scores as a table and as a summary."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace

import pytest

from FewShotSegLib.evaluation.scoring import COLUMNS, Row, summarize
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


def test_names_with_commas_quotes_and_umlauts_come_back_from_the_csv(tmp_path):
    rows = [replace(row, case='p "1", Fall', structure="Läsion;\nlinks") for row in some_rows()[:2]]
    write_rows(rows, tmp_path / "new folder" / "metrics.csv")
    with (tmp_path / "new folder" / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert {(line["case"], line["structure"]) for line in lines} == {('p "1", Fall', "Läsion;\nlinks")}


def test_numbers_have_six_significant_digits(tmp_path):
    write_rows([replace(some_rows()[0], dsc=1 / 3, hd95_mm=123456.789, slices=1234567)], tmp_path / "metrics.csv")
    (line,) = csv.DictReader((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines())
    assert (line["dsc"], line["hd95_mm"], line["slices"]) == ("0.333333", "123457", "1234567")


def test_tables_of_nothing_are_a_head_and_an_empty_list(tmp_path):
    none: list[Row] = []
    write_rows(none, tmp_path / "metrics.csv")
    write_summary(none, tmp_path / "metrics.json")
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"summary": []}
