"""Outlines: what is drawn around a mask gives the same mask, whatever its shape."""

from __future__ import annotations

import matplotlib.path
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from FewShotSegLib.imaging.contours import area, filled, outlines


def mask_of(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


RING = "##### #...# #.#.# #...# #####"
TWO_HOLES = "####### #.#.#.# ####### #..#### #######"
SPIRAL = "##### #...# #.#.# #.### #...."


def filled_alike(mask: np.ndarray) -> np.ndarray:
    return filled([(polygon, False) for polygon in outlines(mask)], mask.shape)[0]


@pytest.mark.parametrize("text", ["#", "##", "#. .#", RING, TWO_HOLES, SPIRAL, "###. #.## ####", "...", "### ### ###"])
def test_a_mask_comes_back_to_the_pixel(text: str) -> None:
    mask = mask_of(text)
    assert np.array_equal(filled_alike(mask), mask)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_comes_back_to_the_pixel_and_has_the_area_of_its_pixels(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    assert np.array_equal(filled_alike(mask), mask)
    assert sum(map(area, polygons)) == mask.sum()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, (7, 8)))
def test_another_librarys_test_of_points_says_the_same(mask: np.ndarray) -> None:
    rows, columns = np.indices(mask.shape)
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = np.zeros(mask.size, bool)
    for polygon in outlines(mask):
        inside |= matplotlib.path.Path(polygon).contains_points(centres)
    assert np.array_equal(inside.reshape(mask.shape), mask)


def test_a_hole_is_in_the_outline_and_an_island_in_it_is_another_one() -> None:
    found = outlines(mask_of(RING))
    assert len(found) == 2
    assert sorted(map(area, found)) == [1.0, 16.0]


def test_holes_and_islands_may_be_polygons_of_their_own() -> None:
    def square(low: float, high: float) -> tuple[np.ndarray, bool]:
        return np.array([[low, low], [high, low], [high, high], [low, high]]), False

    mask, overlapping = filled([square(1.5, 2.5), square(0.5, 3.5), square(-0.5, 4.5)], (5, 5))
    assert np.array_equal(mask, mask_of(RING))
    assert not overlapping


@pytest.mark.parametrize(("exclusive", "count", "said"), [(False, 28, True), (True, 24, False)])
def test_polygons_that_overlap_in_part_are_joined_or_leave_out_what_they_share(
    exclusive: bool, count: int, said: bool
) -> None:
    corners = np.array([[0, 0], [4, 0], [4, 4], [0, 4]]) - 0.5
    mask, overlapping = filled([(corners, exclusive), (corners + 2, exclusive)], (8, 8))
    assert (mask.sum(), overlapping) == (count, said)


def test_outlines_through_the_centres_of_pixels_hold_those_pixels() -> None:
    outer, hole = np.array([[1, 1], [6, 1], [6, 6], [1, 6]]), np.array([[2, 2], [5, 2], [5, 5], [2, 5]])
    mask, _ = filled([(outer + 1e-5, False), (hole - 1e-5, False)], (8, 8))
    wanted = np.zeros((8, 8), bool)
    wanted[1:7, 1:7] = True
    wanted[3:5, 3:5] = False
    assert np.array_equal(mask, wanted)


def test_what_lies_beyond_the_slice_is_cut_off() -> None:
    corners = np.array([[-5.0, -5.0], [2.5, -5.0], [2.5, 90.0], [-5.0, 90.0]])
    mask, _ = filled([(corners, False)], (4, 6))
    assert np.array_equal(mask, np.tile(np.arange(6) < 3, (4, 1)))
