"""Exemplars as a zip: nothing is lost, the command line understands it, and damage is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.jobs import load_job
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.cases import addCase


def note(exemplarId: str, text: str) -> None:
    """Write a note into the card, as version 0.1.0 could."""
    node = slicer.mrmlScene.GetNodeByID(exemplarId)
    node.SetParameter("card", json.dumps({**json.loads(node.GetParameter("card")), "note": text}))


@pytest.fixture
def bundle(store: ExemplarStore, tmp_path: Path) -> Path:
    """Two volumes; of the first two slices, one empty slice and a note, of the second one slice of one structure."""
    volumeNode, segmentationNode, *_ = addCase(0, name="first: CT")
    note(store.addAnnotatedSlices(volumeNode, segmentationNode).id, "checked")
    store.markEmpty(volumeNode, 0, 5)
    volumeNode, segmentationNode, *_ = addCase(1, name="second")
    disc = Segmentations.segmentsByName(segmentationNode)["disc"]
    store.rename(store.addSlice(volumeNode, segmentationNode, 0, 1, [disc]).id, "of a colleague")
    path = tmp_path / "exemplars.zip"
    store.exportBundle(path)
    return path


def described(store: ExemplarStore) -> list[tuple[Any, ...]]:
    return [(e.name, e.volumeName, e.date, e.slices, e.emptySlices, e.structures, e.note) for e in store.list()]


def test_a_bundle_brings_back_volumes_labels_and_cards(store: ExemplarStore, bundle: Path, tmp_path: Path) -> None:
    before = described(store)
    arrays = {e.name: store.thumbnail(e.id) for e in store.list()}
    store.files(_made(tmp_path / "before"))
    slicer.mrmlScene.Clear(0)
    added = store.importBundle(bundle)
    assert described(store) == before
    assert [e.id for e in added] == [e.id for e in store.list()]
    assert store.preflight() == ["square is annotated in 1 of 2 exemplars only."]
    store.files(_made(tmp_path / "after"))
    for name in ("first_ CT", "second"):
        old, new = (load_volume(tmp_path / when / f"{name}.nrrd") for when in ("before", "after"))
        assert np.array_equal(new.array, old.array)
        assert new.array.dtype == old.array.dtype
        assert np.allclose(new.affine, old.affine)
        old, new = (load_labelmap(tmp_path / when / f"{name} labels.seg.nrrd") for when in ("before", "after"))
        assert np.array_equal(new.volume.array, old.volume.array)
        assert new.structures == old.structures
    for exemplar in store.list():
        assert np.array_equal(store.thumbnail(exemplar.id), arrays[exemplar.name])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_volume_that_is_in_the_scene_already_is_used(store: ExemplarStore, bundle: Path) -> None:
    nodes = len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
    before = described(store)
    store.importBundle(bundle)
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == nodes
    assert described(store) == before  # the same slices of the same volumes take the place of what was there


def test_a_bundle_is_a_job_for_the_command_line(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "unpacked")
    job = load_job(tmp_path / "unpacked" / "job.json")
    assert isinstance(job, AdaptJob)
    assert [Path(files.image).name for files in job.exemplars] == ["first_ CT.nrrd", "second.nrrd"]
    assert all(Path(files.image).is_file() and Path(files.labelmap).is_file() for files in job.exemplars)


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_a_file_that_is_no_bundle_is_refused(store: ExemplarStore, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "exemplars.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no bundle of exemplars"):
        store.importBundle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "photo")
    with pytest.raises(InputError, match="is no bundle of exemplars"):
        store.importBundle(path)
    assert store.list() == ()


def test_a_bundle_cannot_name_files_outside_of_it(store: ExemplarStore, bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    job = json.loads(contents["job.json"])
    job["exemplars"][0]["image"] = "/etc/passwd"
    contents["job.json"] = json.dumps(job).encode()
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    slicer.mrmlScene.Clear(0)
    with pytest.raises(InputError, match=r"passwd does not exist"):
        store.importBundle(tmp_path / "bad.zip")


def test_a_bundle_that_cannot_be_written_is_refused_and_leaves_nothing(store: ExemplarStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no exemplar yet"):
        store.exportBundle(tmp_path / "none.zip")
    volumeNode, segmentationNode, *_ = addCase()
    store.addSlice(volumeNode, segmentationNode, 0, 1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        store.exportBundle(tmp_path / "file" / "exemplars.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
