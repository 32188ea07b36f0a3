"""Which slice is viewed, and which one is worked on."""

from __future__ import annotations

import pytest

from FewShotSegSlicer.Prompting.ViewedSlices import ViewedSlices


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def viewed(clock: Clock) -> ViewedSlices:
    """Three views that have just appeared."""
    made = ViewedSlices(clock)
    for where, view in (((1, 6), "Green"), ((2, 11), "Yellow"), ((0, 2), "Red")):
        made.show(where, view)
    return made


def test_of_views_that_appear_together_the_first_is_active(viewed: ViewedSlices) -> None:
    assert viewed.active == (1, 6)
    assert viewed.inOrder()[0] == (1, 6)
    assert sorted(viewed.inOrder()) == [(0, 2), (1, 6), (2, 11)]


def test_the_view_that_is_scrolled_becomes_active(viewed: ViewedSlices) -> None:
    viewed.show((0, 3), "Red")
    assert viewed.active == (0, 3)
    assert (0, 3) in viewed
    assert (0, 2) not in viewed


def test_what_is_shown_already_changes_nothing(viewed: ViewedSlices, clock: Clock) -> None:
    clock.now += 5
    viewed.show((0, 2), "Red")
    viewed.close("Slice4")
    assert (viewed.active, viewed.changedAt) == ((1, 6), 10.0)
    viewed.close("Red")
    assert viewed.changedAt == 15.0
    assert (0, 2) not in viewed


def test_the_slice_that_is_worked_on_counts_as_viewed_until_a_view_shows_one(viewed: ViewedSlices) -> None:
    viewed.workOn((0, 7))
    assert viewed.active == (0, 7)
    assert (0, 7) in viewed
    viewed.show((0, 3), "Red")
    assert (0, 7) not in viewed


def test_without_views_the_console_says_what_is_active(clock: Clock) -> None:
    viewed = ViewedSlices(clock)
    for where in ((0, 1), (2, 4)):
        viewed.show(where, "")
        assert viewed.active == where
    assert viewed.inOrder() == [(2, 4)]


def test_closing_all_views_leaves_the_active_slice_and_forgetting_does_not(viewed: ViewedSlices) -> None:
    viewed.closeAll()
    assert (viewed.active, viewed.inOrder()) == ((1, 6), [])
    viewed.forget()
    assert viewed.active is None
