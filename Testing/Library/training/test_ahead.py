"""Batches drawn ahead by other processes."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor

from FewShotSegLib.training.ahead import AHEAD, DrawnByThreads, drawn_ahead

CPU = torch.device("cpu")


def numbered(step: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([step, os.getpid()]), torch.full((2, 2), float(step))


def refusing(step: int) -> tuple[Tensor]:
    if step == 3:
        raise ValueError("step 3 cannot be drawn")
    return (torch.zeros(1),)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_the_step_that_is_asked_for(workers: int) -> None:
    batches = list(drawn_ahead(numbered, 3, 9, workers=workers, device=CPU))
    assert [int(facts[0]) for facts, _ in batches] == [3, 4, 5, 6, 7, 8]
    assert [float(full[1, 1]) for _, full in batches] == [3, 4, 5, 6, 7, 8]
    drawn_here = {int(facts[1]) for facts, _ in batches} == {os.getpid()}
    assert drawn_here == (workers == 0)


def test_there_is_nothing_after_the_last_step() -> None:
    assert list(drawn_ahead(numbered, 5, 5, workers=0, device=CPU)) == []
    assert list(drawn_ahead(numbered, 6, 5, workers=0, device=CPU)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_in_a_process_is_told(workers: int) -> None:
    batches = drawn_ahead(refusing, 0, 5, workers=workers, device=CPU)
    with pytest.raises(ValueError, match="step 3 cannot be drawn"):
        list(batches)


def test_threads_draw_the_next_steps_while_one_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    drawn: list[int] = []
    reached = threading.Event()

    def draw(step: int) -> int:
        drawn.append(step)
        if step == AHEAD:
            reached.set()
        return 10 * step

    with DrawnByThreads(draw, torch.device("cuda")) as ahead:
        assert ahead(0) == 0
        assert reached.wait(10)  # nobody asked for it yet
        assert [ahead(step) for step in (1, 2, 3)] == [10, 20, 30]
    assert sorted(drawn) == sorted(set(drawn))


def test_on_a_processor_the_caller_draws_itself() -> None:
    drawn: list[int] = []
    with DrawnByThreads(lambda step: drawn.append(step) or threading.get_ident(), CPU) as ahead:
        assert ahead(7) == threading.get_ident()
    assert drawn == [7]


def test_an_error_of_a_thread_comes_where_the_step_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with DrawnByThreads(refusing, torch.device("cuda")) as ahead:
        assert float(ahead(2)[0]) == 0
        with pytest.raises(ValueError, match="step 3 cannot be drawn"):
            ahead(3)
