"""Where files of the user lie, on every system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from FewShotSegLib.io import places


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("win32", "LOCALAPPDATA", "FewShotSeg"),
        ("linux", "XDG_DATA_HOME", "fewshotseg"),
        ("darwin", None, "FewShotSeg"),
    ],
)
def test_the_user_folder_follows_the_system(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHOTSEG_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
        assert places.user_folder() == tmp_path / expected
        monkeypatch.delenv(variable)
    assert places.user_folder().name == expected
    assert Path.home() in places.user_folder().parents


def test_what_can_be_made_again_lies_below_the_user_folder_unless_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHOTSEG_CACHE", raising=False)
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(tmp_path / "Müller"))
    assert places.cache_folder() == tmp_path / "Müller" / "Cache"
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "scratch"))
    assert places.cache_folder() == tmp_path / "scratch"
    assert not list(tmp_path.iterdir())  # asking makes nothing


def test_a_tilde_means_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSHOTSEG_HOME", "~/models")
    monkeypatch.setenv("FEWSHOTSEG_CACHE", "~/scratch")
    assert places.user_folder() == Path.home() / "models"
    assert places.cache_folder() == Path.home() / "scratch"
