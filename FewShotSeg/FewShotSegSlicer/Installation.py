"""Installing Python packages with pip in processes of its own: Slicer goes on, and imports nothing of them.

installation = Installation(onProgress=..., onDone=..., onError=...)
installation.start()
installation.poll()               # from a timer
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegLib.worker import processes, scratch

from . import Dependencies
from .Signal import guarded
from .Workers.Run import RemainingTime, durationInWords

_BYTES = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_DOWNLOADING = re.compile(r"Downloading (?:\S*/)?(\S+\.(?:whl|tar\.gz|zip)) \(([\d.]+) (bytes|kB|MB|GB)\)")
_LARGE = 1e6  # bytes; below that no one needs to know how far a download is
_LAST_LINES = 400
log = logging.getLogger(__name__)
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class InstallProgress:
    """A sentence for people, and the fraction of the current download, None while nothing large is downloaded."""

    sentence: str
    fraction: float | None


class Installation:
    """Calls back from `poll`: onProgress(InstallProgress), then onDone() or onError(sentence) once."""

    def __init__(
        self,
        *,
        onProgress: Callable[[InstallProgress], Any],
        onDone: Callable[[], Any],
        onError: Callable[[str], Any],
    ) -> None:
        self._onProgress, self._onDone, self._onError = onProgress, onDone, onError
        self._commands: list[list[str]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._told = InstallProgress("", None)
        self._rest, self._file = RemainingTime(), ""

    @property
    def isRunning(self) -> bool:
        """Whether pip is at work."""
        return self._process is not None

    def start(self) -> None:
        """Begin to install what is missing; `Dependencies.permission` has been asked for."""
        if self.isRunning:
            raise InputError(_("The installation is in progress: wait for it, or press Cancel."))
        python = shutil.which("PythonSlicer") or sys.executable
        self._commands = Dependencies.commands(python)
        self._folder = scratch.new_folder()
        self._tell(InstallProgress(_("Looking for the packages..."), None))
        self._next()

    def poll(self) -> None:
        """Look how far it is; returns at once."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._tell(self._progress())
        elif self._process.returncode == 0 and self._commands:
            self._next()
        else:
            self._end()

    def cancel(self) -> None:
        """Give it up. What has been installed until then stays."""
        if self._process is not None:
            self.close()
            guarded(self._onError, _("Cancelled. Packages installed so far are kept; press Install to resume."))

    def close(self) -> None:
        """End it without a word, as when Slicer ends."""
        process, self._process = self._process, None
        if process is None:
            return
        for by_force in (False, True):
            processes.end_tree(process, by_force=by_force)
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                continue
        self._tidyUp()

    # ------------------------------------------------------------------------------------------------------- processes

    def _next(self) -> None:
        """Start the next command, with what it writes going to a file: nobody has to wait beside a pipe."""
        assert self._folder is not None
        (self._folder / "keep.txt").write_text(Dependencies.kept(), encoding="utf-8")
        downloads = self._folder / "downloads"
        downloads.mkdir(exist_ok=True)
        before = os.environ.get("PIP_CONSTRAINT")
        changes = {
            # As a URL, for pip splits the variable at spaces.
            "PIP_CONSTRAINT": " ".join(filter(None, [before, (self._folder / "keep.txt").as_uri()])),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(downloads)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
        }
        command = self._commands.pop(0)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    env={**os.environ, **changes},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **processes.options(),
                )
        except OSError as error:
            self._tidyUp()
            raise InputError(_("Cannot start {path}: {reason}.").format(path=command[0], reason=error)) from error

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "pip.log"

    def _lines(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]

    def _end(self) -> None:
        assert self._process is not None
        code, lines = self._process.returncode, self._lines()
        log.info("pip ended with code %d:\n%s", code, "\n".join(lines))
        self._process, left = None, Dependencies.missing()
        self._tidyUp()
        if code == 0 and not left:
            guarded(self._onDone)
        else:
            guarded(self._onError, whyNot(lines, left))

    def _tidyUp(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    # -------------------------------------------------------------------------------------------------------- progress

    def _tell(self, progress: InstallProgress) -> None:
        if progress != self._told:
            self._told = progress
            guarded(self._onProgress, progress)

    def _progress(self) -> InstallProgress:
        lines = self._lines()
        installing = next((line for line in reversed(lines) if line.startswith("Installing collected packages")), None)
        if installing is not None and not any(map(_DOWNLOADING.search, lines[lines.index(installing) :])):
            count = installing.count(",") + 1
            return InstallProgress(_("Unpacking {count} packages...").format(count=count), None)
        found = [match for match in map(_DOWNLOADING.search, lines) if match is not None]
        if not found:
            return self._told
        file, number, unit = found[-1].groups()
        total, name = float(number) * _BYTES[unit], file.partition("-")[0]
        if total < _LARGE:
            return InstallProgress(_("Downloading {name}...").format(name=name), None)
        return self._ofDownload(file, name, total)

    def _ofDownload(self, file: str, name: str, total: float) -> InstallProgress:
        """How far a large file is, by its size on the disk: what pip says of it depends on pip's version."""
        assert self._folder is not None
        if file != self._file:
            self._rest, self._file = RemainingTime(), file
        part = next((self._folder / "downloads").glob(f"*/{file}"), None)
        fraction = min(part.stat().st_size / total, 1.0) if part is not None else 0.0
        self._rest.note(fraction, time.monotonic())
        sentence = _("Downloading {name}: {done:.0f} of {total:.0f} MB").format(
            name=name, done=fraction * total / 1e6, total=total / 1e6
        )
        if self._rest.seconds is not None:
            sentence += _(", about {time} left").format(time=durationInWords(self._rest.seconds))
        return InstallProgress(sentence, round(fraction, 3))


def whyNot(lines: Sequence[str], left: Sequence[str]) -> str:
    """Return in a sentence why pip failed, from what it wrote, and what can be done."""
    said = "\n".join(lines)
    sentence = next((sentence for words, sentence in _causes() if any(word in said for word in words)), None)
    if sentence is None:
        last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        sentence = _("These packages could not be installed: {names}. pip said: {last}").format(
            names=", ".join(left), last=last.removeprefix("ERROR:").strip()
        )
    return sentence


def _causes() -> list[tuple[tuple[str, ...], str]]:
    """Words of pip, and what they mean; the first that fits counts."""
    again = _("press Install again to resume with the missing packages")
    proxy = _("set PIP_PROXY=http://user:password@host:port before you start Slicer")
    return [
        (
            ("ProxyError", "407 Proxy"),
            _("The proxy does not let pip through: {proxy}, and {again}.").format(proxy=proxy, again=again),
        ),
        (
            ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
            _(
                "The package index shows a certificate that pip does not trust, as behind a company's firewall: set "
                "PIP_CERT to the file with your company's certificates before you start Slicer, and {again}."
            ).format(again=again),
        ),
        (
            ("No space left on device", "[Errno 28]"),
            _("The disk is full: make room for at least 2 GB, and {again}.").format(again=again),
        ),
        (
            ("Read-only file system", "Permission denied", "Operation not permitted", "Access is denied"),
            Dependencies.notWritable(),
        ),
        (
            # The last is said by pip before 25.1 of a file that ends too soon.
            ("IncompleteRead", "incomplete-download", "ConnectionResetError", "Read timed out", "whl is invalid"),
            _("The connection was interrupted during a download: {again}.").format(again=again),
        ),
        (
            ("NewConnectionError", "ConnectTimeout", "NameResolutionError", "Failed to establish a new connection"),
            _(
                "The Python package index cannot be reached: connect this computer to the internet, or tell pip about "
                "your mirror (PIP_INDEX_URL) or proxy (PIP_PROXY), and {again}."
            ).format(again=again),
        ),
        (
            ("ResolutionImpossible", "conflicting dependencies"),
            _(
                "What FewShotSeg needs does not go together with the packages that other modules of this Slicer rely "
                "on: install FewShotSeg in a fresh Slicer, or update this one."
            ),
        ),
    ]
