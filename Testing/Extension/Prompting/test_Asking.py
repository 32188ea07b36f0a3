"""Which answers are asked for, shown and dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.Asking import Asking, Pending
from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S
from FewShotSegSlicer.Prompting.Lookahead import Lookahead
from FewShotSegSlicer.Prompting.Prompts import Place, SlicePrompt
from FewShotSegSlicer.Prompting.Question import Model, Question
from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.bench import Bench, FakeWorkers, K, ras
from Testing.Extension.changes import (
    changeTheVolume,
    chooseAnotherModel,
    chooseAnotherSegment,
    chooseAnotherVolume,
    clickAgain,
    dropAPoint,
    leaveTheModule,
    leaveTheSlice,
    moveTheVolume,
    removeTheSegment,
    renameTheSegment,
    undo,
)


def test_a_click_is_asked_with_all_that_a_mask_depends_on(bench: Bench) -> None:
    bench.live.setModel("liver.safetensors", "vit_b")
    bench.click(8, 7)
    bench.workers.answer()
    bench.click(12, 7.4, positive=False)
    (volume,) = bench.workers.volumes
    prompt = {"axis": "k", "index": K, "structure": "liver", "point_labels": [1, 0]}
    prompt["points_ras"] = [list(ras(8, 7, K)), list(ras(12, 7.4, K))]
    model = {"adapter": "liver.safetensors", "base": "vit_b"}
    asked = {"op": "predict", "volume": volume, "view": "live", "prompt": prompt, **model}
    assert bench.workers.requests[-1] == asked
    np.testing.assert_array_equal(bench.workers.volumes[volume], slicer.util.arrayFromVolume(bench.volume))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_answer_is_shown_on_the_slice_that_was_clicked_and_nowhere_else(bench: Bench, axis: int) -> None:
    bench.live.addPoint(axis, 5, ras(*np.where(np.arange(3) == 2 - axis, 5, 6)), positive=True)
    bench.assertNothing(5, axis)
    bench.workers.answer()
    bench.assertAnswered(5, axis)
    assert Segmentations.annotatedSlices(bench.segmentation, bench.volume, axis) == [5]


def test_the_time_from_click_to_mask_is_told(bench: Bench) -> None:
    times: list[float] = []
    bench.live.timed.connect(times.append)
    bench.click(8, 7)
    bench.now += 0.125
    bench.workers.answer()
    assert times == [pytest.approx(0.125)]


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


@pytest.mark.parametrize(
    "change",
    [
        leaveTheSlice,
        chooseAnotherSegment,
        chooseAnotherModel,
        chooseAnotherVolume,
        changeTheVolume,
        moveTheVolume,
        clickAgain,
        dropAPoint,
        undo,
        leaveTheModule,
        removeTheSegment,
        renameTheSegment,
    ],
)
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


def test_accepting_while_waiting_keeps_the_answer_that_comes(bench: Bench) -> None:
    bench.click(8, 7)
    bench.live.accept()
    bench.workers.answer()
    assert not bench.live.hasPreview
    bench.assertAnswered()


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


# ------------------------------------------------------------------------------------------------ without nodes


HERE, THERE = ("liver", 0, 2), ("liver", 0, 3)


def questionAt(place: Place, label: int = 1) -> Question:
    return Question("v", Model(), "s", place[0], "liver", *place[1:], SlicePrompt(((1, 2, 3),), (label,)))


class Desk:
    """Asks what a test says is to be asked, and writes down what it is told."""

    def __init__(self) -> None:
        self.workers, self.now, self.told = FakeWorkers(), 5.0, list[tuple[Any, ...]]()
        self.workers.volumes["v"] = None
        self.wanted = {HERE: questionAt(HERE), THERE: questionAt(THERE)}
        self.complaint: str | None = None
        self.asking = Asking(
            self.workers,  # type: ignore[arg-type]
            Lookahead(self.workers),  # type: ignore[arg-type]
            lambda: self.now,
            questionOf=self.wanted.get,
            isCurrent=lambda question: self.wanted.get(question.place) == question,
            onAnswer=self.take,
            onAnswered=lambda *told: self.told.append(("answered", *told)),
            onFailed=lambda *told: self.told.append(("failed", *told)),
            tell=lambda message: self.told.append(("told", message)),
        )

    def take(self, question: Question, mask: Any) -> None:
        if self.complaint is not None:
            raise InputError(self.complaint)

    @property
    def asked(self) -> list[int]:
        """The slices that were asked for."""
        return [request["prompt"]["index"] for request in self.workers.asked("predict")]


def test_what_is_owed_is_asked_in_turn_beginning_with_the_slice_in_use() -> None:
    desk = Desk()
    for place in (HERE, THERE):
        desk.asking.oweAnew(place)
    assert desk.asked == []
    assert desk.asking.askOwed(first=THERE[1:])
    desk.now += 2
    desk.workers.answer()
    assert desk.told == [("answered", THERE, 2.0, False)]
    assert desk.asking.askOwed(first=THERE[1:])
    desk.workers.answer()
    assert desk.asked == [3, 2]
    assert not desk.asking.askOwed(first=None)


def test_the_time_counts_from_the_newest_prompt() -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    desk.now += 4
    desk.wanted[HERE] = questionAt(HERE, 0)
    desk.asking.ask(HERE)
    desk.now += 1
    desk.workers.answer(0)
    assert desk.told == []
    desk.workers.answer(1)
    assert desk.told == [("answered", HERE, 1.0, False)]


@pytest.mark.parametrize(
    "forget", [lambda a: a.forgive(HERE), lambda a: a.forgiveSegment("liver"), lambda a: a.clear()]
)
def test_an_answer_that_is_not_owed_any_more_is_dropped(forget: Callable[[Asking], None]) -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    forget(desk.asking)
    desk.workers.answer()
    assert desk.told == []
    assert not desk.asking.isUnderWay


def test_what_is_given_up_stays_owed_and_can_be_asked_again() -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    desk.asking.giveUp()
    assert not desk.asking.isUnderWay
    assert desk.asking.isOwed(HERE)
    assert desk.asking.askOwed(first=None)
    assert desk.asked == [2, 2]


def test_only_the_next_mask_is_accepted_at_once() -> None:
    desk = Desk()
    desk.asking.acceptAtOnce()
    for place in (HERE, THERE):
        desk.asking.ask(place)
        desk.workers.answer()
    assert [told[-1] for told in desk.told] == [True, False]


def test_a_failure_takes_back_that_the_mask_is_accepted_at_once() -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    desk.asking.acceptAtOnce()
    desk.workers.fail("input", "No.")
    desk.asking.ask(THERE)
    desk.workers.answer()
    assert desk.told == [("failed", HERE, "No."), ("answered", THERE, 0.0, False)]


def test_a_question_without_an_answer_is_not_asked_again_before_it_changes() -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    desk.workers.fail("defect", "It broke.")
    assert not desk.asking.askOwed(first=None)
    desk.wanted[HERE] = questionAt(HERE, 0)
    assert desk.asking.askOwed(first=None)


def test_a_mask_that_cannot_be_shown_is_told_and_stays_owed() -> None:
    desk = Desk()
    desk.complaint = "The segment is gone."
    desk.asking.ask(HERE)
    desk.workers.answer()
    assert desk.told == [("told", "The segment is gone.")]
    assert desk.asking.isOwed(HERE)
    assert not desk.asking.askOwed(first=None)


def test_a_dead_worker_is_asked_once_more_and_after_an_answer_once_more_again() -> None:
    desk = Desk()
    desk.asking.ask(HERE)
    desk.workers.fail("dead", "It ended.")
    assert desk.told == [("told", "It ended. Your click is being answered again.")]
    desk.workers.answer()
    desk.asking.ask(HERE)
    desk.workers.fail("dead", "It ended.")
    desk.workers.fail("dead", "It ended.")
    assert [told[0] for told in desk.told] == ["told", "answered", "told", "failed"]
    assert len(desk.asked) == 4


def test_a_newer_question_stays_under_way_when_an_older_one_ends() -> None:
    older, newer = questionAt(HERE), questionAt(THERE)
    pending = Pending().asked(older).asked(newer)
    assert pending.ended(older) == pending
    assert pending.ended(newer).question is None


def test_each_state_is_made_of_the_one_before_and_leaves_that_as_it_was() -> None:
    question = questionAt(HERE)
    before = Pending(retried=question, refused=question, isAcceptedAtOnce=True)
    after = before.asked(question)
    assert (after.question, after.refused, after.retried, after.isAcceptedAtOnce) == (question, None, question, True)
    assert after.answered() == Pending(question=question)
    assert before == Pending(None, question, question, True)


def test_advice_that_comes_with_a_mask_is_told_after_it_and_once() -> None:
    desk = Desk()
    for place in (HERE, THERE):
        desk.asking.ask(place)
        desk.workers.answer(advice="Choose the small base model.")
    assert [told[0] for told in desk.told] == ["answered", "told", "answered"]
    assert desk.told[1][1] == "Choose the small base model."
