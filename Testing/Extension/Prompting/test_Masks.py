"""Previews, and what was accepted, in step with the history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from FewShotSegSlicer.Prompting.History import PromptStep, PropagationStep, SliceState
from FewShotSegSlicer.Prompting.Masks import Masks
from FewShotSegSlicer.Prompting.Prompts import Place, SlicePrompt
from Testing.Extension.bench import Bench

HERE, THERE = ("liver", 0, 2), ("liver", 0, 3)
CLICK = SlicePrompt(((1, 2, 3),), (1,))
SMALL, LARGE = np.eye(4, dtype=bool), np.ones((4, 4), bool)


class FakeWriter:
    """What is in the slices of a segmentation, as a writer would leave it."""

    def __init__(self) -> None:
        self.accepted: dict[Place, Any] = {}
        self.live: dict[Place, Any] = {}
        self.before: list[dict[Place, Any]] = []

    def showLive(self, segmentId: str, axis: int, index: int, mask: Any) -> None:
        self.live[segmentId, axis, index] = mask

    def restore(self, segmentId: str, axis: int, index: int) -> None:
        self.live.pop((segmentId, axis, index), None)

    def accept(self, segmentId: str, axis: int, index: int, mask: Any) -> None:
        self.acceptSlices(segmentId, axis, {index: mask})

    def acceptSlices(self, segmentId: str, axis: int, masks: dict[int, Any]) -> None:
        self.before.append(dict(self.accepted))
        for index, mask in masks.items():
            self.accepted[segmentId, axis, index] = mask
            self.live.pop((segmentId, axis, index), None)

    def undo(self) -> bool:
        if not self.before:
            return False
        self.accepted = self.before.pop()
        return True

    @property
    def shown(self) -> dict[Place, Any]:
        return {**self.accepted, **self.live}


@pytest.fixture
def masks() -> Masks:
    return Masks(FakeWriter())  # type: ignore[arg-type]


def clicked(masks: Masks, place: Place, mask: Any) -> PromptStep:
    """A click on a slice and its answer."""
    step = PromptStep(*place, SliceState(SlicePrompt()), SliceState(CLICK, isOwed=True))
    masks.history.push(step)
    masks.answer(place, SliceState(CLICK, mask))
    return step


def shown(masks: Masks) -> dict[Place, Any]:
    return masks.writer.shown  # type: ignore[attr-defined]


def test_an_answer_completes_the_step_that_asked(masks: Masks) -> None:
    step = clicked(masks, HERE, SMALL)
    assert masks.history.last is step
    assert (step.after.mask is SMALL, step.after.isOwed) == (True, False)
    assert masks.preview is not None
    assert (masks.preview.place, masks.preview.step) == (HERE, step)
    assert shown(masks) == {HERE: SMALL}


def test_a_late_answer_is_a_step_of_its_own_that_comes_after_the_others(masks: Masks) -> None:
    first = PromptStep(*HERE, SliceState(SlicePrompt()), SliceState(CLICK, isOwed=True))
    masks.history.push(first)
    second = clicked(masks, THERE, LARGE)
    masks.accept()
    masks.answer(HERE, SliceState(CLICK, SMALL))
    late = masks.history.last
    assert late is not first
    assert late is not second
    assert isinstance(late, PromptStep)
    assert (late.place, late.before.mask, late.after.mask is SMALL) == (HERE, None, True)
    assert first.after.isOwed


def test_what_was_accepted_is_taken_back_with_its_step_and_a_preview_is_not(masks: Masks) -> None:
    clicked(masks, HERE, SMALL)
    masks.accept()
    clicked(masks, THERE, LARGE)
    assert masks.undo() is not None
    assert shown(masks) == {HERE: SMALL, THERE: LARGE}  # the preview is the caller's to change
    masks.drop(THERE)
    masks.undo()
    assert shown(masks) == {}


def test_dropping_another_slice_leaves_the_preview(masks: Masks) -> None:
    clicked(masks, HERE, SMALL)
    masks.drop(THERE)
    assert masks.preview is not None
    masks.show(HERE, None)
    assert masks.preview is None
    assert shown(masks) == {}


def test_a_writer_that_has_forgotten_starts_the_history_anew(masks: Masks) -> None:
    clicked(masks, HERE, SMALL)
    masks.accept()
    masks.writer.undo()
    with pytest.raises(LookupError, match="changed too often"):
        masks.undo()
    assert masks.history.last is masks.history.next is None


def test_propagation_is_written_again_by_redo(masks: Masks) -> None:
    step = PropagationStep("liver", 0, 2, {2: SMALL, 3: LARGE}, {}, {})
    masks.history.push(step)
    masks.acceptMany(step)
    after = shown(masks)
    masks.undo()
    assert shown(masks) == {}
    assert masks.redo() is step
    assert shown(masks) == after


def test_redo_accepts_a_preview_that_was_accepted_before_the_step(masks: Masks) -> None:
    clicked(masks, HERE, SMALL)
    masks.accept()
    clicked(masks, THERE, LARGE)
    masks.undo()
    masks.drop(THERE)
    masks.undo()
    assert masks.redo() is not None
    masks.show(HERE, SMALL)  # as the caller does
    masks.redo()
    assert masks.preview is None
    assert masks.writer.accepted == {HERE: SMALL}  # type: ignore[attr-defined]


def test_a_removed_segment_takes_its_preview_and_the_history_along(masks: Masks) -> None:
    clicked(masks, HERE, SMALL)
    masks.forget("spleen")
    assert masks.preview is not None
    masks.forget("liver")
    assert masks.preview is None
    assert masks.history.last is None


# ------------------------------------------------------------------------------------------------- on real segments


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


def test_what_is_accepted_is_told_once_and_with_its_place() -> None:
    told: list[Place] = []
    masks = Masks(FakeWriter(), told.append)  # type: ignore[arg-type]
    clicked(masks, HERE, SMALL)
    assert told == []
    masks.accept()
    masks.accept()
    assert told == [HERE]
