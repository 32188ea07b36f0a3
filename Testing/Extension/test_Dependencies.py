"""Installing: what is asked, what pip is told, what stays as it is. Nothing is installed here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer import Dependencies
from Testing.Extension.shelf import writeMetadata

ALL = ("torch>=2.4", "monai>=1.5", "einops", "segment-anything>=1.0", "safetensors", "matplotlib", "pydicom>=2.4")
FRESH = {"numpy": "2.4.6", "scipy": "1.17.1", "SimpleITK": "2.5.5", "packaging": "25.0"}  # as Slicer comes


class Computer:
    """A Slicer whose packages and user are played; records what is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed = dict(FRESH)
        self.userSays = True
        self.questions: list[str] = []
        self._patch = monkeypatch
        monkeypatch.setattr(importlib.metadata, "version", self._version)
        monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", self._confirm)

    def withPyTorchExtension(self) -> None:
        self._patch.setattr(slicer.modules, "pytorchutils", object(), raising=False)

    def asIntelMac(self) -> None:
        self._patch.setattr(sys, "platform", "darwin")
        self._patch.setattr(platform, "machine", lambda: "x86_64")

    def _version(self, name: str) -> str:
        if name not in self.installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.installed[name]

    def _confirm(self, text: str, *arguments: Any, **options: Any) -> bool:
        self.questions.append(text)
        return self.userSays


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Computer:
    return Computer(monkeypatch)


def test_this_environment_has_everything() -> None:
    assert Dependencies.missing() == ()
    assert "are installed in" in Dependencies.summary()
    Dependencies.requireInstalled()


def test_what_is_missing_is_what_the_metadata_says_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\nimagined-package>=1.2\nnumpy>=1.0\n", encoding="utf-8")
    monkeypatch.setattr(Dependencies, "REQUIREMENTS", requirements)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Dependencies.missing() == ("imagined-package>=1.2",)
    for found, missing in (("1.1", ("imagined-package>=1.2",)), ("1.2+cpu", ()), ("2.0rc1", ())):
        shutil.rmtree(tmp_path / "imagined_package.dist-info", ignore_errors=True)
        writeMetadata(tmp_path / "imagined_package.dist-info", "imagined-package", found)
        assert Dependencies.missing() == missing
    assert "imagined_package" not in sys.modules


def test_the_use_of_missing_packages_is_refused_in_a_sentence(computer: Computer) -> None:
    with pytest.raises(InputError, match=r"^Python packages are missing \(torch>=2.4, monai.*press Install"):
        Dependencies.requireInstalled()


def test_the_question_says_what_how_large_and_where(computer: Computer) -> None:
    computer.userSays = False
    assert Dependencies.missing() == ALL
    assert Dependencies.permission() is False
    [question] = computer.questions
    assert all(name in question for name in ALL)
    assert "200 MB, with support for NVIDIA graphics cards 3 GB" in question
    assert str(Dependencies.folder()) in question
    assert "GB are free" in question
    computer.userSays = True
    assert Dependencies.permission()


def test_without_the_pytorch_extension_the_question_offers_it(computer: Computer) -> None:
    Dependencies.permission()
    computer.withPyTorchExtension()
    Dependencies.permission()
    offered = ["press Cancel, install that extension" in question for question in computer.questions]
    assert offered == [True, False]


def test_pip_installs_what_is_missing_in_one_go(computer: Computer) -> None:
    computer.installed["pydicom"] = "3.0"
    ((python, *command),) = Dependencies.commands("PythonSlicer")
    assert (python, command[:3]) == ("PythonSlicer", ["-m", "pip", "install"])
    assert command[-len(ALL) + 1 :] == list(ALL[:-1])


def test_the_versions_of_numpy_and_its_like_are_kept(computer: Computer) -> None:
    assert Dependencies.kept().split() == ["numpy==2.4.6", "scipy==1.17.1", "SimpleITK==2.5.5"]
    computer.installed["torch"] = "2.9.1+cu128"
    assert Dependencies.kept().split()[-1] == "torch==2.9.1+cu128"


def test_with_the_pytorch_extension_torch_is_chosen_as_that_chooses_it_and_never_imported(computer: Computer) -> None:
    computer.withPyTorchExtension()
    first, torch, others = (command[1:] for command in Dependencies.commands("PythonSlicer"))
    assert (first[1], first[-1]) == ("pip", "light-the-torch>=0.5")
    assert (torch[1], torch[2], torch[-1]) == ("light_the_torch", "install", ALL[0])
    assert others[-len(ALL) + 1 :] == list(ALL[1:])


def test_a_torch_that_is_there_is_left_to_whoever_installed_it(computer: Computer) -> None:
    computer.withPyTorchExtension()
    computer.installed["torch"] = "2.5.1+cu121"
    (command,) = Dependencies.commands("PythonSlicer")
    assert command[-len(ALL) + 1 :] == list(ALL[1:])


def test_a_torch_that_is_too_old_is_not_replaced_behind_the_users_back(computer: Computer) -> None:
    computer.installed["torch"] = "1.13.1"
    with pytest.raises(InputError, match=r"torch 1\.13\.1 is installed, and FewShotSeg needs torch>=2\.4: uninstall"):
        Dependencies.permission()
    assert computer.questions == []


def test_a_slicer_for_intel_macs_says_what_does_not_go_there_and_what_does(computer: Computer) -> None:
    assert Dependencies.obstacle() == ""
    computer.asIntelMac()
    for sentence in (Dependencies.obstacle(), Dependencies.summary()):
        assert sentence.startswith("This Slicer is made for Macs with Intel processors, and torch>=2.4 is not")
        assert "on the command line (fewshotseg)" in sentence
    with pytest.raises(InputError, match="made for Macs with Intel"):
        Dependencies.permission()
    assert computer.questions == []
    computer.installed["torch"] = "2.4.1"  # somebody has built it
    assert Dependencies.obstacle() == ""


def test_a_full_disk_is_told_before_anything_is_downloaded(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1.2e9))
    with pytest.raises(InputError, match=r"^Only 1\.2 GB are free in .*, and 2\.0 GB are needed: make room"):
        Dependencies.permission()
    computer.installed["torch"] = "2.9"
    assert Dependencies.permission()


def test_a_folder_that_may_not_be_written_to_is_named(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(InputError, match=r"You may not write to .*site-packages"):
        Dependencies.permission()
