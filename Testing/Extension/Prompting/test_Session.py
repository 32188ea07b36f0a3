"""Clicks, corrections and the way back on one segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np

from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S
from Testing.Extension.bench import SHAPE, Bench, K, maskOf, ras
from Testing.Extension.changes import chooseAnotherSegment, clicked, everything
from Testing.Extension.nodes import addTransform, rotation


def test_removing_the_last_point_takes_the_mask_away(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.live.removePoint(0, K, 0)
    bench.assertNothing()
    assert len(bench.workers.asked("predict")) == 1


def test_moving_on_accepts_what_is_shown(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    assert bench.live.hasPreview
    bench.scroll(K + 1)
    assert not bench.live.hasPreview
    bench.assertAnswered()


def test_moving_on_drops_a_mask_that_is_older_than_the_prompts(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.click(14, 12)
    bench.scroll(K + 1)
    bench.assertNothing()
    bench.scroll(K)
    bench.workers.answer()
    bench.assertAnswered()


def test_a_click_on_another_slice_accepts_what_is_shown_on_this_one(bench: Bench) -> None:
    bench.live.setSlice(0, K, "Red")
    bench.live.setSlice(1, 6, "Green")
    bench.click(8, 7)
    bench.workers.answer()
    first = bench.shown()
    bench.live.addPoint(1, 6, ras(3, 6, 2), positive=True)
    assert not bench.live.hasPreview
    np.testing.assert_array_equal(bench.shown(), first)
    bench.workers.answer()
    assert bench.live.hasPreview
    bench.assertAnswered(6, axis=1)


def test_clearing_takes_the_preview_away_and_leaves_what_was_accepted(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.live.accept()
    accepted = bench.shown()
    bench.click(14, 12)
    bench.workers.answer()
    bench.live.clear(0, K)
    assert bench.live.promptOn(0, K).isEmpty
    np.testing.assert_array_equal(bench.shown(), accepted)


def test_many_steps_are_taken_back_and_done_again_with_prompts_and_masks_together(bench: Bench) -> None:
    rng, live = np.random.default_rng(1), bench.live
    states = [everything(bench)]
    for _ in range(40):
        k, what = int(rng.integers(2, 5)), rng.random()
        live.setTarget(bench.volume, bench.segmentation, (bench.liver, bench.spleen)[int(rng.random() < 0.3)])
        count = len(live.promptOn(0, k).points_ras)
        if what < 0.55 or not count:
            bench.click(*rng.integers(2, 18, 2), k=k, positive=bool(rng.random() < 0.7))
        elif what < 0.65:
            live.movePoint(0, k, int(rng.integers(count)), ras(*rng.integers(2, 18, 2), k))
        elif what < 0.75:
            live.removePoint(0, k, int(rng.integers(count)))
        elif what < 0.9:
            live.setBox(0, k, (ras(*rng.integers(2, 8, 2), k), ras(*rng.integers(10, 18, 2), k)))
        else:
            live.clear(0, k)
        bench.workers.answerAll()
        states.append(everything(bench))
        if rng.random() < 0.3:
            live.accept()
        if rng.random() < 0.3:
            bench.scroll(int(rng.integers(9)))
            bench.workers.answerAll()
    for _ in range(2):
        for state in reversed(states[:-1]):
            live.undo()
            assert bench.workers.open == []
            assert everything(bench) == state
        assert not live.canUndo
        for state in states[1:]:
            live.redo()
            assert everything(bench) == state
        assert not live.canRedo
    assert bench.failures == []


def test_scrolling_between_undo_and_redo_changes_nothing(bench: Bench) -> None:
    for k in (2, 3, 4):
        bench.click(8, 7, k)
        bench.workers.answer()
        bench.click(12, 9, k)
        bench.workers.answer()
    states = []
    while bench.live.canUndo:
        states.append(everything(bench))
        bench.live.undo()
        bench.scroll(7)
        bench.scroll(8)
        bench.workers.answerAll()
    for state in reversed(states):
        bench.live.redo()
        assert everything(bench) == state
        bench.scroll(7)
        bench.workers.answerAll()


def test_undo_looks_at_the_slice_and_segment_that_it_changes(bench: Bench) -> None:
    places: list[Any] = []
    bench.live.moved.connect(lambda *place: places.append(place))
    bench.click(8, 7, 2)
    bench.workers.answer()
    chooseAnotherSegment(bench)
    bench.click(8, 7, 3)
    bench.workers.answer()
    bench.live.undo()
    bench.live.undo()
    assert places == [(bench.spleen, 0, 3), (bench.liver, 0, 2)]
    assert bench.live.segmentId == bench.liver
    assert bench.live.activeSlice == (0, 2)


def test_undo_to_a_prompt_that_was_never_answered_asks_again(bench: Bench) -> None:
    bench.click(8, 7)
    bench.click(14, 12)
    bench.workers.answer(1)
    bench.live.undo()
    bench.assertNothing()
    bench.workers.answer()
    bench.assertAnswered()
    assert len(bench.live.promptOn(0, K).points_ras) == 1


def test_undo_leaves_what_was_painted_on_other_slices_meanwhile(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.live.leave()
    painted = np.zeros(SHAPE[1:], bool)
    painted[5:9, 5:9] = True
    bench.live.writer.accept(bench.spleen, 0, 7, painted)
    bench.live.writer._undo.pop()  # as by somebody else
    bench.live.undo()
    bench.assertNothing()
    np.testing.assert_array_equal(bench.shown(7, segmentId=bench.spleen), painted)


def test_a_drag_is_one_step_and_asks_for_the_newest_place_when_an_answer_has_come(bench: Bench) -> None:
    bench.click(5, 5)
    bench.workers.answer()
    before = everything(bench)
    for i in range(6, 12):
        bench.live.movePoint(0, K, 0, ras(i, 5, K), dragging=True)
    assert len(bench.workers.asked("predict")) == 2
    bench.workers.answer()
    np.testing.assert_array_equal(bench.shown(), maskOf(bench.workers.requests[1]))
    assert bench.workers.asked("predict")[-1]["prompt"]["points_ras"] == [list(ras(11, 5, K))]
    bench.live.movePoint(0, K, 0, ras(12, 6, K))
    bench.workers.answerAll()
    bench.assertAnswered()
    assert bench.live.promptOn(0, K).points_ras == (ras(12, 6, K),)
    bench.live.undo()
    assert everything(bench) == before


def test_the_end_of_a_drag_where_it_already_is_asks_nothing_more(bench: Bench) -> None:
    bench.live.setBox(0, K, (ras(5, 5, K), ras(9, 9, K)), dragging=True)
    bench.workers.answer()
    bench.live.setBox(0, K, (ras(5, 5, K), ras(9, 9, K)))
    assert len(bench.workers.asked("predict")) == 1
    bench.assertAnswered()
    bench.live.setBox(0, K, (ras(5, 5, K), ras(10, 9, K)), dragging=True)
    bench.live.undo()
    bench.assertAnswered()


def test_a_segmentation_moved_away_from_its_volume_is_told_once(bench: Bench) -> None:
    clicked(bench)
    bench.segmentation.SetAndObserveTransformNodeID(addTransform(rotation((1, 2, 3), 20)).GetID())
    bench.scroll(K + 1)
    bench.scroll(K)
    (message,) = bench.failures
    assert "another grid" in message
    bench.click(12, 9)
    bench.workers.answer()
    bench.wait(IDLE_S)
    bench.wait(IDLE_S)
    assert len(bench.failures) == 2


def test_a_removed_segment_is_forgotten_and_the_others_go_on(bench: Bench) -> None:
    clicked(bench)
    chooseAnotherSegment(bench)
    bench.click(9, 9)
    bench.segmentation.GetSegmentation().RemoveSegment(bench.liver)
    bench.wait()
    assert bench.live.prompts.segmentIds() == [bench.spleen]
    bench.workers.answerAll()
    assert bench.shown(segmentId=bench.spleen).any()
