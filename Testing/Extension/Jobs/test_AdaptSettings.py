"""The job that settings mean, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Jobs.AdapterFolder import AdapterFolder
from FewShotSegSlicer.Jobs.AdaptSettings import AdaptSettings
from FewShotSegSlicer.Workers.JobFiles import JobFiles
from Testing.conftest import write_discs
from Testing.Extension.cases import addCase
from Testing.Extension.nodes import addTransform


@pytest.fixture
def jobOf(scene: Any, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "files").mkdir()
    store = ExemplarStore()

    def make(*arguments: Any, **settings: Any) -> AdaptJob:
        files = JobFiles(tmp_path / "files")
        wanted = AdaptSettings(*arguments, **settings)
        return wanted.job(store, AdapterFolder(tmp_path), files, tmp_path / "a.safetensors")

    yield make
    store.close()


def test_everything_that_was_asked_for_is_in_the_job(jobOf: Any, tmp_path: Path) -> None:
    volumeNode, segmentationNode, volume, labels = addCase()
    settings = {"recipe": {"rank": 2}, "base": "vit_b", "seed": 4, "device": "cpu", "maxSeconds": 60.0}
    job = jobOf([(volumeNode, segmentationNode, [3, 1])], "lora", window=(-10, 90), **settings)
    assert (job.method, job.recipe, job.base, job.seed, job.device) == ("lora", {"rank": 2}, "vit_b", 4, "cpu")
    assert (job.max_seconds, job.intensity) == (60.0, {"kind": "window", "low": -10, "high": 90})
    (files,) = job.exemplars
    assert (files.axis, files.slices, files.structures) == ("k", (3, 1), {1: "disc", 2: "square"})
    assert np.array_equal(load_volume(files.image).array, volume.array)
    stored = load_labelmap(files.labelmap)
    assert np.array_equal(stored.volume.array, labels[1:4])  # the slices between the first and the last drawn one


def test_volumes_are_written_once_and_numbered_alike(jobOf: Any, tmp_path: Path) -> None:
    first, second = addCase(0), addCase(1)
    job = jobOf([first[:2], second[:2], first[:2]])
    images = [Path(files.image).name for files in job.exemplars]
    assert images == ["CT.nrrd", "CT 2.nrrd", "CT.nrrd"]
    assert {tuple(files.structures.items()) for files in job.exemplars} == {((1, "disc"), (2, "square"))}


def test_targets_are_nodes_files_or_folders(jobOf: Any, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase(name="target")
    for number in (1, 2):
        write_discs(tmp_path / "folder", f"p{number}", number)
    job = jobOf([(volumeNode, segmentationNode)], targets=[volumeNode, tmp_path / "folder", "one.nrrd"])
    assert [Path(path).name for path in job.targets] == ["target.nrrd", "p1.nrrd", "p2.nrrd", "one.nrrd"]


def test_auxiliary_data_are_folders_of_annotated_cases(jobOf: Any, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    write_discs(tmp_path / "other hospital", "p1", 1)
    job = jobOf([(volumeNode, segmentationNode)], auxiliary=[tmp_path / "other hospital"])
    (dataSet,) = job.auxiliary
    assert dataSet.name == "other hospital"
    assert [(Path(case.image).name, Path(case.labelmap).name) for case in dataSet.cases] == [("p1.nrrd", "p1.seg.nrrd")]


def test_folders_go_into_the_job_as_they_are(jobOf: Any, tmp_path: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    job = jobOf([(volumeNode, segmentationNode)], auxiliaryFolder=tmp_path / "others")
    assert (job.auxiliary_folder, job.source_folder, job.target_folder) == (str(tmp_path / "others"), None, None)
    job = jobOf((), "uda", sourceFolder=str(tmp_path / "CT"), targetFolder=str(tmp_path / "MR"))
    assert (job.source_folder, job.target_folder) == (str(tmp_path / "CT"), str(tmp_path / "MR"))
    assert job.exemplars == ()


def test_a_sheared_volume_is_refused_with_the_way_out(jobOf: Any) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    shear = addTransform(np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    for node in (volumeNode, segmentationNode):
        node.SetAndObserveTransformNodeID(shear.GetID())
    with pytest.raises(InputError, match=r'"CT" is sheared, .* Straighten it in the module Crop Volume'):
        jobOf([(volumeNode, segmentationNode)])


def test_going_on_from_an_adapter_takes_its_base_and_its_numbers(jobOf: Any, an_adapter_file: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    job = jobOf([(volumeNode, segmentationNode)], warmStart=an_adapter_file)
    assert (job.base, job.warm_start) == ("tiny", str(an_adapter_file))
    segmentationNode.GetSegmentation().RemoveSegment(segmentationNode.GetSegmentation().GetNthSegmentID(0))
    with pytest.raises(InputError, match="was trained on disc, square; the exemplars show square"):
        jobOf([(volumeNode, segmentationNode)], warmStart=an_adapter_file)


def test_a_segmentation_without_a_voxel_is_refused(jobOf: Any) -> None:
    volumeNode, segmentationNode, *_ = addCase(slices=())
    with pytest.raises(InputError, match='Nothing is drawn in "drawn"'):
        jobOf([(volumeNode, segmentationNode)])
