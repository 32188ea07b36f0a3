"""Adaptations whose process died: asked for again, they go on from their checkpoint."""

from __future__ import annotations

from pathlib import Path

from FewShotSegLib.files import sha256_of_file
from FewShotSegLib.job import AdaptJob, to_dict
from FewShotSegLib.record import digest_of


class Checkpoints:
    """Remembers, for this session, which job was to become which file. Checkpoints lie beside that file."""

    def __init__(self) -> None:
        self._outs: dict[str, Path] = {}

    def note(self, job: AdaptJob) -> bool:
        """Take note that a job died, while its files are there; returns whether there is a checkpoint to go on from."""
        out = Path(job.out)
        if not any(_checkpointsOf(out)):
            return False
        self._outs[_digest(job)] = out
        return True

    def outOf(self, job: AdaptJob) -> Path | None:
        """Return the file to write, if the same job (whatever its paths are called) died before."""
        return self._outs.pop(_digest(job), None) if self._outs else None

    def remove(self) -> None:
        """Delete the checkpoints that nobody has gone on from."""
        for out in self._outs.values():
            for checkpoint in _checkpointsOf(out):
                checkpoint.unlink(missing_ok=True)
        self._outs.clear()


def _checkpointsOf(out: Path) -> list[Path]:
    return [path for path in out.parent.glob("*.checkpoint.pt") if path.name.startswith(f"{out.stem}.")]


def _digest(job: AdaptJob) -> str:
    """Equal for jobs that train alike: what decides is what is in the files, not where they lie."""
    values = to_dict(job)
    del values["out"], values["exemplars"], values["targets"]
    exemplars = [
        [sha256_of_file(files.image), sha256_of_file(files.labelmap), files.axis, files.slices, files.structures]
        for files in job.exemplars
    ]
    return digest_of(
        values, exemplars, [sha256_of_file(path) if Path(path).is_file() else path for path in job.targets]
    )
