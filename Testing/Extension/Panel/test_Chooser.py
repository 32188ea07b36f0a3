"""Combo boxes whose entries stand for values."""

from __future__ import annotations

from typing import Any

import pytest
import qt

from FewShotSegSlicer.Panel.Chooser import Chooser


class Bench:
    """A chooser, and the values it had when it told that it was changed."""

    def __init__(self) -> None:
        self.box, self.heard = qt.QComboBox(), list[Any]()
        self.chooser = Chooser(self.box, lambda: self.heard.append(self.chooser.value))

    @property
    def texts(self) -> list[str]:
        return [self.box.itemText(number) for number in range(self.box.count)]


@pytest.fixture
def bench(slicerHost: Any) -> Bench:
    return Bench()


def test_the_first_entry_is_chosen_and_told(bench: Bench) -> None:
    assert bench.chooser.value is None
    bench.chooser.offer([("One", 1), ("Two", (2, None))])
    assert (bench.texts, bench.chooser.value, bench.heard) == (["One", "Two"], 1, [1])
    bench.box.setCurrentIndex(1)
    assert bench.heard == [1, (2, None)]


def test_the_choice_stays_while_it_is_offered_wherever_it_stands(bench: Bench) -> None:
    bench.chooser.offer([("One", 1), ("Two", 2)])
    bench.chooser.choose(2)
    bench.chooser.offer([("Zwei", 2), ("Drei", 3)])
    assert (bench.chooser.value, bench.box.currentIndex, bench.heard) == (2, 0, [1, 2])
    bench.chooser.offer([("Drei", 3)])
    assert bench.heard == [1, 2, 3]
    bench.chooser.offer([])
    assert (bench.chooser.value, bench.heard) == (None, [1, 2, 3, None])


def test_to_offer_the_same_again_changes_and_tells_nothing(bench: Bench) -> None:
    for _ in range(3):
        bench.chooser.offer([("One", 1), ("Two", 2)])
    assert bench.heard == [1]


def test_what_is_not_offered_cannot_be_chosen(bench: Bench) -> None:
    bench.chooser.offer([("One", 1)])
    assert not bench.chooser.choose(7)
    assert bench.chooser.choose(1)
    assert bench.heard == [1]


def test_without_a_listener_it_chooses_too(slicerHost: Any) -> None:
    chooser = Chooser(qt.QComboBox())
    chooser.offer([("None", None), ("Some", "x")])
    assert chooser.choose("x")
    assert chooser.value == "x"
