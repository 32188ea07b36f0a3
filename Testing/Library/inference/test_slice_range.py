"""Where along the slices a structure begins and ends: waists, levels, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.inference.slice_range import slice_ranges

HUMP = [0.0, 0, 5, 30, 60, 80, 60, 30, 5, 0, 0]
LARGER = [400.0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0]  # something alike, elsewhere


def ranges(*rows: list[float], together: list[list[int]], iou: float = 0.0) -> list[tuple[int, int]]:
    return slice_ranges(np.array(rows), together, lambda row, one, other: iou)


def test_what_ends_by_itself_is_kept_whole():
    ((first, last),) = ranges(HUMP, together=[[0]])
    assert first <= 2
    assert last >= 8


def test_what_lies_behind_a_gap_is_cut():
    ((first, last),) = ranges([*HUMP, *[20.0, 30, 20]], together=[[0]])
    assert first <= 2
    assert 8 <= last < 11


def test_what_lies_behind_a_waist_is_cut():
    ((first, last),) = ranges([40.0, 40, 40, 10, 40, 80, 100, 80, 40, 0], together=[[0]])
    assert (first, last) == (3, 9)


def test_what_lies_in_the_same_place_beyond_a_waist_is_the_same_structure():
    vessel = [40.0, 40, 40, 10, 40, 80, 100, 80, 5, 40, 40]
    assert ranges(vessel, together=[[0]], iou=0.49) == [(3, 8)]
    assert ranges(vessel, together=[[0]], iou=0.5) == [(0, 10)]


def test_masks_are_compared_on_both_sides_of_the_waist_and_not_in_it():
    asked = []

    def iou(row, one, other):
        asked.append((row, one, other))
        return 0.0

    slice_ranges(np.array([[0.0] * 9, [30.0, 60, 5, 2, 60, 100, 60, 0, 0]]), [[0, 1]], iou)
    assert asked == [(1, 4, 1)]


def test_of_what_is_shown_alone_the_side_with_most_is_kept_and_not_the_highest_slice():
    apart = [0.0, 10, 90, 20, 0, 0, 50, 60, 70, 60, 50, 0]
    assert ranges(apart, together=[[0]]) == [(4, 11)]
    assert ranges(apart, apart, together=[[0, 1]])[0] == (0, 4)


def test_a_low_peak_beside_a_high_one_is_not_the_side_with_most():
    assert ranges([0.0, 60, 90, 60, 0, 0, 5, 20, 5, 10, 5, 0], together=[[0]]) == [(0, 5)]


@pytest.mark.parametrize("dip", [50.0, 90.0])
def test_a_dip_is_no_waist(dip):
    assert ranges([60.0, 90, 100, dip, 100, 90, 60], together=[[0]]) == [(0, 6)]


def test_a_slice_that_found_nothing_amid_many_that_did_is_no_gap():
    # As a voxel-sized stride makes them: the neighbours' share of the smoothing fills it a little, a real gap is wider.
    weights = [40.0, 80, 100, 35, 100, 80, 40]
    assert ranges(weights, together=[[0]]) == [(0, 6)]


def test_the_level_is_where_all_is_found_that_slices_show_together():
    spleen = np.add(LARGER, HUMP).tolist()
    kidney = HUMP
    alone, _ = ranges(spleen, kidney, together=[[0], [1]])
    beside, kidneys = ranges(spleen, kidney, together=[[0, 1]])
    assert alone[0] == 0  # of itself the larger one would be taken
    assert beside[0] >= 2
    assert beside[1] >= 8
    assert kidneys[0] <= 2


def test_the_order_of_the_slices_does_not_matter():
    rows = np.array([np.add(LARGER, HUMP), HUMP])
    forwards, backwards = ranges(*rows, together=[[0, 1]]), ranges(*rows[:, ::-1], together=[[0, 1]])
    last = rows.shape[1] - 1
    assert backwards == [(last - b, last - a) for a, b in forwards]


def test_scale_does_not_matter():
    rows = np.array([np.add(LARGER, HUMP), HUMP])
    assert ranges(*rows, together=[[0, 1]]) == ranges(*(rows * [[1e-3], [1e4]]), together=[[0, 1]])


def test_what_was_not_found_has_all_slices():
    assert ranges([0.0] * 5, [0.0, 1, 2, 1, 0], together=[[0, 1]])[0] == (0, 4)


@pytest.mark.parametrize("count", [1, 2])
def test_few_slices_are_kept(count):
    assert ranges([3.0] * count, together=[[0]]) == [(0, count - 1)]


def test_no_slices_are_refused():
    with pytest.raises(ValueError, match="no slices"):
        slice_ranges(np.zeros((2, 0)), [], lambda row, one, other: 0.0)
