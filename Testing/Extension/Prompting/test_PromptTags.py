"""Prompts in the tags of segments, saved and found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from FewShotSegSlicer.Prompting import PromptTags
from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S
from Testing.Extension.bench import AFFINE, SHAPE, Bench, K, ras
from Testing.Extension.changes import chooseAnotherSegment, clicked


def propagate(bench: Bench, direction: Any = 0, count: int = 2) -> None:
    bench.live.propagate(direction, count)
    bench.workers.answerAll()


def test_prompts_are_saved_with_the_segmentation_and_restored(bench: Bench, tmp_path: Any) -> None:
    propagate(clicked(bench))
    bench.live.setBox(1, 6, (ras(3, 6, 2), ras(9, 6, 5)))
    bench.workers.answer()
    chooseAnotherSegment(bench)
    bench.click(15, 15, 1, positive=False)
    bench.workers.answer()
    bench.wait(IDLE_S)
    texts = [bench.live.prompts.toJson(segmentId) for segmentId in (bench.liver, bench.spleen)]
    path = str(tmp_path / "case.seg.nrrd")
    assert slicer.util.saveNode(bench.segmentation, path)
    loaded = slicer.util.loadSegmentation(path)
    bench.live.setTarget(bench.volume, loaded, bench.spleen)
    assert [bench.live.prompts.toJson(segmentId) for segmentId in (bench.liver, bench.spleen)] == texts
    bench.scroll(1)
    bench.workers.answerAll()
    assert len(bench.workers.asked("predict")) == 3  # what was saved is not asked again
    assert bench.failures == []


def test_a_tag_is_touched_only_when_the_prompts_have_changed(bench: Bench) -> None:
    clicked(bench)
    bench.wait(IDLE_S)
    segment = bench.segmentation.GetSegmentation().GetSegment(bench.liver)
    changes: list[Any] = []
    segment.AddObserver("ModifiedEvent", lambda *_: changes.append(1))
    bench.live.saveToScene()
    assert changes == []
    bench.live.clear(0, K)
    bench.live.saveToScene()
    assert not segment.HasTag("FewShotSeg.Prompts")


def test_prompts_find_their_slice_when_slices_come_in_another_order(bench: Bench) -> None:
    clicked(bench)
    bench.live.leave()
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = SHAPE[0] - 1
    array = slicer.util.arrayFromVolume(bench.volume)[::-1]
    flipped = slicer.util.addVolumeFromArray(array.copy(), AFFINE @ flip, "CT as loaded")
    bench.live.setTarget(flipped, bench.segmentation, bench.liver)
    assert bench.live.prompts.slices(bench.liver) == [(0, SHAPE[0] - 1 - K)]


def test_prompts_that_do_not_fit_the_volume_are_left_out_and_told(bench: Bench) -> None:
    bench.click(8, 7)
    bench.live.leave()
    far = AFFINE.copy()
    far[:3, 3] += 500
    other = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), far, "another patient")
    other.CreateDefaultDisplayNodes()
    bench.live.setTarget(other, bench.segmentation, bench.liver)
    assert bench.live.prompts.segmentIds() == []
    assert "prompts of liver on 1 slices" in bench.failures[0]


def test_a_damaged_tag_is_told_and_the_others_are_read(bench: Bench) -> None:
    clicked(bench)
    bench.live.setTarget(None, None, None)
    segmentation = bench.segmentation.GetSegmentation()
    segmentation.GetSegment(bench.spleen).SetTag("FewShotSeg.Prompts", "{")
    bench.live.setTarget(bench.volume, bench.segmentation, bench.liver)
    assert not bench.live.promptOn(0, K).isEmpty
    assert "cannot be read" in bench.failures[0]


def test_saved_prompts_are_entries_of_a_prompt_file_with_the_names_of_their_structures(bench: Bench) -> None:
    clicked(bench)
    bench.live.setBox(1, 6, (ras(3, 6, 2), ras(9, 6, 5)))
    chooseAnotherSegment(bench)
    bench.click(15, 15, 1, positive=False)
    found = PromptTags.entries(bench.segmentation)
    assert [(entry["structure"], entry["axis"]) for entry in found] == [("liver", "k"), ("liver", "j"), ("spleen", "k")]
    assert found[0]["points_ras"] == [list(ras(8, 7, K))]
    assert found[2]["point_labels"] == [0]
    assert not any("index" in entry for entry in found)  # they are found by their places


def test_a_segmentation_without_prompts_has_no_entries(bench: Bench) -> None:
    assert PromptTags.entries(bench.segmentation) == []
