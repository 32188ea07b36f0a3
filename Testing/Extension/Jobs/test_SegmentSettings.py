"""What is asked of a segmentation, as a job knows it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import ExemplarFiles, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_volume
from FewShotSegSlicer.Jobs.SegmentSettings import promptEntries, segmentOptions, volumeFiles, windowAsIntensity
from FewShotSegSlicer.Workers.JobFiles import JobFiles
from Testing.conftest import write_discs
from Testing.Extension.bench import Bench, K, ras
from Testing.Extension.cases import addCase

# ------------------------------------------------------------------------------------------------------------- options


def test_options_have_the_names_of_the_job() -> None:
    options = segmentOptions(
        axis=2, largestComponent=True, minIslandMl=1.5, device="cpu", seed=4, window=(-100.0, 200.0)
    )
    support = (ExemplarFiles("a.nrrd", "a.seg.nrrd"),)
    job = SegmentJob(("a.nrrd",), "out", support=support, **options)
    assert (job.axis, job.largest_component, job.min_island_ml, job.device, job.seed) == ("i", True, 1.5, "cpu", 4)
    spec = IntensitySpec.from_dict(dict(job.intensity or {}))
    assert spec.range_of(np.zeros((2, 2, 2))) == (-100.0, 200.0)


def test_without_options_the_job_is_as_the_library_makes_it() -> None:
    plain = {field.name: field.default for field in fields(SegmentJob)}
    assert {name: plain[name] for name in segmentOptions()} == segmentOptions()
    assert windowAsIntensity(None) is None


# ------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_may_be_those_of_the_library_or_entries_of_a_file() -> None:
    prompt = Prompt(0, 2, np.array([[22.0, 24.0, 2.0]]), np.array([1]), structure="disc")
    entry = {"axis": "k", "index": 2, "points_ijk": [[1, 2, 2]], "point_labels": [0]}
    first, second = promptEntries([prompt, entry], None)
    assert Prompt.from_dict(first).points_ijk.tolist() == [[22.0, 24.0, 2.0]]
    assert second == entry


def test_true_stands_for_the_prompts_saved_with_the_segmentation(scene: Any) -> None:
    bench = Bench()
    bench.click(8, 7)
    (entry,) = promptEntries(True, bench.segmentation)
    assert (entry["structure"], entry["points_ras"]) == ("liver", [list(ras(8, 7, K))])


@pytest.mark.parametrize("nothing", [None, False])
def test_no_prompts_are_no_entries(nothing: Any) -> None:
    assert promptEntries(nothing, None) == []


@pytest.mark.parametrize("prompts", [True, [], ()])
def test_prompts_that_are_asked_for_and_not_there_are_missed(prompts: Any) -> None:
    with pytest.raises(InputError, match="There are no prompts to segment with; click on a structure first"):
        promptEntries(prompts, None)


# ------------------------------------------------------------------------------------------------------------- volumes


def test_files_are_called_by_their_paths_and_a_folder_is_its_images(tmp_path: Path) -> None:
    images = [str(write_discs(tmp_path / "patients", f"p{number}", number)[0]) for number in (1, 2)]
    files = JobFiles(tmp_path)
    assert volumeFiles(tmp_path / "patients", files) == {path: path for path in images}
    assert volumeFiles([images[1], Path(images[0])], files) == {path: path for path in images}
    assert list(volumeFiles(images[0], files)) == images[:1]


def test_of_a_folder_with_a_file_for_each_channel_one_channel_is_taken(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write_discs(tmp_path / "patients", name, 0)[1].unlink()
    with pytest.raises(InputError, match="holds the channels 0, 1 of each image"):
        volumeFiles(tmp_path / "patients", JobFiles(tmp_path))
    found = volumeFiles(tmp_path / "patients", JobFiles(tmp_path), 1)
    assert [Path(path).name for path in found] == ["a_0001.nrrd", "b_0001.nrrd"]


def test_volumes_and_sequences_of_the_scene_are_written_and_called_by_their_names(scene: Any, tmp_path: Path) -> None:
    volumeNode, _drawn, volume, _labels = addCase(name="CT: 1")
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for number in range(2):
        sequence.SetDataNodeAtValue(addCase(number)[0], str(number))
    found = volumeFiles([volumeNode, sequence], JobFiles(tmp_path))
    assert list(found.values()) == ["CT: 1", "cine 1", "cine 2"]
    np.testing.assert_array_equal(load_volume(next(iter(found))).array, volume.array)


def test_what_is_neither_a_volume_nor_a_sequence_is_refused(scene: Any, tmp_path: Path) -> None:
    _volumeNode, segmentationNode, *_ = addCase()
    with pytest.raises(InputError, match='"drawn" is neither a volume nor a sequence'):
        volumeFiles(segmentationNode, JobFiles(tmp_path))
