"""Prompts to masks in the segment."""

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
from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S, SCROLLING_S, LiveSegmenter
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Scene import Segmentations
from FewShotSegSlicer.Workers.Workers import Workers
from Testing.Extension.bench import AFFINE, SHAPE, Bench, K, aSegmentation, maskOf, ras
from Testing.Extension.nodes import addTransform, addWarp, rotation


@pytest.fixture
def bench(scene: Any) -> Bench:
    return Bench()


# ------------------------------------------------------------------------------------------------------------ answers


def test_a_click_is_asked_with_all_that_a_mask_depends_on(bench: Bench) -> None:
    bench.live.setModel("liver.safetensors", "vit_b")
    bench.click(8, 7)
    bench.workers.answer()
    bench.click(12, 7.4, positive=False)
    (volume,) = bench.workers.volumes
    assert bench.workers.requests[-1] == {
        "op": "predict", "volume": volume, "view": "live", "adapter": "liver.safetensors", "base": "vit_b",
        "prompt": {
            "axis": "k", "index": K, "structure": "liver", "point_labels": [1, 0],
            "points_ras": [list(ras(8, 7, K)), list(ras(12, 7.4, K))],
        },
    }  # fmt: skip
    np.testing.assert_array_equal(bench.workers.volumes[volume], slicer.util.arrayFromVolume(bench.volume))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_answer_is_shown_on_the_slice_that_was_clicked_and_nowhere_else(bench: Bench, axis: int) -> None:
    bench.live.addPoint(axis, 5, ras(*np.where(np.arange(3) == 2 - axis, 5, 6)), positive=True)
    bench.assertNothing(5, axis)
    bench.workers.answer()
    bench.assertAnswered(5, axis)
    assert Segmentations.annotatedSlices(bench.segmentation, bench.volume, axis) == [5]


def test_a_click_beside_the_slice_counts_as_on_it(bench: Bench) -> None:
    """An oblique view, or one between two slices, is clicked off the middle of the slice."""
    bench.live.addPoint(0, K, ras(8, 7, K + 0.4), positive=True)
    assert bench.live.promptOn(0, K).points_ras == (pytest.approx(ras(8, 7, K)),)


def test_a_box_is_cut_to_the_volume(bench: Bench) -> None:
    bench.live.setBox(0, K, (ras(30, 5, K), ras(10, -6, K)))
    low, high = bench.live.promptOn(0, K).box_ras or ((), ())
    assert low == pytest.approx(ras(10, -0.5, K))
    assert high == pytest.approx(ras(23.5, 5, K))
    bench.workers.answer()
    bench.assertAnswered()


def test_removing_the_last_point_takes_the_mask_away(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.live.removePoint(0, K, 0)
    bench.assertNothing()
    assert len(bench.workers.asked("predict")) == 1


def test_the_time_from_click_to_mask_is_told(bench: Bench) -> None:
    times: list[float] = []
    bench.live.timed.connect(times.append)
    bench.click(8, 7)
    bench.now += 0.125
    bench.workers.answer()
    assert times == [pytest.approx(0.125)]


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


# -------------------------------------------------------------------------------------------- older answers are dropped


def test_the_answer_to_an_older_click_is_dropped_whenever_it_comes(bench: Bench) -> None:
    bench.click(8, 7)
    bench.click(14, 12)
    bench.workers.answer(0)
    bench.assertNothing()
    bench.workers.answer(1)
    bench.assertAnswered()
    bench.click(18, 9)
    bench.click(3, 3, positive=False)
    bench.workers.answer(3)
    bench.assertAnswered()
    bench.workers.answer(2)
    bench.assertAnswered()


def leaveTheSlice(bench: Bench) -> None:
    bench.live.setSlice(0, K + 1)


def chooseAnotherSegment(bench: Bench) -> None:
    bench.live.setTarget(bench.volume, bench.segmentation, bench.spleen)


def chooseAnotherModel(bench: Bench) -> None:
    bench.live.setModel("new.safetensors", None)


def chooseAnotherVolume(bench: Bench) -> None:
    other = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), AFFINE, "MR")
    bench.live.setTarget(other, bench.segmentation, bench.liver)


