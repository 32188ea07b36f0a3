"""The adapters of this user: a folder of files, each with its card."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import read_card
from FewShotSegLib.io.places import user_folder
from FewShotSegLib.jobs.record import read_record, result_path
from FewShotSegSlicer.Signal import Signal
from FewShotSegSlicer.Workers.JobFiles import fileName, unusedPath

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"


class AdapterFolder:
    """Lists, names and removes adapters. The folder is looked at each time: other programs may change it too."""

    def __init__(self, folder: Path | None = None) -> None:
        self.changed = Signal()
        """(): an adapter was added, removed or renamed, or another folder chosen."""
        self._folder = folder
        self._cards: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}
        self._undecided: set[Path] = set()
        self._promised: set[Path] = set()

    @property
    def folder(self) -> Path:
        """Where adapters lie; unless chosen, beside the user's base models."""
        return self._folder if self._folder is not None else user_folder() / "Adapters"

    def setFolder(self, folder: str | Path | None) -> None:
        """Choose another folder; None: the usual one."""
        self._folder = Path(folder) if folder else None
        self.changed()

    def cards(self) -> list[dict[str, Any]]:
        """Return the cards (`FewShotSegLib` describes them), the newest first, each with "path", "name", "made" (ISO
        date) and "isNew": made in this session, and neither kept nor discarded. What cannot be read is logged and left
        out.
        """
        stamps = {path: path.stat().st_mtime_ns for path in self.folder.glob(f"*{SUFFIX}") if path.is_file()}
        found = [(path, self._card(path)) for path in stamps]
        found.sort(key=lambda entry: -stamps[entry[0]])
        return [self._described(path, card) for path, card in found if card is not None]

    def card(self, adapter: str | Path | Mapping[str, Any]) -> dict[str, Any]:
        """Return the card of an adapter given by path, by name, or by a card of `cards`."""
        path = self.find(adapter)
        return self._described(path, read_card(path))

    def find(self, adapter: str | Path | Mapping[str, Any]) -> Path:
        """Return the file of an adapter given by path, by its name in the folder, or by a card of `cards`."""
        given = str(adapter["path"] if isinstance(adapter, Mapping) else adapter)
        named = self.folder / f"{given}{SUFFIX}"
        if not Path(given).is_file() and named.is_file():
            return named
        if not Path(given).is_file():
            raise InputError(f"There is no adapter {given}; choose one of the list, or give the path of its file.")
        return Path(given)

    def newPath(self, name: str, taken: Iterable[Path] = ()) -> Path:
        """Return a file of the folder for an adapter that is about to be made; the same one is not given twice."""
        path = unusedPath(self.folder, fileName(name), SUFFIX, self._promised.union(taken))
        self._promised.add(path)
        return path

    def noteNew(self, path: Path) -> None:
        """Take note of an adapter that was just made."""
        self._undecided.add(path)
        self.changed()

    def keep(self, adapter: str | Path | Mapping[str, Any], name: str = "") -> Path:
        """Keep a new adapter, under a name of its own if one is given; returns its file."""
        path = self.find(adapter)
        if name:
            path = self._moved(path, name)
        self._undecided.discard(path)
        self.changed()
        return path

    def rename(self, adapter: str | Path | Mapping[str, Any], name: str) -> Path:
        """Give an adapter another name and return its file."""
        path = self._moved(self.find(adapter), name)
        self.changed()
        return path

    def reportOf(self, path: str | Path) -> Path | None:
        """Return the picture that a method has made of its training, beside the adapter; None if there is none."""
        path = Path(path)
        named = (read_record(_recordOf(path)) or {}).get("report")
        found = [_reportOf(path), *([path.parent / named] if isinstance(named, str) else [])]
        return next((file for file in found if file.is_file()), None)

    def discard(self, adapter: str | Path | Mapping[str, Any]) -> None:
        """Delete an adapter with its record and its report."""
        path = self.find(adapter)
        for file in (path, _recordOf(path), _reportOf(path)):
            _onDisk(f"delete {file}", lambda file=file: file.unlink(missing_ok=True))
        self._undecided.discard(path)
        self.changed()

    def _moved(self, path: Path, name: str) -> Path:
        target = path.with_name(f"{fileName(name)}{SUFFIX}")
        if target == path:
            return path
        if not name.strip():
            raise InputError("An adapter needs a name.")
        if target.exists():
            raise InputError(f"There is an adapter called {target.stem} already; choose another name.")
        _onDisk(f"rename {path}", lambda: path.rename(target))
        for fileOf in (_recordOf, _reportOf):
            if fileOf(path).exists():
                _onDisk(f"rename {fileOf(path)}", lambda fileOf=fileOf: fileOf(path).rename(fileOf(target)))
        if path in self._undecided:
            self._undecided.remove(path)
            self._undecided.add(target)
        return target

    def _card(self, path: Path) -> dict[str, Any] | None:
        status = path.stat()
        # Copies may bring their old time of modification along.
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        known = self._cards.get(path)
        if known is not None and known[0] == stamp:
            return known[1] or None
        try:
            card = read_card(path)
        except InputError as error:
            log.warning("%s", error)  # once: it is remembered as having no card
            card = {}
        self._cards[path] = stamp, card
        return card or None

    def _described(self, path: Path, card: Mapping[str, Any]) -> dict[str, Any]:
        made = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        return {**card, "path": str(path), "name": path.stem, "made": made, "isNew": path in self._undecided}


def _recordOf(path: Path) -> Path:
    return result_path(path.parent, path.stem)


def _reportOf(path: Path) -> Path:
    return path.with_name(f"{path.stem}.report.png")


def _onDisk(what: str, action: Any) -> None:
    try:
        action()
    except OSError as error:
        raise InputError(f"Cannot {what}: {error.strerror or error}.") from error
