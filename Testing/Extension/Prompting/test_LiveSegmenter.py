"""Choosing what is worked on, what is refused, and nodes and workers that go away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S, LiveSegmenter
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Workers.Workers import Workers
from Testing.Extension.bench import AFFINE, SHAPE, Bench, K, aSegmentation, ras
from Testing.Extension.changes import clicked
from Testing.Extension.launched import pidBehind
from Testing.Extension.nodes import addWarp


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda live: live.addPoint(0, K, ras(8, 25, K), True), "outside the volume"),
        (lambda live: live.addPoint(0, 9, ras(8, 7, 9), True), "k=0 to 8"),
        (lambda live: live.movePoint(0, K, 0, ras(8, 7, K)), "no point 0"),
        (lambda live: live.setBox(0, K, (ras(8, 7, K), ras(8.4, 12, K))), "no voxel"),
        (lambda live: live.propagate(0, 3), "click on one first"),
        (lambda live: (live.setSlice(0, K), live.propagate(0, 3)), "click on one of this direction first"),
        (lambda live: (live.setTarget(None, None, None), live.clear(0, K)), "choose a volume and a segment first"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(bench: Bench, edit: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        edit(bench.live)
    assert not bench.live.canUndo
    assert bench.workers.requests == []


@pytest.mark.parametrize("what", ["volume", "segmentation"])
def test_a_removed_node_is_let_go_and_its_answer_dropped(bench: Bench, what: str) -> None:
    bench.click(8, 7)
    slicer.mrmlScene.RemoveNode(getattr(bench, what))
    bench.workers.answer(0)
    bench.wait()
    assert bench.live.target is None
    assert bench.workers.volumes == {}
    assert bench.failures == []


def test_closing_the_scene_while_waiting_lets_everything_go(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.click(9, 9)
    slicer.mrmlScene.Clear(0)
    bench.workers.answerAll()
    bench.wait()
    bench.live.undo()
    bench.live.accept()
    assert bench.live.target is None
    assert bench.failures == []


def test_after_the_workers_were_closed_everything_is_sent_and_asked_again(bench: Bench) -> None:
    clicked(bench)
    bench.live.propagate(0, 2)
    bench.workers.close()
    bench.click(12, 9)
    bench.workers.close()
    bench.wait()
    assert not bench.live.isPropagating
    bench.workers.answer()
    bench.assertAnswered()
    assert len(bench.workers.volumes) == 1


def test_a_volume_under_a_warp_is_refused_before_anything_is_changed(bench: Bench) -> None:
    bench.volume.SetAndObserveTransformNodeID(addWarp().GetID())
    with pytest.raises(InputError, match="non-linear"):
        bench.click(8, 7)
    assert not bench.live.canUndo
    for _ in range(3):
        bench.scroll(K)
    (message,) = bench.failures
    assert "non-linear" in message
    bench.volume.SetAndObserveTransformNodeID(None)
    bench.click(8, 7)
    bench.workers.answer()
    bench.assertAnswered()


def test_prompts_of_another_segmentation_do_not_mix(bench: Bench) -> None:
    clicked(bench)
    other = aSegmentation(bench.volume)
    segmentId = other.GetSegmentation().AddEmptySegment(bench.liver, "liver")
    bench.live.setTarget(bench.volume, other, segmentId)
    assert bench.live.promptOn(0, K).isEmpty
    assert not bench.live.canUndo
    bench.live.setTarget(bench.volume, bench.segmentation, bench.liver)
    assert not bench.live.promptOn(0, K).isEmpty
    assert bench.shown().any()


def test_a_segmentation_on_another_grid_is_refused_and_then_there_is_nothing_to_work_on(bench: Bench) -> None:
    clicked(bench)
    other = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), 1.1 * AFFINE, "MR")
    with pytest.raises(InputError, match="another grid"):
        bench.live.setTarget(other, bench.segmentation, bench.liver)
    assert bench.live.target is None
    bench.wait(IDLE_S)
    with pytest.raises(InputError, match="choose a volume"):
        bench.click(8, 7)


def test_leaving_keeps_what_is_shown_and_writes_the_prompts(bench: Bench) -> None:
    clicked(bench)
    bench.live.leave()
    assert not bench.live.hasPreview
    bench.assertAnswered()
    assert bench.segmentation.GetSegmentation().GetSegment(bench.liver).HasTag("FewShotSeg.Prompts")
    bench.wait(IDLE_S)
    assert bench.workers.asked("encode") == []


def test_a_real_worker_killed_during_a_click_is_explained_replaced_and_the_click_answered(
    scene: Any, a_tiny_base: str
) -> None:
    workers = Workers(environment={"OMP_NUM_THREADS": "1"})
    try:
        bench = Bench()
        live = LiveSegmenter(workers)
        live.failed.connect(bench.failures.append)
        live.setModel(None, a_tiny_base)
        live.setTarget(bench.volume, bench.segmentation, bench.liver)
        answered: list[float] = []
        live.timed.connect(answered.append)

        def until(condition: Callable[[], Any]) -> None:
            deadline = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < deadline, bench.failures
                workers.poll()
                live.poll()
                time.sleep(0.01)

        live.addPoint(0, K, ras(8, 7, K), positive=True)
        until(lambda: answered)
        launcher = workers._clients["prompt"].pid
        pid = pidBehind(launcher)
        os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it dies
        live.addPoint(0, K, ras(12, 9, K), positive=True)
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(answered) == 2)
        assert "It was killed or has crashed" in bench.failures[0]
        assert "Your click is being answered again." in bench.failures[0]
        assert workers._clients["prompt"].pid != launcher
        live.propagate(1, 2)
        until(lambda: not live.isPropagating)
        assert live.promptOn(0, K) == SlicePrompt((ras(8, 7, K), ras(12, 9, K)), (1, 1))
        live.setTarget(None, None, None)
    finally:
        workers.close()
