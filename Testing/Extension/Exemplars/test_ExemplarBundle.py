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
    (warning,) = store.preflight()
    assert warning.startswith(
        "square is drawn in 1 of 2 exemplars only; on the annotated slices of the others it counts"
    )
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
    with pytest.raises(InputError, match=r"passwd"):
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


def changedBundle(bundle: Path, change: Any) -> Path:
    """The bundle with its files {name: content} changed."""
    with zipfile.ZipFile(bundle) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    change(content)
    path = bundle.with_name("changed.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return path


def withCards(change: Any) -> Any:
    def changeContent(content: dict[str, bytes]) -> None:
        values = json.loads(content["exemplars.json"])
        change(values["exemplars"][-1])
        content["exemplars.json"] = json.dumps(values).encode()

    return changeContent


@pytest.mark.parametrize(
    "change",
    [
        withCards(lambda card: card.pop("slices")),
        withCards(lambda card: card.pop("note")),
        withCards(lambda card: card.pop("exemplar")),
        withCards(lambda card: card.update(exemplar=99)),
        withCards(lambda card: card.update(slices=[4000])),
        withCards(lambda card: card.update(name=5)),
        lambda content: content.update({"exemplars.json": b"null"}),
        lambda content: content.update({"exemplars.json": b"[" * 100_000}),
        lambda content: content.pop("job.json"),
        lambda content: content.update({"second.nrrd": content["second.nrrd"][:-40]}),
    ],
)
def test_a_bundle_that_cannot_be_used_as_a_whole_changes_nothing(
    store: ExemplarStore, bundle: Path, change: Any
) -> None:
    slicer.mrmlScene.Clear(0)
    with pytest.raises(InputError):
        store.importBundle(changedBundle(bundle, change))
    assert store.list() == ()
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def test_a_bundle_brings_no_other_file_of_this_computer(store: ExemplarStore, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(b"SECRET" * 100_000)

    def detach(content: dict[str, bytes]) -> None:
        head = content["second.nrrd"].split(b"\n\n", 1)[0]
        content["second.nrrd"] = head + f"\ndata file: {tmp_path}/secret.raw\n\n".encode()

    slicer.mrmlScene.Clear(0)
    with pytest.raises(InputError, match=r"second\.nrrd"):
        store.importBundle(changedBundle(bundle, detach))


def test_what_a_bundle_does_not_need_stays_packed(
    store: ExemplarStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, name, *a, **k: (opened.append(name), real(self, name, *a, **k))[1]
    )
    junk = changedBundle(bundle, lambda content: content.update(junk=bytes(1 << 20)))
    opened.clear()
    slicer.mrmlScene.Clear(0)
    store.importBundle(junk)
    assert "junk" not in opened
