"""Adaptations that broke off, with their process or with the whole program: asked for again, they go on.

While an adaptation runs, a note lies beside the checkpoint that the library keeps: NAME.checkpoint.json beside
NAME.checkpoint.pt. It says what was asked for, and whose work it is.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from FewShotSegLib.data.digests import sha256_of_json
from FewShotSegLib.data.job import AdaptJob, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import sha256_of_file, write_text_whole
from FewShotSegLib.worker import scratch

log = logging.getLogger(__name__)

_NOTE = ".checkpoint.json"
_ENTRIES = {"digest", "structures", "date", "process_folder"}
_KEPT_S = 30 * 24 * 3600.0
_running: set[Path] = set()  # of this process, whoever asked for them


@dataclass(frozen=True)
class Interrupted:
    """An adaptation to go on with. `digest` is equal for jobs that train alike; `date` is local time, ISO."""

    out: Path
    digest: str
    structures: tuple[str, ...]
    date: str


class Checkpoints:
    """Takes note of the adaptations of this process, and finds those that were interrupted, here or in another one."""

    def begin(self, job: AdaptJob) -> None:
        """Take note that a job begins, while its files are there."""
        out = Path(job.out)
        structures = dict.fromkeys(name for files in job.exemplars for name in (files.structures or {}).values())
        values = {
            "digest": digestOf(job),
            "structures": list(structures),
            "date": datetime.now().isoformat(" ", "minutes"),
            "process_folder": str(scratch.process_folder()),
        }
        try:
            write_text_whole(_noteOf(out), json.dumps(values))
        except InputError as error:
            log.warning("%s", error)  # the job will say so too, where it matters
        _running.add(out)

    def end(self, job: AdaptJob) -> None:
        """Take note that a job has ended, and nothing is to be gone on with."""
        _forget(Path(job.out))
        _running.discard(Path(job.out))

    def fail(self, job: AdaptJob, kind: str, message: str) -> str:
        """Take note that a job has failed; returns the message, with how to go on where that is possible."""
        if kind == "cancelled" or not _checkpointsOf(Path(job.out)):
            self.end(job)
            return message
        _running.discard(Path(job.out))
        sentence, _empty, report = message.partition("\n\n")
        sentence += " Training progress is kept: adapt again with the same settings to resume."
        return "\n\n".join(filter(None, [sentence, report]))

    def interrupted(self, folder: Path) -> list[Interrupted]:
        """Return the interrupted adaptations of a folder, the newest first; removes what nobody can go on with."""
        found = []
        for note in folder.glob(f"*{_NOTE}"):
            out = note.with_name(note.name.removesuffix(_NOTE) + ".safetensors")
            values = _read(note)
            if values and _isRunning(out, Path(values["process_folder"])):
                continue
            isOld = time.time() - note.stat().st_mtime > _KEPT_S
            if isOld or not values or not _checkpointsOf(out):
                _forget(out)
            else:
                found.append(Interrupted(out, values["digest"], tuple(values["structures"]), values["date"]))
        return sorted(found, key=lambda one: one.date, reverse=True)

    def outOf(self, job: AdaptJob, folder: Path) -> Path | None:
        """Return the file to write, if the same job (whatever its paths are called) was interrupted before."""
        interrupted = self.interrupted(folder)
        if not interrupted:
            return None
        digest = digestOf(job)
        return next((one.out for one in interrupted if one.digest == digest), None)


def digestOf(job: AdaptJob) -> str:
    """Equal for jobs that train alike: what decides is what is in the files, not where they lie."""
    values = to_dict(job)
    del values["out"], values["exemplars"], values["targets"]
    exemplars = [
        [sha256_of_file(files.image), sha256_of_file(files.labelmap), files.axis, files.slices, files.structures]
        for files in job.exemplars
    ]
    targets = [sha256_of_file(path) if Path(path).is_file() else path for path in job.targets]
    return sha256_of_json(
        (
            values,
            exemplars,
            targets,
        )
    )


def _isRunning(out: Path, owner: Path) -> bool:
    return out in _running or (owner != scratch.process_folder() and scratch.is_in_use(owner))


def _noteOf(out: Path) -> Path:
    return out.with_name(out.stem + _NOTE)


def _checkpointsOf(out: Path, part: str = "") -> list[Path]:
    """The checkpoints of an adapter, by the names that the library gives them; `part` is a pattern behind these."""
    pattern = re.compile(rf"{re.escape(out.stem)}(\.(cpu|\d+GB))?\.checkpoint(\.\d+)?{part}\.pt")
    return [path for path in out.parent.glob("*.pt") if pattern.fullmatch(path.name)]


def _read(note: Path) -> dict[str, Any]:
    """Return what a note says, nothing where it cannot be understood."""
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and set(values) >= _ENTRIES else {}


def _forget(out: Path) -> None:
    try:
        for path in (*_checkpointsOf(out, part=r"(\.part)?"), _noteOf(out)):
            path.unlink(missing_ok=True)
    except OSError as error:  # in use, on Windows; the next session tries again
        log.warning("Cannot delete the checkpoint of %s: %s.", out.stem, error.strerror or error)