def changeTheVolume(bench: Bench) -> None:
    slicer.util.arrayFromVolume(bench.volume)[:] += 1
    slicer.util.arrayFromVolumeModified(bench.volume)


def moveTheVolume(bench: Bench) -> None:
    bench.volume.SetOrigin(31, -4, 12)


def clickAgain(bench: Bench) -> None:
    bench.click(14, 12)


def dropAPoint(bench: Bench) -> None:
    bench.live.clear(0, K)


def undo(bench: Bench) -> None:
    bench.live.undo()


def leaveTheModule(bench: Bench) -> None:
    bench.live.leave()


def removeTheSegment(bench: Bench) -> None:
    bench.segmentation.GetSegmentation().RemoveSegment(bench.liver)
    bench.liver = bench.spleen


def renameTheSegment(bench: Bench) -> None:
    bench.segmentation.GetSegmentation().GetSegment(bench.liver).SetName("kidney")


@pytest.mark.parametrize(
    "change",
    [
        leaveTheSlice, chooseAnotherSegment, chooseAnotherModel, chooseAnotherVolume, changeTheVolume, moveTheVolume,
        clickAgain, dropAPoint, undo, leaveTheModule, removeTheSegment, renameTheSegment,
    ],
)  # fmt: skip
def test_an_answer_is_dropped_when_it_is_no_longer_wanted(bench: Bench, change: Callable[[Bench], None]) -> None:
    bench.click(8, 7)
    change(bench)
    bench.workers.answer(0)
    bench.assertNothing()
    assert bench.failures == []


@pytest.mark.parametrize("change", [chooseAnotherModel, changeTheVolume, renameTheSegment])
def test_the_click_is_asked_again_with_what_is_there_now(bench: Bench, change: Callable[[Bench], None]) -> None:
    bench.click(8, 7)
    change(bench)
    bench.workers.answer(0)
    bench.wait()
    bench.workers.answer()
    bench.assertAnswered()


def test_a_slice_left_too_early_is_asked_again_on_return(bench: Bench) -> None:
    bench.click(8, 7)
    leaveTheSlice(bench)
    bench.workers.answer(0)
    bench.scroll(K)
    bench.workers.answer()
    bench.assertAnswered()


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


@pytest.mark.parametrize("alsoDo", ["choose models", "undo"])
def test_no_frame_ever_shows_a_mask_of_other_prompts(bench: Bench, monkeypatch: Any, alsoDo: str) -> None:
    """Clicks, scrolling, changes of segment and model, undo; answers come late and in any order."""
    rng, frames, live = np.random.default_rng(0), [], bench.live
    assert live.writer is not None
    showLive = live.writer.showLive

    def watched(segmentId: str, axis: int, index: int, mask: np.ndarray) -> None:
        assert segmentId == live.segmentId
        np.testing.assert_array_equal(mask, bench.wanted(index, axis, segmentId))
        frames.append((segmentId, index))
        showLive(segmentId, axis, index, mask)

    monkeypatch.setattr(live.writer, "showLive", watched)
    for _ in range(800):
        what, k = rng.random(), int(rng.integers(2, 5))
        if what < 0.25:
            bench.click(*rng.integers(2, 18, 2), k=k, positive=bool(rng.random() < 0.7))
        elif what < 0.6 and bench.workers.open:
            bench.workers.answer(int(rng.choice(bench.workers.open)))
        elif what < 0.7:
            live.setSlice(0, k)
        elif what < 0.75:
            live.setTarget(bench.volume, bench.segmentation, (bench.liver, bench.spleen)[int(rng.integers(2))])
        elif what < 0.85 and alsoDo == "choose models":
            live.setModel(f"{rng.integers(3)}.safetensors")
        elif what < 0.85:
            live.undo() if rng.random() < 0.6 else live.redo()
        else:
            bench.wait(float(rng.choice([0.05, 0.5])))
    assert len(frames) > 40


