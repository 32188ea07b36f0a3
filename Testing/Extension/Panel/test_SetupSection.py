"""Settings and installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegSlicer import Dependencies
from Testing.Extension.panels import Case


def test_missing_packages_are_said_on_top_and_installed_with_a_button(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    case.load()
    case.panel.enter()
    assert not case.ui.setupNotice.isHidden()
    assert "Python packages are missing" in case.ui.positiveButton.toolTip
    case.press(case.ui.setupNoticeButton)
    assert not case.ui.setupSection.collapsed

    def install() -> bool:
        monkeypatch.setattr(Dependencies, "missing", lambda: ())
        return True

    monkeypatch.setattr(Dependencies, "install", install)
    case.press(case.ui.installButton)
    assert case.ui.setupNotice.isHidden()
    assert case.ui.positiveButton.enabled


def test_without_a_network_installing_ends_in_a_sentence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise InputError("The Python package index cannot be reached.")

    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    monkeypatch.setattr(Dependencies, "install", fail)
    case.panel.enter()
    case.press(case.ui.installButton)
    assert "cannot be reached" in case.ui.setupLabel.text


def test_another_folder_of_adapters_is_looked_into_at_once(case: Case, adapter: str, tmp_path: Path) -> None:
    assert case.ui.adapterList.count == 1
    (tmp_path / "other").mkdir()
    case.ui.adapterFolderEdit.setCurrentPath(str(tmp_path / "other"))
    assert case.ui.adapterList.count == 0
