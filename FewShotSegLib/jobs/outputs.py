"""The output files of one result and its record: written together, and never overwriting files of others.

An existing file in the place of an output may be replaced if the record next to it contains its digest: then it was
written by this program and not changed since. Everything else is rejected with a message, or kept, unless `overwrite`
is set. Inputs of the job itself are never overwritten.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import check_writable, sha256_of_file
from FewShotSegLib.io.locks import take

from .record import known_digests, read_record, write_record

_LOCK = "lock"


class Outputs:
    """The outputs of one run, used as a context manager; a second concurrent run with the same record is rejected.

        with Outputs(result_path(out, "case1"), inputs=["case1.nrrd"], overwrite=False) as outputs:
            outputs.check("case1.seg.nrrd")                     # before the work
            save_labelmap(labelmap, outputs.place("case1.seg.nrrd"))
            outputs.finish(record)                              # makes all of them visible

    Until `finish` they are in a hidden folder next to the target, readable by this user only. The record is written
    first: a run that is killed between the two leaves files that the next run recognizes as its own.
    """

    def __init__(self, record: Path, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
        self.record_path = record
        self.folder = record.parent
        self._overwrite = overwrite
        self._inputs = [Path(path) for path in inputs if path is not None]
        key = hashlib.sha256(record.name.encode("utf-8", "replace")).hexdigest()[:16]
        self._staging = self.folder / f".{key}.fewshotseg"
        self._lock: IO[bytes] | None = None
        self._names: list[str] = []

    def __enter__(self) -> Outputs:
        check_writable(self.record_path)
        known = read_record(self.record_path)
        self._check_record(known)
        self._known = known_digests(known)
        self._lock = _only_ours(self._staging, self.record_path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        if isinstance(error, InputError) and str(self._staging) in str(error):
            raise InputError(str(error).replace(str(self._staging), str(self.folder))) from error

    def check(self, *names: str) -> None:
        """Raise `InputError` for the first output name that refers to a protected file."""
        for name in names:
            check_writable(self.folder / name)
            self._check(self.folder / name)

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of the names whose files exist and were changed since this program wrote them."""
        return [name for name in names if _is_there(self.folder / name) and not self._is_ours(self.folder / name)]

    def place(self, name: str) -> Path:
        """Return the temporary path for the output `name`."""
        self.check(name)
        self._names.append(name)
        return self._staging / name

    def finish(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record, with the digests of the outputs, and move the outputs into place; returns the record."""
        for name in self._names:
            self._check(self.folder / name)
        sums = {name: sha256_of_file(self._staging / name) for name in self._names}
        # Existing files stay in the record until they are replaced, should this process be killed.
        complete = {**record, "outputs": sums, "replaced": sorted(self._known - set(sums.values()))}
        write_record(complete, self.record_path)
        for name in self._names:
            try:
                os.replace(self._staging / name, self.folder / name)  # noqa: PTH105 - one name for the step
            except OSError as error:
                raise InputError(f"Cannot write {self.folder / name}: {error.strerror or error}.") from error
        return complete

    def fail(self, record: Mapping[str, Any]) -> None:
        """Write the record of a failed run; outputs of earlier runs stay in it."""
        write_record({**record, "replaced": sorted(self._known)}, self.record_path)

    def _check_record(self, known: Mapping[str, Any] | None) -> None:
        if not _is_there(self.record_path) or self._overwrite:
            return
        if known is None or not {"job", "versions"} <= set(known):
            raise InputError(_not_ours(self.record_path))

    def _check(self, target: Path) -> None:
        if not _is_there(target):
            return
        for source in self._inputs:
            if source.exists() and target.exists() and target.samefile(source):
                raise InputError(
                    f"{target} is what this job reads and would be overwritten; choose another output folder or name."
                )
        if not self._overwrite and not self._is_ours(target):
            raise InputError(_not_ours(target))

    def _is_ours(self, target: Path) -> bool:
        return target.is_file() and not target.is_symlink() and sha256_of_file(target) in self._known


def _not_ours(path: Path) -> str:
    return (
        f"{path} is there already, and was not written by this program or has been changed since, so it stays. "
        "Choose another output folder, move the file away, or have it replaced (--overwrite; in Slicer, "
        "Replace results that are there)."
    )


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _only_ours(staging: Path, record: Path) -> IO[bytes]:
    """Create the hidden folder, empty, and return its lock; leftovers of a killed run are removed."""
    try:
        staging.mkdir(mode=0o700, exist_ok=True)
        found = staging.lstat()
        own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
        if not stat.S_ISDIR(found.st_mode) or not own:
            raise InputError(
                f"{staging} belongs to another user or is a link; choose another output folder, or ask its owner to "
                "remove it."
            )
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        lock = os.fdopen(os.open(staging / _LOCK, flags, 0o600), "r+b")
        if take(lock) == "held" or not os.fstat(lock.fileno()).st_nlink:
            lock.close()
            raise InputError(f"Another run is writing {record}; wait until it has ended, or choose another output.")
        for left in staging.iterdir():
            if left.name != _LOCK:
                left.unlink()
    except OSError as error:
        raise InputError(f"Cannot write {staging}: {error.strerror or error}. Choose another place.") from error
    return lock


def unused(path: Path) -> Path:
    """Return an unused path next to `path`, with a number."""
    return next(p for n in range(2, 10_000) if not _is_there(p := path.with_name(f"{path.stem} ({n}){path.suffix}")))
