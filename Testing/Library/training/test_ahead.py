"""Batches drawn ahead by other processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from FewShotSegLib.training.ahead import drawn_ahead

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
