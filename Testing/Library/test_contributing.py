"""What CONTRIBUTING.md leads to: the map of the rooms is that of the tree, and `make mutants` knows the code."""

from __future__ import annotations

import re

import pytest

from Testing.Library.test_architecture import LEVELS, LIBRARY, ROOT
from Testing.mutants import MUTANTS, Mutant


def rooms_in_the_map() -> dict[str, int]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", text, flags=re.MULTILINE)
    return {room.rstrip("/"): int(level) for level, cell in rows for room in re.findall(r"`(.*?)`", cell)}


def test_every_room_is_on_the_map_at_its_level() -> None:
    there = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(rooms_in_the_map()) == there - {"__init__"}


def test_the_map_has_the_levels_of_the_rule() -> None:
    levels = {room: number for number, rooms in enumerate(LEVELS, start=1) for room in rooms}
    mapped = rooms_in_the_map()
    assert mapped == {room: levels[room] for room in mapped}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_every_mutant_is_of_a_line_that_is_there_and_of_a_test_that_is_there(mutant: Mutant) -> None:
    assert (LIBRARY / mutant.file).read_text(encoding="utf-8").count(mutant.before) == 1
    file, _, name = mutant.test.partition("::")
    tests = (ROOT / "Testing" / "Library" / file).read_text(encoding="utf-8")
    assert f"\ndef {name}(" in tests