# -------------------------------------------------------------------------------------------------- accept, undo, redo


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


def test_accepting_while_waiting_keeps_the_answer_that_comes(bench: Bench) -> None:
    bench.click(8, 7)
    bench.live.accept()
    bench.workers.answer()
    assert not bench.live.hasPreview
    bench.assertAnswered()


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


def everything(bench: Bench) -> tuple[Any, ...]:
    texts = [bench.live.prompts.toJson(segmentId) for segmentId in (bench.liver, bench.spleen)]
    masks = [
        Segmentations.sliceMask(bench.segmentation, segmentId, bench.volume, 0, k).tobytes()
        for segmentId in (bench.liver, bench.spleen)
        for k in range(2, 7)
    ]
    return (*texts, *masks)


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


def test_an_answer_after_other_steps_is_a_step_of_its_own(bench: Bench) -> None:
    bench.click(8, 7, 2)
    bench.scroll(3)
    bench.click(9, 9, 3)
    bench.workers.answer()
    bench.scroll(2)
    bench.workers.answer()
    bench.assertAnswered(2)
    bench.scroll(6)
    bench.live.undo()
    bench.assertNothing(2)
    bench.assertAnswered(3)
    bench.live.undo()
    bench.assertNothing(3)


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


# ------------------------------------------------------------------------------------------------------------ dragging


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


# ------------------------------------------------------------------------------------------------------- looking ahead


def encoded(bench: Bench) -> list[tuple[str, int]]:
    return [(request["axis"], request["index"]) for request in bench.workers.asked("encode")]


def test_nothing_is_asked_while_scrolling(bench: Bench) -> None:
    for k in range(8):
        bench.live.setSlice(0, k, "Red")
        bench.wait(SCROLLING_S / 2)
    assert bench.workers.requests == []
    bench.wait(SCROLLING_S / 2)
    assert encoded(bench) == [("k", 7)]


def test_the_slice_in_use_is_encoded_first_then_the_other_views_then_its_neighbours(bench: Bench) -> None:
    bench.live.setSlice(1, 6, "Green")
    bench.live.setSlice(2, 11, "Yellow")
    bench.live.setSlice(0, 2, "Red")
    bench.live.setSlice(0, 1, "Red")  # the only view that was scrolled
    bench.wait()
    for _ in range(20):
        assert len(bench.workers.open) <= 1  # so that a click waits for one at most
        bench.workers.answerAll()
        bench.wait(IDLE_S)
    found = encoded(bench)
    assert found[0] == ("k", 1)
    assert set(found[1:3]) == {("j", 6), ("i", 11)}
    assert found[3:] == [("k", 2), ("k", 0), ("k", 3), ("k", 4), ("k", 5)]


def test_another_model_needs_the_slices_encoded_again(bench: Bench) -> None:
    bench.scroll(K)
    bench.workers.answerAll()
    bench.wait(0.0)
    assert len(encoded(bench)) == 1
    chooseAnotherModel(bench)
    bench.wait(0.0)
    assert [request["adapter"] for request in bench.workers.asked("encode")] == [None, "new.safetensors"]


