"""What is kept can be read by this user only, and what is damaged is made again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from FewShotSegLib.io.cache import is_sealed, sealed


def test_a_kept_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "network.npz"
    assert not is_sealed(path)
    with sealed(path) as part:
        part.write_bytes(b"weights")
    assert is_sealed(path)
    assert path.read_bytes() == b"weights"
    if os.name != "nt":
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["bit", "short", "identity"])
def test_a_damaged_file_is_removed_and_told(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "network.npz"
    with sealed(path) as part:
        part.write_bytes(b"weights")
    if damage != "identity":
        path.write_bytes({"bit": b"weightr", "short": b"weigh"}[damage])
    with caplog.at_level(logging.WARNING):
        assert not is_sealed(path, "of other images" if damage == "identity" else "")
    assert "made again" in caplog.text
    assert not path.exists()


def test_a_file_of_an_earlier_version_is_taken_as_it_is_and_watched_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "network.npz"
    path.write_bytes(b"weights")
    assert is_sealed(path, "identity")
    path.write_bytes(b"weightr")
    assert not is_sealed(path, "identity")
