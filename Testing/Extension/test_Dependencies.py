"""Installing: what is asked, what pip is told, what stays as it is. No test here downloads or installs anything."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer import Dependencies

ALL = ("torch>=2.4", "monai>=1.5", "einops", "segment-anything>=1.0", "safetensors", "matplotlib")
FRESH = {"numpy": "2.4.6", "scipy": "1.17.1", "SimpleITK": "2.5.5", "packaging": "25.0"}  # as Slicer comes
LATEST = {
    "torch": "2.13.0",
    "monai": "1.6.1",
    "einops": "0.8.2",
    "segment-anything": "1.0",
    "safetensors": "0.8.0",
    "matplotlib": "3.11.2",
}


class Computer:
    """A Slicer whose packages, user, pip and network are played; records what is asked and installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed = dict(FRESH)
        self.isOnline, self.userSays, self.pipFailsAt = True, True, ""
        self.questions: list[str] = []
        self.pipCalls: list[tuple[list[str], dict[str, Any]]] = []
        self.kept: list[list[str]] = []
        self._patch = monkeypatch
        monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
        monkeypatch.setattr(importlib.metadata, "version", self._version)
        monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", self._confirm)
        monkeypatch.setattr(slicer.util, "launchConsoleProcess", self._launch)
        packaging = types.ModuleType("slicer.packaging")
        packaging.pip_ensure = self.pip  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", None)  # cannot be imported

    def withoutPackaging(self) -> None:
        """As before Slicer 5.12."""
        self._patch.setitem(sys.modules, "slicer.packaging", None)
        self._patch.setattr(slicer.util, "pip_install", self.pip)

    def withPyTorchExtension(self, installs: str | None = "2.9.1+cu128") -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        class PyTorchUtilsLogic:
            def installTorch(_self, **options: Any) -> None:
                calls.append(options)
                self._recordKept()
                if installs is not None:
                    self.installed["torch"] = installs

        extension = types.ModuleType("PyTorchUtils")
        extension.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
        self._patch.setitem(sys.modules, "PyTorchUtils", extension)
        return calls

    def pip(self, names: list[str], **options: Any) -> None:
        self.pipCalls.append((names, options))
        self._recordKept()
        for name in (name.partition(">")[0] for name in names):
            if name == self.pipFailsAt:
                raise subprocess.CalledProcessError(1, "pip install")
            self.installed[name] = LATEST[name]

    def _recordKept(self) -> None:
        url = os.environ["PIP_CONSTRAINT"]
        self.kept.append(Path(url.removeprefix("file://")).read_text(encoding="utf-8").split())

    def _version(self, name: str) -> str:
        if name not in self.installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.installed[name]

    def _confirm(self, text: str, *arguments: Any, **options: Any) -> bool:
        self.questions.append(text)
        return self.userSays

    def _launch(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        code = f"print('from the index'); raise SystemExit({0 if self.isOnline else 1})"
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Computer:
    return Computer(monkeypatch)


def test_this_environment_has_everything_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *a, **k: pytest.fail("asked"))
    assert Dependencies.missing() == ()
    assert "are installed in" in Dependencies.summary()
    Dependencies.requireInstalled()
    assert Dependencies.install()


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
    assert Dependencies.install() is False
    [question] = computer.questions
    assert all(name in question for name in ALL)
    assert "200 MB, with support for NVIDIA graphics cards 3 GB" in question
    assert str(Dependencies._folder()) in question
    assert "GB are free" in question
    assert computer.pipCalls == []


def test_without_the_pytorch_extension_the_question_offers_it(computer: Computer) -> None:
    computer.userSays = False
    Dependencies.install()
    computer.withPyTorchExtension()
    Dependencies.install()
    offered = ["press Cancel, install that extension" in question for question in computer.questions]
    assert offered == [True, False]


def test_on_slicer_5_12_pip_ensure_installs_what_is_missing_without_asking_twice(computer: Computer) -> None:
    computer.installed["matplotlib"] = "3.10"
    assert Dependencies.install()
    assert computer.pipCalls == [(list(ALL[:-1]), {"requester": "FewShotSeg", "prompt_install": False})]
    assert Dependencies.missing() == ()


def test_before_slicer_5_12_pip_install_is_called_after_our_own_question(computer: Computer) -> None:
    computer.withoutPackaging()
    assert Dependencies.install()
    assert len(computer.questions) == 1
    assert computer.pipCalls == [(list(ALL), {})]


def test_pip_is_told_to_keep_the_versions_of_numpy_and_its_like(computer: Computer) -> None:
    assert Dependencies.install()
    assert computer.kept == [["numpy==2.4.6", "scipy==1.17.1", "SimpleITK==2.5.5"]]
    assert "PIP_CONSTRAINT" not in os.environ


