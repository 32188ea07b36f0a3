"""JSON files: read, or refused with the name of the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from FewShotSegLib.data.json_text import MOST_BYTES
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.json_files import read_json, read_table


def test_a_file_is_read_also_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"a": "ä"}', encoding="utf-8")
    assert read_table(tmp_path / "a.json", "a.json") == {"a": "ä"}
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8")
    assert read_json(tmp_path / "a.json", "a.json") == [1]
    with pytest.raises(InputError, match=r"The job a\.json must hold a table"):
        read_table(tmp_path / "a.json", "the job a.json")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * (MOST_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.json")
    for name, words in (
        ("missing.json", "No such file"),
        ("pipe.json", "it is no file"),
        (".", "it is no file"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
        ("large.json", "too large"),
    ):
        with pytest.raises(InputError, match=words):
            read_json(tmp_path / name, "the job")
