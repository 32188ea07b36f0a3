"""Results of benchmarks: a line each, and tables of them."""

from __future__ import annotations

from pathlib import Path

from FewShotSegLib.benchmarks.records import add_result, markdown, results_in


def test_results_come_back_in_the_order_they_were_added(tmp_path: Path) -> None:
    record = tmp_path / "speed.jsonl"
    assert results_in(record) == []
    runs = [{"row": "Läsion\n", "seed": 0, "dice": 0.25}, {"row": "b", "turns": [[1, "north: disc", None]]}]
    for run in runs:
        add_result(record, run)
    assert results_in(record) == runs
    assert record.read_text(encoding="utf-8").count("\n") == 2


def test_a_table_has_a_line_per_row_below_its_head() -> None:
    text = markdown(["network", "Dice"], [["unet", "0.9"], ["mambaunet", ""]])
    assert text == "| network | Dice |\n| --- | --- |\n| unet | 0.9 |\n| mambaunet |  |\n"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert {len(line) for line in cells} == {2}


def test_a_table_without_rows_is_its_head() -> None:
    assert markdown(["a"], []) == "| a |\n| --- |\n"