def test_constraints_of_the_user_stay_in_force(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "own.txt")
    monkeypatch.setattr(computer, "_recordKept", lambda: computer.kept.append(os.environ["PIP_CONSTRAINT"].split()))
    computer.pipFailsAt = "monai"
    with pytest.raises(InputError):
        Dependencies.install()
    [[first, second]] = computer.kept
    assert first == "own.txt"
    assert second.startswith("file:///")
    assert os.environ["PIP_CONSTRAINT"] == "own.txt"


def test_torch_comes_from_the_pytorch_extension_and_is_then_kept(computer: Computer) -> None:
    calls = computer.withPyTorchExtension()
    assert Dependencies.install()
    assert calls == [{"askConfirmation": False, "torchVersionRequirement": ">=2.4"}]
    assert [names for names, _ in computer.pipCalls] == [list(ALL[1:])]
    assert computer.kept[-1][-1] == "torch==2.9.1+cu128"


def test_a_torch_that_is_there_is_left_to_whoever_installed_it(computer: Computer) -> None:
    calls = computer.withPyTorchExtension()
    computer.installed["torch"] = "2.5.1+cu121"
    assert Dependencies.install()
    assert calls == []
    assert computer.installed["torch"] == "2.5.1+cu121"
    assert computer.kept[0][-1] == "torch==2.5.1+cu121"


def test_a_torch_that_is_too_old_is_not_replaced_behind_the_users_back(computer: Computer) -> None:
    computer.installed["torch"] = "1.13.1"
    with pytest.raises(InputError, match=r"torch 1\.13\.1 is installed, and FewShotSeg needs torch>=2\.4: uninstall"):
        Dependencies.install()
    assert computer.questions == []
    assert computer.pipCalls == []


def test_pip_does_not_take_over_when_the_pytorch_extension_failed(computer: Computer) -> None:
    computer.withPyTorchExtension(installs=None)
    with pytest.raises(InputError, match="The extension PyTorch did not install torch"):
        Dependencies.install()
    assert computer.pipCalls == []


def test_offline_is_a_sentence_and_nothing_is_begun(computer: Computer) -> None:
    computer.isOnline = False
    with pytest.raises(InputError, match="The Python package index cannot be reached: connect") as error:
        Dependencies.install()
    assert "\n" not in str(error.value)
    assert computer.pipCalls == []


def test_pip_itself_tells_whether_there_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no PythonSlicer
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(InputError, match="cannot be reached"):
        Dependencies._requireIndex()


def test_after_a_failure_the_next_press_goes_on_with_the_rest(computer: Computer) -> None:
    computer.pipFailsAt = "segment-anything"
    with pytest.raises(InputError, match=r"could not be installed: segment-anything>=1.0, safetensors, matplotlib\. "):
        Dependencies.install()
    computer.pipFailsAt = ""
    assert Dependencies.install()
    assert [names for names, _ in computer.pipCalls] == [list(ALL), list(ALL[3:])]


def test_a_full_disk_is_told_before_anything_is_downloaded(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1.2e9))
    with pytest.raises(InputError, match=r"^Only 1\.2 GB are free in .*, and 2\.0 GB are needed: make room"):
        Dependencies.install()
    computer.installed["torch"] = "2.9"
    assert Dependencies.install()


def test_a_folder_that_may_not_be_written_to_is_named(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(InputError, match=r"You may not write to .*site-packages"):
        Dependencies.install()
    assert computer.pipCalls == []


# -------------------------------------------------------------------------------------------------- with real pip


def writeMetadata(folder: Path, name: str, version: str, *requires: str) -> None:
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def writeWheel(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    writeMetadata(info, name, version, *requires)
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").touch()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file in info.iterdir():
            archive.write(file, f"{info.name}/{file.name}")


@pytest.fixture
def pipWouldInstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str] | None]:
    """What real pip would install for a name from a small shelf, with "keepme" 1.0 there already; None: it refuses."""
    shelf, site = tmp_path / "shelf", tmp_path / "site"
    writeWheel(shelf, "keepme", "1.0")
    writeWheel(shelf, "keepme", "2.0")
    writeWheel(shelf, "content", "1.0", "keepme>=1")
    writeWheel(shelf, "greedy", "1.0", "keepme>=2")
    writeMetadata(site / "keepme-1.0.dist-info", "keepme", "1.0")
    monkeypatch.syspath_prepend(str(site))
    environment = {"PYTHONPATH": str(site), "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def dryRun(name: str) -> set[str] | None:
        python = shutil.which("PythonSlicer") or sys.executable
        command = [python, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(shelf), name]
        result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        last = (result.stdout.splitlines() or [""])[-1]
        return set(last.removeprefix("Would install ").split()) if result.returncode == 0 else None

    return dryRun


def test_real_pip_keeps_a_version_that_is_there_or_refuses(
    pipWouldInstall: Callable[[str], set[str] | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dependencies, "_KEPT", ("keepme",))
    (tmp_path / "temporary files").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary files"))  # a user name with a space in it
    assert pipWouldInstall("greedy") == {"greedy-1.0", "keepme-2.0"}
    with Dependencies._keepingVersions():
        assert pipWouldInstall("greedy") is None
        assert pipWouldInstall("content") == {"content-1.0"}
