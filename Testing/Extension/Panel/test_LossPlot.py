"""Curves of a training: their numbers, and that they are painted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qt

from FewShotSegSlicer.Panel.LossPlot import LossPlot
from Testing.Extension.panels import pixelsOf

LOSS, DICE = (61, 127, 209), (46, 158, 79)
SIZE = (300, 120)


@pytest.fixture
def plot(slicerHost: Any) -> LossPlot:
    label = qt.QLabel()
    label.resize(*SIZE)
    return LossPlot(label)


def message(step: int, total: int = 100, text: str = "adapting", **metrics: float) -> dict[str, Any]:
    return {"step": step, "total": total, "message": text, "metrics": metrics}


def painted(plot: LossPlot, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour, below the legend."""
    pixels = pixelsOf(plot._label.pixmap).astype(int)
    found = np.argwhere(np.abs(pixels - color).max(axis=-1) < 30)
    return found[found[:, 0] > 20]


def test_the_loss_is_an_exponential_mean_of_what_was_told(plot: LossPlot) -> None:
    values = [1.0, 0.2, 0.7, 0.1]
    for step, value in enumerate(values):
        plot.add(message(step, loss=value))
    weights = np.array([0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1])
    assert plot.loss[-1] == (3, pytest.approx(weights @ values))
    assert plot.loss[0] == (0, 1.0)


def test_only_messages_of_a_training_count(plot: LossPlot) -> None:
    plot.add({"step": 1, "total": 9, "message": "Loading."})
    plot.add(message(1, seconds=2.0))
    assert (plot.loss, plot.dice) == ([], [])
    plot.add(message(1, loss=0.5, score=0.4))
    assert (plot.loss, plot.dice) == ([(1, 0.5)], [(1, 0.4)])


def test_another_stage_begins_new_curves(plot: LossPlot) -> None:
    plot.add(message(50, text="estimating 1/2", loss=0.1, score=0.9))
    plot.add(message(1, text="adapting", loss=1.0))
    assert (plot.loss, plot.dice) == ([(1, 1.0)], [])


def test_long_trainings_are_thinned_and_keep_their_ends(plot: LossPlot) -> None:
    for step in range(5000):
        plot.add(message(step, 5000, loss=1.0))
    steps = [step for step, _value in plot.loss]
    assert len(steps) <= 400
    assert (steps[0], steps[-1]) == (0, 4999)
    assert steps == sorted(set(steps))


def test_curves_are_painted_from_left_to_right_and_a_falling_loss_falls(plot: LossPlot) -> None:
    for step in range(0, 101, 5):
        plot.add(message(step, loss=float(np.exp(-step / 10)), score=step / 100))
    loss, dice = painted(plot, LOSS), painted(plot, DICE)
    for curve in (loss, dice):
        assert curve[:, 1].min() < 20
        assert curve[:, 1].max() > SIZE[0] - 40  # the numbers stand right of it
    left, right = loss[:, 1] < 60, loss[:, 1] > 200
    assert loss[left, 0].mean() < loss[right, 0].mean() - 20
    left, right = dice[:, 1] < 60, dice[:, 1] > 200
    assert dice[left, 0].mean() > dice[right, 0].mean() + 20


def test_a_painter_is_ended_also_when_painting_fails(plot: LossPlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Slicer crashes as soon as the pixmap goes."""
    painters: list[Any] = []

    def fail(painter: Any, _width: int, _height: int) -> None:
        painters.append(painter)
        raise ValueError("wrong arguments")

    monkeypatch.setattr(plot, "_paintOn", fail)
    with pytest.raises(ValueError, match="wrong arguments"):
        plot.add(message(1, loss=0.5))
    assert [painter.isActive() for painter in painters] == [False]


def test_clearing_takes_the_picture_away(plot: LossPlot) -> None:
    plot.add(message(1, loss=0.5))
    assert not plot._label.pixmap.isNull()
    plot.clear()
    assert (plot.loss, plot.stage, plot._label.pixmap.isNull()) == ([], "", True)
