"""The map of the rooms in CONTRIBUTING.md is that of the tree, and of the test that holds the rule."""

from __future__ import annotations

import re

from Testing.Library.test_architecture import LEVELS, LIBRARY, ROOT


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
