"""Following a segment through its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S
from Testing.Extension.bench import SHAPE, Bench, K
from Testing.Extension.changes import (
    annotated,
    changeTheVolume,
    chooseAnotherModel,
    chooseAnotherSegment,
    clicked,
    everything,
    leaveTheModule,
    undo,
)


def propagate(bench: Bench, direction: Any = 0, count: int = 2) -> None:
    bench.live.propagate(direction, count)
    bench.workers.answerAll()


@pytest.mark.parametrize(("direction", "slices"), [(-1, [2, 3, 4]), (1, [4, 5, 6]), (0, [2, 3, 4, 5, 6])])
def test_propagation_fills_the_neighbours_and_leaves_the_prompted_slice(
    bench: Bench, direction: int, slices: list[int]
) -> None:
    clicked(bench)
    mask = bench.shown()
    propagate(bench, direction)
    assert annotated(bench) == slices
    np.testing.assert_array_equal(bench.shown(), mask)
    assert not bench.live.isPropagating
    request = bench.workers.asked("propagate")[0]
    assert request["prompts"] == [bench.live.promptOn(0, K).toDict(0, K) | {"structure": "liver"}]


def test_propagation_is_one_step_of_undo(bench: Bench) -> None:
    clicked(bench)
    before = everything(bench)
    propagate(bench)
    after = everything(bench)
    bench.live.undo()
    assert everything(bench) == before
    bench.live.redo()
    assert everything(bench) == after
    bench.live.undo()
    bench.live.undo()
    assert annotated(bench) == []


def test_a_corrected_slice_leads_the_next_propagation_which_replaces_the_last(bench: Bench) -> None:
    propagate(clicked(bench))
    old = bench.shown(5)
    bench.click(8, 7, 6)
    bench.workers.answer()
    corrected = bench.shown(6)
    propagate(bench)
    assert [p["index"] for p in bench.workers.asked("propagate")[1]["prompts"]] == [4, 6]
    np.testing.assert_array_equal(bench.shown(6), corrected)
    assert not np.array_equal(bench.shown(5), old)
    assert annotated(bench) == [2, 3, 4, 5, 6, 7, 8]


def test_a_slice_that_was_edited_or_annotated_by_hand_is_left_alone(bench: Bench) -> None:
    propagate(clicked(bench))
    byHand = np.zeros(SHAPE[1:], bool)
    byHand[10:14, 3:9] = True
    for k in (5, 7):
        bench.live.writer.accept(bench.liver, 0, k, byHand)
    bench.click(12, 12, K)
    bench.workers.answer()
    propagate(bench, count=4)
    for k in (5, 7):
        np.testing.assert_array_equal(bench.shown(k), byHand)
    assert bench.shown(8).any()


def test_what_propagation_wrote_inside_an_editable_area_still_counts_as_its_own(bench: Bench) -> None:
    bench.live.writer.area.intensity = (0, 20 * 24 * 9)
    clicked(bench)
    array = slicer.util.arrayFromVolume(bench.volume)
    array[5, :, :6] = -5  # half of the square there is not editable
    slicer.util.arrayFromVolumeModified(bench.volume)
    propagate(bench, 1)
    assert bench.shown(5).sum() == 4 * 3
    bench.click(8, 7, 7)
    bench.workers.answer()
    propagate(bench, 0, 1)
    assert bench.shown(5).sum() == 5 * 3


def test_a_click_stops_propagation_and_is_answered(bench: Bench) -> None:
    clicked(bench)
    bench.live.propagate(0, 2)
    number = max(bench.workers.callbacks)
    bench.click(12, 12)
    assert bench.workers.cancelled == [number]
    bench.workers.answer(number)
    assert annotated(bench) == [K]
    bench.workers.answer()
    bench.assertAnswered()


@pytest.mark.parametrize("change", [chooseAnotherSegment, chooseAnotherModel, undo, leaveTheModule])
def test_propagation_from_what_is_no_longer_there_writes_nothing(bench: Bench, change: Callable[[Bench], None]) -> None:
    clicked(bench)
    bench.live.propagate(0, 2)
    number = max(bench.workers.callbacks)
    change(bench)
    bench.workers.answer(number)
    assert set(annotated(bench)) <= {K}
    assert not bench.live.isPropagating


def test_propagation_over_a_changed_volume_is_told_and_writes_nothing(bench: Bench) -> None:
    clicked(bench)
    bench.live.propagate(0, 2)
    changeTheVolume(bench)
    bench.workers.answer()
    assert annotated(bench) == [K]
    assert "changed during propagation" in bench.failures[0]


def test_progress_of_propagation_is_passed_on_until_it_is_stopped(bench: Bench) -> None:
    heard: list[Any] = []
    bench.live.progressed.connect(heard.append)
    clicked(bench)
    bench.live.propagate(0, 2)
    callbacks = bench.workers.callbacks[max(bench.workers.callbacks)]
    callbacks["onProgress"]({"step": 3, "total": 9})
    bench.live.cancelPropagation()
    callbacks["onProgress"]({"step": 4, "total": 9})
    assert heard == [{"step": 3, "total": 9}]


def test_nothing_is_asked_ahead_while_propagating(bench: Bench) -> None:
    clicked(bench)
    bench.live.propagate(0, 2)
    bench.wait(IDLE_S)
    assert bench.workers.asked("encode") == []
