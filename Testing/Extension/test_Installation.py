"""Real pip in processes of its own, with an index on this computer; nothing of this environment is changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Installation import Installation, InstallProgress, whyNot
from Testing.Extension.shelf import Shelf, served, writeMetadata, writeWheel

LARGE = 3_000_000


class Case:
    """An installation of "large" and "small" into a folder of the test, and what it told."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.progress: list[InstallProgress] = []
        self.ending: list[str] = []
        self.installation = Installation(
            onProgress=self.progress.append, onDone=lambda: self.ending.append(""), onError=self.ending.append
        )

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.progress
            self.installation.poll()
            time.sleep(0.01)

    def run(self) -> str:
        """Install to the end; returns the sentence of the failure, "" without one."""
        self.installation.start()
        self.until(lambda: self.ending)
        return self.ending.pop()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    (tmp_path / "shelf").mkdir()
    writeWheel(tmp_path / "shelf", "large", "1.0", padding=LARGE)
    writeWheel(tmp_path / "shelf", "small", "1.0", "keepme>=1")
    writeWheel(tmp_path / "shelf", "greedy", "1.0", "keepme>=2")
    for version in ("1.0", "2.0"):
        writeWheel(tmp_path / "shelf", "keepme", version)
    site = tmp_path / "site packages"
    writeMetadata(site / "keepme-1.0.dist-info", "keepme", "1.0")
    (site / "keepme-1.0.dist-info" / "RECORD").touch()
    monkeypatch.setattr(Dependencies, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(Dependencies, "_KEPT", ("keepme",))
    monkeypatch.setattr(Dependencies, "_PIP_OPTIONS", (*Dependencies._PIP_OPTIONS[:-4], "--retries", "0"))
    (tmp_path / "requirements.txt").write_text("large\nsmall\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_TARGET": str(site), "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with served(tmp_path / "shelf") as shelf:
        monkeypatch.setenv("PIP_INDEX_URL", shelf.address)
        made = Case(shelf)
        yield made
        made.installation.close()


def test_pip_installs_in_a_process_of_its_own_while_slicer_goes_on(case: Case, tmp_path: Path) -> None:
    case.shelf.stopsAfter = LARGE // 3
    case.installation.start()
    assert case.installation.isRunning
    case.until(lambda: any(one.fraction is not None and one.fraction > 0.3 for one in case.progress))
    sentence = case.progress[-1].sentence
    assert sentence.startswith("Downloading large: 1 of 3 MB")
    with pytest.raises(InputError, match="in progress"):
        case.installation.start()
    case.installation.cancel()
    assert case.ending == ["Cancelled. Packages installed so far are kept; press Install to resume."]
    assert not case.installation.isRunning
    case.ending.clear()
    case.shelf.stopsAfter = None
    assert case.run() == ""
    assert Dependencies.missing() == ()
    assert not {"large", "small"} & set(sys.modules)
    assert (tmp_path / "site packages" / "large.dat").stat().st_size == LARGE


def test_cancelling_ends_pip_with_all_its_children(case: Case) -> None:
    case.shelf.stopsAfter = 10
    case.installation.start()
    case.until(lambda: any("large" in one.sentence for one in case.progress))
    process, folder = case.installation._process, case.installation._folder
    assert process is not None
    assert folder is not None
    case.installation.cancel()
    assert process.poll() is not None
    assert not folder.exists()


def test_a_version_that_others_rely_on_is_kept_or_pip_refuses(case: Case, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("greedy\n", encoding="utf-8")
    assert "does not go together with the packages that other modules" in case.run()
    assert Dependencies._version("keepme") == "1.0"


def test_a_connection_that_breaks_off_is_a_sentence_and_the_next_press_goes_on(case: Case) -> None:
    case.shelf.stopsAfter, case.shelf.hangsUp = LARGE // 2, True
    assert case.run() == (
        "The connection was interrupted during a download: press Install again to resume with the missing packages."
    )
    case.shelf.stopsAfter = None
    assert case.run() == ""


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple", "The Python package index cannot be reached: connect"),
        ("PIP_PROXY", "http://127.0.0.1:9", "The proxy does not let pip through: set PIP_PROXY="),
        ("PIP_TARGET", "/sys/packages", "You may not write to "),
    ],
)
def test_what_is_in_the_way_is_told_in_a_sentence(
    case: Case, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    # pip says why it could not connect only when it tries again.
    monkeypatch.setattr(Dependencies, "_PIP_OPTIONS", (*Dependencies._PIP_OPTIONS[:-1], "1"))
    told = case.run()
    assert told.startswith(sentence)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "ERROR: Could not install packages: [Errno 13] Permission denied: '/opt'",
            "You may not write",
        ),
        ("OSError: [Errno 30] Read-only file system: '/opt'", "You may not write to"),
        ("ERROR: [WinError 5] Access is denied: 'C:\\\\Program Files'", "You may not write to"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "The package index shows a"),
        (
            "ERROR: No matching distribution found for torch>=2.4",
            "These packages could not be installed: torch>=2.4. pip",
        ),
    ],
)
def test_words_of_pip_become_advice(line: str, sentence: str) -> None:
    assert whyNot(["Collecting torch", line], ["torch>=2.4"]).startswith(sentence)


def test_constraints_of_the_user_stay_in_force(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("large!=1.0\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "own.txt"))
    assert case.run() != ""
    assert os.environ["PIP_CONSTRAINT"] == str(tmp_path / "own.txt")


def test_no_thread_is_needed_and_polling_without_an_installation_does_nothing(case: Case) -> None:
    before = threading.active_count()
    case.installation.poll()
    case.installation.cancel()
    case.installation.start()
    assert threading.active_count() == before
    assert isinstance(case.installation._process, subprocess.Popen)
    assert case.ending == []
