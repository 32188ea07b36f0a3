"""Settings and installation."""

from __future__ import annotations

from pathlib import Path

import pytest
import qt
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Installation import Installation, InstallProgress
from Testing.conftest import save_tiny_compact
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
    begun: list[bool] = []
    monkeypatch.setattr(Dependencies, "permission", lambda: True)
    monkeypatch.setattr(Installation, "start", lambda self: begun.append(True))
    case.press(case.ui.installButton)
    assert begun == [True]
    monkeypatch.setattr(Dependencies, "missing", lambda: ())
    case.panel.installation._onInstalled()
    assert case.ui.setupNotice.isHidden()
    assert case.ui.positiveButton.enabled


def test_an_installation_shows_how_far_it_is_and_why_it_failed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    monkeypatch.setattr(Dependencies, "permission", lambda: True)
    monkeypatch.setattr(Installation, "start", lambda self: None)
    running = [True]
    monkeypatch.setattr(Installation, "isRunning", property(lambda self: running[0]))
    case.panel.enter()
    case.panel.installation._onProgress(InstallProgress("Downloading torch: 90 of 900 MB", 0.1))
    case.panel.installation.update()
    assert case.ui.setupLabel.text == "Downloading torch: 90 of 900 MB"
    assert case.ui.installProgressBar.value == 100
    assert "it is in progress" in case.ui.installButton.toolTip
    case.panel.enter()
    assert "90 of 900 MB" in case.ui.setupLabel.text, "coming back takes nothing away"
    running[0] = False
    case.panel.installation._onFailed("The Python package index cannot be reached.")
    assert "cannot be reached" in case.ui.setupLabel.text
    assert case.ui.installButton.enabled


def test_what_cannot_be_installed_at_all_is_not_offered(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    monkeypatch.setattr(Dependencies, "obstacle", lambda: "This Slicer is made for Macs with Intel processors")
    case.panel.enter()
    case.panel.update()
    assert not case.ui.installButton.enabled
    assert "Macs with Intel" in case.ui.installButton.toolTip


def test_a_refusal_is_told_where_the_button_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise InputError("You may not write to /opt.")

    monkeypatch.setattr(Dependencies, "missing", lambda: ("torch>=2.4",))
    monkeypatch.setattr(Dependencies, "permission", refuse)
    case.panel.enter()
    case.panel.update()
    case.press(case.ui.installButton)
    assert "You may not write to /opt." in case.ui.setupLabel.text


def test_another_folder_of_adapters_is_looked_into_at_once(case: Case, adapter: str, tmp_path: Path) -> None:
    assert case.ui.adapterList.count == 1
    (tmp_path / "other").mkdir()
    case.ui.adapterFolderEdit.setCurrentPath(str(tmp_path / "other"))
    assert case.ui.adapterList.count == 0


def test_a_base_model_from_a_file_is_offered_everywhere(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(slicer.util, "showStatusMessage", lambda sentence, _ms: said.append(sentence))
    file = tmp_path / "mine.safetensors"
    save_tiny_compact(file)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(file))
    case.press(case.ui.addModelButton)
    assert said == ["mine is now available as a base model."]
    assert case.panel.segment.model.choose((None, "mine"))
    assert case.panel.adapt.startModel.choose((None, "mine"))


def test_a_file_that_is_no_model_is_refused_and_no_choice_adds_none(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(case.selection.bases)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: "")
    case.press(case.ui.addModelButton)
    assert "⚠" not in case.ui.setupLabel.text
    (tmp_path / "notes.txt").write_text("no model", encoding="utf-8")
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(tmp_path / "notes.txt"))
    case.press(case.ui.addModelButton)
    assert "⚠" in case.ui.setupLabel.text
    assert case.selection.bases == before


def test_the_device_is_handed_to_the_jobs(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.panel.installation.device.choose("cpu")
    case.press(case.ui.adaptButton)
    assert case.runs["adapt"].arguments["device"] == "cpu"
