"""What a job needs from the scene, as files in a folder of its own: the worker knows paths only."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.exemplar import Slices
from FewShotSegLib.data.job import ExemplarFiles
from FewShotSegLib.data.volume import AXIS_LETTERS, Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.io.images import is_sheared
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.worker import scratch

from .Run import Run


class JobFiles:
    """A folder that only this user can read. `remove` takes it away with all that is in it."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is one that exists; default: a new one."""
        self.folder = scratch.new_folder() if folder is None else folder
        self._volumes: dict[str, Path] = {}

    @classmethod
    @contextlib.contextmanager
    def until(cls, run: Run) -> Iterator[JobFiles]:
        """Files that are there until the run has ended, or until the block fails."""
        files = cls()
        run.atEnd(files.remove)
        try:
            yield files
        except BaseException:
            files.remove()
            raise

    def volume(self, key: str, volume: Volume, name: str) -> Path:
        """Return the file of a volume, named after `name`; one that was written under the same `key` is used again.

        `InputError` for a sheared one: no file format has room for that.
        """
        if key not in self._volumes:
            if is_sheared(volume.affine):
                raise InputError(
                    f'"{name}" is sheared, by the tilt of a CT gantry or by its transform: its axes are not at right '
                    "angles. It can be clicked on, but not learned from or segmented whole. Straighten it in the "
                    "module Crop Volume (with interpolation), and use the volume made there."
                )
            path = self.unused(fileName(name), ".nrrd")
            save_volume(volume, path, compress=False)
            self._volumes[key] = path
        return self._volumes[key]

    def exemplar(
        self, image: Path, labelmap: Labelmap, axis: int, slices: Slices, structures: Mapping[int, str]
    ) -> ExemplarFiles:
        """Write the labels of an exemplar beside its image; `structures` {value: name} are those to learn."""
        path = self.unused(f"{image.stem} labels", ".seg.nrrd")
        save_labelmap(_withoutEmptyEnds(labelmap, axis), path)
        letter = AXIS_LETTERS[axis]
        return ExemplarFiles(str(image), str(path), letter, slices, dict(structures))  # type: ignore[arg-type]

    def prompts(self, entries: Iterable[Mapping[str, Any]]) -> Path:
        """Write entries of a prompt file; see FewShotSegLib.data.prompt."""
        path = self.unused("prompts", ".json")
        write_text_whole(path, json.dumps({"prompts": list(entries)}))
        return path

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def unused(self, stem: str, suffix: str) -> Path:
        """Return a path in the folder that does not exist."""
        return unusedPath(self.folder, stem, suffix)


def fileName(name: str) -> str:
    """Return a name that every file system takes, as close to `name` as possible.

    >>> fileName("CT: liver/spleen?"), fileName("..")
    ('CT_ liver_spleen_', 'unnamed')
    """
    return re.sub(r"[^\w .,+-]", "_", name).strip(" .")[:100] or "unnamed"


def unusedPath(folder: Path, stem: str, suffix: str, taken: Container[Path] = ()) -> Path:
    """Return a path in the folder that neither exists nor is `taken`: the stem alone, or with 2, 3, ... behind it."""
    number, path = 1, folder / f"{stem}{suffix}"
    while path.exists() or path in taken:
        number += 1
        path = folder / f"{stem} {number}{suffix}"
    return path


def numbered(names: Iterable[str]) -> dict[int, str]:
    """Return {1: first name, 2: second, ...}, every name once: the labels that all exemplars of a job share.

    >>> numbered(["liver", "spleen", "liver"])
    {1: 'liver', 2: 'spleen'}
    """
    return dict(enumerate(dict.fromkeys(names), start=1))


def _withoutEmptyEnds(labelmap: Labelmap, axis: int) -> Labelmap:
    """Return the slices from the first to the last labelled one: a segmentation file may cover a part of the image."""
    array = labelmap.volume.array
    used = np.flatnonzero(array.any(axis=tuple({0, 1, 2} - {axis})))
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, 0)
    at: list[slice] = [slice(None)] * 3
    at[axis] = slice(first, last + 1)
    start_ijk = np.zeros(3)
    start_ijk[2 - axis] = first
    affine = labelmap.volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start_ijk
    return Labelmap(Volume(np.ascontiguousarray(array[tuple(at)]), affine), labelmap.structures)


def labelledSlices(array: np.ndarray[Any, Any], axis: int) -> Sequence[int]:
    """Return the indices along `axis` with a label."""
    return [int(index) for index in np.flatnonzero(array.any(axis=tuple({0, 1, 2} - {axis})))]
