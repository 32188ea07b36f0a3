"""Tables for a terminal."""

from __future__ import annotations

import pytest

from FewShotSegLib.visualization.text_table import table


def test_every_column_begins_at_one_place_and_no_line_ends_in_blanks() -> None:
    rows = [("liver", "1234.5 mL", "", "ok"), ("left kidney", "8.0 mL", "is empty", ""), ("", "", "", "")]
    lines = table(rows)
    assert [line.split("  ")[0].strip() for line in lines] == ["liver", "left kidney", ""]
    assert {line.index("mL") - len(number) for line, number in zip(lines, ("1234.5 ", "8.0 "), strict=False)} == {13}
    assert lines[0].index("ok") == lines[1].index("is empty") + len("is empty") + 2
    assert all(line == line.rstrip() for line in lines)


def test_rows_may_come_one_by_one() -> None:
    assert table(iter([iter(["a", "bc"]), iter(["def", "g"])])) == ["a    bc", "def  g"]


def test_a_table_of_nothing_has_no_lines() -> None:
    assert table([]) == []


def test_rows_of_different_lengths_are_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table([("a", "b"), ("c",)])
