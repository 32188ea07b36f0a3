"""A case, and the words that adapt to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.conftest import QUICK, write_discs

OPTIONS = [f"{key}={value}" for key, value in QUICK.items()]


@pytest.fixture
def a_case(tmp_path: Path) -> tuple[Path, Path]:
    return write_discs(tmp_path, "ct", 0)


def adapt_words(case: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    exemplar = f"{case[0]}={case[1]}@k:1,3"
    return ["adapt", "--exemplar", exemplar, "--base", "tiny", "--out", str(out), "--device", "cpu", *more]
