"""The pictures of BENCHMARKS.md are drawn from its tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_picture_is_drawn_from_the_tables_and_shown() -> None:
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    text = (FOLDER.parent / "BENCHMARKS.md").read_text(encoding="utf-8")
    for name, drawn in draw.PICTURES.items():
        assert drawn().startswith(b"\x89PNG")
        assert (FOLDER.parent / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
