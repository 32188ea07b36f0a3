"""Files for a job: in a folder of their own, under names that every file system takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.volume import AXES, Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegSlicer.Workers.JobFiles import JobFiles, fileName, labelledSlices, unusedPath
from Testing.conftest import discs


class FakeRun:
    """Ends when a test says so."""

    def __init__(self) -> None:
        self.last: list[Callable[[], None]] = []

    def atEnd(self, cleanUp: Callable[[], None]) -> None:
        self.last.append(cleanUp)

    def end(self) -> None:
        for cleanUp in self.last:
            cleanUp()


def test_the_folder_is_there_until_the_run_has_ended() -> None:
    run = FakeRun()
    with JobFiles.until(run) as files:  # type: ignore[arg-type]
        (files.folder / "image.nrrd").touch()
    assert files.folder.is_dir()
    if os.name != "nt":
        assert files.folder.stat().st_mode & 0o077 == 0  # for this user alone
    run.end()
    assert not files.folder.exists()


def test_what_fails_before_the_run_begins_leaves_no_folder() -> None:
    made: list[JobFiles] = []

    def fail() -> None:
        with JobFiles.until(FakeRun()) as files:  # type: ignore[arg-type]
            made.append(files)
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        fail()
    assert not made[0].folder.exists()


def test_a_volume_is_written_once_for_a_key_and_two_of_one_name_get_two_files(
    tmp_path: Path, an_rng: np.random.Generator
) -> None:
    files, (volume, _labels) = JobFiles(tmp_path), discs(an_rng)
    other = volume.like(volume.array + 1)
    paths = [files.volume("A", volume, "CT: 1"), files.volume("B", other, "CT: 1"), files.volume("A", other, "CT: 1")]
    assert [path.name for path in paths] == ["CT_ 1.nrrd", "CT_ 1 2.nrrd", "CT_ 1.nrrd"]
    np.testing.assert_array_equal(load_volume(paths[0]).array, volume.array)
    np.testing.assert_array_equal(load_volume(paths[1]).array, volume.array + 1)


def test_a_sheared_volume_is_refused(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.2
    with pytest.raises(InputError, match='"tilted" is sheared, by the tilt of a CT gantry'):
        JobFiles(tmp_path).volume("A", Volume(np.zeros((3, 4, 5), np.int16), sheared), "tilted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_are_written_from_the_first_slice_to_the_last_and_lie_where_they_were(
    tmp_path: Path, an_rng: np.random.Generator, axis: int
) -> None:
    files, (volume, labels) = JobFiles(tmp_path), discs(an_rng, (20, 24, 28))
    known = np.zeros_like(labels)
    at = np.moveaxis(known, axis, 0)
    at[[6, 9]] = np.moveaxis(labels, axis, 0)[[6, 9]]
    assert labelledSlices(known, axis) == [6, 9]
    written = files.exemplar(
        files.volume("A", volume, "CT"),
        Labelmap(volume.like(known), {1: "disc", 2: "square"}),
        axis,
        (6, 9),
        {1: "disc"},
    )
    stored = load_labelmap(written.labelmap).volume
    assert stored.shape[axis] == 4
    loaded: Exemplar = load_exemplar(
        written.image,
        written.labelmap,
        axis=AXES[written.axis or ""],
        slices=written.slices,
        structures=written.structures,
    )
    for index in (6, 9):
        np.testing.assert_array_equal(loaded.labels_on(index) == 1, np.moveaxis(labels, axis, 0)[index] == 1)
    assert dict(loaded.structures) == {1: "disc"}


def test_prompts_become_a_prompt_file_of_the_library(tmp_path: Path) -> None:
    entry = {"axis": "k", "points_ras": [[1.0, 2.0, 3.0]], "point_labels": [1], "structure": "liver"}
    path = JobFiles(tmp_path).prompts([entry])
    (prompt,) = load_prompts(path, Volume(np.zeros((5, 9, 9)), np.eye(4)))
    assert (prompt.structure, prompt.index) == ("liver", 3)


def test_a_path_is_given_once_and_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "liver.txt").touch()
    taken = [tmp_path / "liver 2.txt"]
    assert unusedPath(tmp_path, "liver", ".txt", taken) == tmp_path / "liver 3.txt"
    assert JobFiles(tmp_path).unused("spleen", ".txt") == tmp_path / "spleen.txt"


@pytest.mark.parametrize("name", ["a/b", "..", "", "CT: 1*?", "x" * 300, "Leber größer", "tab\tnew\nline", "con."])
def test_a_name_becomes_one_that_can_be_written(tmp_path: Path, name: str) -> None:
    made = fileName(name)
    (tmp_path / made).touch()
    assert [path.name for path in tmp_path.iterdir()] == [made]
    assert not set(made) & set('/\\:*?"<>|\n\t')
