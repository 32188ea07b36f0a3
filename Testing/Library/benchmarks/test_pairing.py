"""Times taken in turns, and their table. Nothing is timed."""

from __future__ import annotations

import pytest

from FewShotSegLib.benchmarks.pairing import (
    Measurement,
    Spread,
    interleaved,
    measurement_table,
    milliseconds,
    ratios,
    spread,
)


def test_median_and_quartiles_are_those_of_the_textbook() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


def test_ratios_are_taken_turn_by_turn_before_the_median() -> None:
    # The ratio of the medians would be 6 / 3 = 2.
    assert ratios([6.0, 30.0, 4.0], [3.0, 10.0, 1.0]).median == 3.0
    assert ratios([6.0], [3.0], scale=10).median == 20.0


def test_turns_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    log: list[str] = []
    now = [0.0]

    def works(name: str, seconds: float) -> None:
        now[0] += seconds if log.count(name) else 100.0
        log.append(name)

    seconds = interleaved({"a": lambda: works("a", 3.0), "b": lambda: works("b", 1.0)}, repeats=2, clock=lambda: now[0])
    assert log == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 3.0], "b": [1.0, 1.0]}


def test_milliseconds_are_the_median_per_item() -> None:
    assert milliseconds([0.1, 0.4, 0.2], items=10) == "20 ms"


def test_the_table_has_a_line_per_row_with_what_was_wanted() -> None:
    rows = [
        Measurement("stock / ours", Spread(2.0, 1.875, 2.25), 1.5, "4 ms / 2 ms"),
        Measurement("a click", Spread(321.4, 300, 400)),
        Measurement("launches", Spread(7.0, 7.0, 7.0), most=8.0),
    ]
    lines = measurement_table(rows).splitlines()
    assert lines[2] == "| stock / ours | 2.00 | 1.88 to 2.25 | >= 1.5 | 4 ms / 2 ms |"
    assert lines[3] == "| a click | 321 | 300 to 400 |  |  |"
    assert lines[4] == "| launches | 7.00 | 7.00 to 7.00 | <= 8 |  |"
    assert len({line.count("|") for line in lines}) == 1
