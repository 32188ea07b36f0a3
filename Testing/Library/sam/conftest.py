"""A user's folder for models that is empty, and files to put there."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user folder of this test's own, with a space and a letter outside ASCII in its path."""
    folder = tmp_path / "Müller home"
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(folder))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    return folder


def a_file(folder: Path, name: str = "mine vit_b.pth", content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path
