"""Steps that are taken back and done again."""

from __future__ import annotations

from FewShotSegSlicer.Prompting.History import History, PromptStep, SliceState
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt

CLICKS = SlicePrompt(((1.0, 2.0, 3.0), (4.0, 5.0, 3.0)), (1, 0))


def aStep(index: int) -> PromptStep:
    return PromptStep("liver", 0, index, SliceState(SlicePrompt()), SliceState(CLICKS))


def test_steps_are_taken_back_last_first_and_done_again_in_order() -> None:
    history, steps = History(), [aStep(n) for n in range(5)]
    for step in steps:
        history.push(step)
    assert [history.undo() for _ in range(6)] == [*reversed(steps), None]
    assert [history.redo() for _ in range(6)] == [*steps, None]


def test_a_new_step_ends_what_could_be_done_again() -> None:
    history = History()
    history.push(aStep(0))
    history.undo()
    assert history.next is not None
    history.push(aStep(1))
    assert history.next is None
    assert history.redo() is None


def test_the_oldest_steps_are_forgotten() -> None:
    history = History(limit=3)
    for number in range(5):
        history.push(aStep(number))
    assert [step.index for step in iter(history.undo, None)] == [4, 3, 2]