def test_a_slice_that_cannot_be_encoded_is_not_tried_again_and_not_complained_about(bench: Bench) -> None:
    bench.scroll(K)
    bench.workers.fail("dead")
    for _ in range(5):
        bench.wait(IDLE_S)
    assert len(encoded(bench)) == 1
    assert bench.failures == []


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_click_whose_worker_died_is_told_asked_again_and_answered(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.fail("dead", "The process ended.")
    assert bench.failures == ["The process ended. Your click is being answered again."]
    bench.workers.answer()
    bench.assertAnswered()


def test_a_click_that_kills_the_worker_twice_is_not_asked_for_ever(bench: Bench) -> None:
    bench.click(8, 7)
    bench.workers.fail("dead", "The process ended.")
    bench.workers.fail("dead", "The process ended.")
    for _ in range(5):
        bench.wait(IDLE_S)
    assert len(bench.workers.asked("predict")) == 2
    assert bench.failures[-1] == "The process ended."
    bench.click(9, 9)
    bench.workers.answer()
    bench.assertAnswered()


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


@pytest.mark.parametrize("kind", ["input", "defect"])
def test_a_click_that_cannot_be_answered_is_told_once_and_its_old_mask_goes(bench: Bench, kind: str) -> None:
    bench.click(8, 7)
    bench.workers.answer()
    bench.click(9, 9)
    bench.workers.fail(kind, "The adapter was made for another base model.")
    bench.assertNothing()
    bench.wait(IDLE_S)
    assert bench.failures == ["The adapter was made for another base model."]
    assert len(bench.workers.asked("predict")) == 2
    bench.live.undo()
    bench.assertAnswered()


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


# --------------------------------------------------------------------------------------------------------- propagation


def propagate(bench: Bench, direction: Any = 0, count: int = 2) -> None:
    bench.live.propagate(direction, count)
    bench.workers.answerAll()


def annotated(bench: Bench) -> list[int]:
    return Segmentations.annotatedSlices(bench.segmentation, bench.volume, 0, [bench.liver])


def clicked(bench: Bench) -> Bench:
    bench.click(8, 7)
    bench.workers.answer()
    return bench


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
    bench.live.writer.editableIntensity = (0, 20 * 24 * 9)
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


# --------------------------------------------------------------------------------------------------------------- scene


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


def test_a_segmentation_on_another_grid_is_refused_and_then_there_is_nothing_to_work_on(bench: Bench) -> None:
    clicked(bench)
    other = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), 1.1 * AFFINE, "MR")
    with pytest.raises(InputError, match="another grid"):
        bench.live.setTarget(other, bench.segmentation, bench.liver)
    assert bench.live.target is None
    bench.wait(IDLE_S)
    with pytest.raises(InputError, match="choose a volume"):
        bench.click(8, 7)


def test_a_damaged_tag_is_told_and_the_others_are_read(bench: Bench) -> None:
    clicked(bench)
    bench.live.setTarget(None, None, None)
    segmentation = bench.segmentation.GetSegmentation()
    segmentation.GetSegment(bench.spleen).SetTag("FewShotSeg.Prompts", "{")
    bench.live.setTarget(bench.volume, bench.segmentation, bench.liver)
    assert not bench.live.promptOn(0, K).isEmpty
    assert "cannot be read" in bench.failures[0]


def test_a_removed_segment_is_forgotten_and_the_others_go_on(bench: Bench) -> None:
    clicked(bench)
    chooseAnotherSegment(bench)
    bench.click(9, 9)
    bench.segmentation.GetSegmentation().RemoveSegment(bench.liver)
    bench.wait()
    assert bench.live.prompts.segmentIds() == [bench.spleen]
    bench.workers.answerAll()
    assert bench.shown(segmentId=bench.spleen).any()


def test_leaving_keeps_what_is_shown_and_writes_the_prompts(bench: Bench) -> None:
    clicked(bench)
    bench.live.leave()
    assert not bench.live.hasPreview
    bench.assertAnswered()
    assert bench.segmentation.GetSegmentation().GetSegment(bench.liver).HasTag("FewShotSeg.Prompts")
    bench.wait(IDLE_S)
    assert bench.workers.asked("encode") == []


# ----------------------------------------------------------------------------------------------------- a real worker


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
        pid = workers._clients["prompt"].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # so that it cannot answer before it dies
        live.addPoint(0, K, ras(12, 9, K), positive=True)
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(answered) == 2)
        assert "killed from outside" in bench.failures[0]
        assert "Your click is being answered again." in bench.failures[0]
        assert workers._clients["prompt"].pid != pid
        live.propagate(1, 2)
        until(lambda: not live.isPropagating)
        assert live.promptOn(0, K) == SlicePrompt((ras(8, 7, K), ras(12, 9, K)), (1, 1))
        live.setTarget(None, None, None)
    finally:
        workers.close()
