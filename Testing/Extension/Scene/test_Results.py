"""What a worker has written becomes nodes and tables."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import save_labelmap
from FewShotSegSlicer.Scene import Results, Segmentations
from Testing.Extension.cases import addCase, labelsOf


def written(folder: Path, volume: Volume, labels: np.ndarray) -> Path:
    """A result of a worker, in which the square has the lower value."""
    path = folder / "CT.seg.nrrd"
    save_labelmap(Labelmap(volume.like(np.array([0, 2, 1], np.uint8)[labels]), {1: "square", 2: "disc"}), path)
    return path


@pytest.fixture
def answer() -> np.ndarray:
    """Labels (K, J, I), 1 disc and 2 square, that are wrong everywhere."""
    return np.random.default_rng(0).integers(0, 3, (6, 64, 64)).astype(np.uint8)


def test_a_result_becomes_a_new_segmentation_beside_its_volume(scene: Any, tmp_path: Path, answer: np.ndarray) -> None:
    volumeNode, segmentationNode, volume, labels = addCase()
    node = Results.intoScene(written(tmp_path, volume, answer), volumeNode, None, "CT organs")
    assert (node.GetName(), Segmentations.volumeOf(node)) == ("CT organs", volumeNode)
    np.testing.assert_array_equal(labelsOf(node, volumeNode), answer)
    np.testing.assert_array_equal(labelsOf(segmentationNode, volumeNode), labels)


def test_what_was_drawn_on_some_slices_is_kept_and_the_rest_is_written_anew(
    scene: Any, tmp_path: Path, answer: np.ndarray
) -> None:
    volumeNode, segmentationNode, volume, labels = addCase(slices=None)
    path = written(tmp_path, volume, answer)
    drawn = [(0, (1, 3)), (2, [40])]
    assert Results.intoScene(path, volumeNode, segmentationNode, "unused", drawn) is segmentationNode
    expected = answer.copy()
    expected[[1, 3]] = labels[[1, 3]]
    expected[:, :, 40] = labels[:, :, 40]
    np.testing.assert_array_equal(labelsOf(segmentationNode, volumeNode), expected)


def test_a_result_of_other_structures_has_nothing_to_keep(scene: Any, tmp_path: Path, answer: np.ndarray) -> None:
    volumeNode, segmentationNode, volume, labels = addCase(slices=None)
    path = tmp_path / "liver.seg.nrrd"
    save_labelmap(Labelmap(volume.like((answer == 1).astype(np.uint8)), {1: "liver"}), path)
    Results.intoScene(path, volumeNode, segmentationNode, "unused", [(0, (1, 3))])
    liver = Segmentations.segmentsByName(segmentationNode)["liver"]
    np.testing.assert_array_equal(Segmentations.sliceMask(segmentationNode, liver, volumeNode, 0, 1), answer[1] == 1)
    segmentationNode.GetSegmentation().RemoveSegment(liver)
    np.testing.assert_array_equal(labelsOf(segmentationNode, volumeNode), labels)


def test_a_volume_that_is_gone_or_of_another_size_by_now_is_told(
    scene: Any, tmp_path: Path, answer: np.ndarray
) -> None:
    volumeNode, segmentationNode, volume, _labels = addCase(name="the CT")
    path = written(tmp_path, volume, answer)
    slicer.util.updateVolumeFromArray(volumeNode, np.zeros((5, 64, 64), np.int16))
    with pytest.raises(InputError, match='"the CT" has changed its size meanwhile'):
        Results.intoScene(path, volumeNode, segmentationNode, "unused")
    scene.RemoveNode(volumeNode)
    with pytest.raises(InputError, match='"the CT" is ready, but the volume is not in the scene any more'):
        Results.intoScene(path, volumeNode, segmentationNode, "unused")


def test_a_segmentation_that_has_left_the_scene_is_replaced(scene: Any, tmp_path: Path, answer: np.ndarray) -> None:
    volumeNode, segmentationNode, volume, _labels = addCase()
    scene.RemoveNode(segmentationNode)
    assert not Results.isInScene(segmentationNode)
    node = Results.intoScene(written(tmp_path, volume, answer), volumeNode, segmentationNode, "again", [(0, (1,))])
    assert node is not segmentationNode
    np.testing.assert_array_equal(labelsOf(node, volumeNode), answer)


# --------------------------------------------------------------------------------------------------------------- table

SEGMENTED = {"image": "/tmp/a.nrrd", "structures": {}, "state": "segmented"}
FAILED = {"image": "/tmp/b.nrrd", "error": {"kind": "input", "message": "It is sheared."}}


def test_the_table_of_a_batch_is_where_the_worker_has_written_it(tmp_path: Path) -> None:
    assert Results.tableOf({"images": [SEGMENTED]}, tmp_path, {}) == str(tmp_path / "volumes.csv")
    assert not (tmp_path / "volumes.csv").exists()


def test_images_of_the_scene_have_their_names_in_the_table(tmp_path: Path) -> None:
    table = Results.tableOf({"images": [SEGMENTED, FAILED]}, tmp_path, {"/tmp/b.nrrd": "MR 2"})
    with Path(table).open(encoding="utf-8", newline="") as stream:
        assert {row["image"] for row in csv.DictReader(stream)} >= {"MR 2"}


def test_what_could_not_be_segmented_is_logged_by_name_and_nothing_at_all_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Results.tableOf({"images": [SEGMENTED, FAILED]}, tmp_path, {"/tmp/b.nrrd": "MR 2"})
    assert "Not segmented: MR 2: It is sheared." in caplog.text
    with pytest.raises(InputError, match=r"None of 1 volumes could be segmented\. /tmp/b\.nrrd: It is sheared\."):
        Results.tableOf({"images": [FAILED]}, tmp_path, {})
