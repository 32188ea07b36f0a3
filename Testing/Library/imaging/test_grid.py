"""The grid that cases are brought to: whatever the order, tilt and size of their voxels, the same things show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid, onto_grid, orientation_of
from Testing.conftest import BALL, BOX, LPS, axial, placed

GRID = Grid((2.0, 2.0, 4.0), (6, 20, 16))


def turned_about(affine: np.ndarray, shape: tuple[int, int, int], order: tuple[int, int, int], flips: tuple[int, ...]):
    """Affine (and array transformer) of the same voxels listed in another order of i, j, k, some backwards."""
    matrix, sizes = np.zeros((4, 4)), shape[::-1]
    matrix[3, 3] = 1
    for new, old in enumerate(order):
        matrix[old, new] = -1 if new in flips else 1
        matrix[old, 3] += sizes[old] - 1 if new in flips else 0

    def array_of(array: np.ndarray) -> np.ndarray:
        turned = array.transpose(2, 1, 0).transpose(order)
        turned = turned[tuple(slice(None, None, -1 if axis in flips else 1) for axis in range(3))]
        return np.ascontiguousarray(turned.transpose(2, 1, 0))

    return affine @ matrix, array_of


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (0, 1)), ((2, 0, 1), (1,)), ((1, 2, 0), (0, 2)), ((2, 1, 0), ())]
)
def test_the_order_of_the_voxels_in_a_file_does_not_matter(order: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    shape, affine = axial((1.5, 2.5, 3.0))
    volume, labels = placed(shape, affine)
    expected = onto_grid(volume.array, labels, affine, GRID)
    turned, array_of = turned_about(affine, shape, order, flips)
    found = onto_grid(array_of(volume.array), array_of(labels), turned, GRID)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_its_own_grid_a_case_stays_as_it_is() -> None:
    shape, affine = axial()
    volume, labels = placed(shape, affine)
    image, same = onto_grid(volume.array, labels, affine, GRID)
    np.testing.assert_array_equal(image, volume.array)
    np.testing.assert_array_equal(same, labels)


def test_another_spacing_shows_the_same_things_at_the_same_places() -> None:
    """Three voxels become one, whose middle is that of the second."""
    shape, affine = axial((1.0, 1.0, 2.0), (60, 81, 24))
    volume, labels = placed(shape, affine)
    image, coarse = onto_grid(volume.array, labels, affine, Grid((3.0, 3.0, 6.0), (1, 1, 1)))
    middles = LPS @ np.diag([3.0, 3.0, 6.0, 1.0])
    middles[:3, 3] = LPS[:3, :3] @ [1.0, 1.0, 2.0]
    expected, expected_labels = placed((8, 27, 20), middles)
    np.testing.assert_array_equal(coarse, expected_labels)
    for value in (BALL, BOX):
        assert image[coarse == value].mean() == pytest.approx(expected.array[coarse == value].mean(), rel=0.2)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 2.5, 4.0])
def test_a_ramp_stays_the_same_ramp(spacing: float) -> None:
    ramp = np.broadcast_to(np.arange(40.0) * 3 + 5, (1, 2, 40)).astype(np.float32)
    image, _ = onto_grid(ramp, np.zeros(ramp.shape, np.uint8), LPS @ np.eye(4), Grid((spacing, 1.0, 1.0), (1, 1, 1)))
    count = image.shape[2]
    assert count == round(40 / spacing)
    at = (np.arange(count) - (count - 1) / 2) * spacing + 19.5
    inside = slice(2, -2)
    np.testing.assert_allclose(image[0, 0, inside], at[inside] * 3 + 5, atol=0.05 if spacing > 1 else 1e-4)


def test_larger_voxels_average_and_labels_are_never_mixed() -> None:
    noise = np.random.default_rng(0).normal(size=(8, 64, 64)).astype(np.float32)
    labels = np.random.default_rng(1).choice(np.array([0, 3, 200], np.uint8), (8, 64, 64))
    image, coarse = onto_grid(noise, labels, LPS @ np.eye(4), Grid((4.0, 4.0, 1.0), (1, 1, 1)))
    assert image.shape == coarse.shape == (8, 16, 16)
    assert image.std() < 0.3  # picking one voxel of each would keep it at 1
    assert set(np.unique(coarse)) == {0, 3, 200}


def test_a_single_slice_stays_one() -> None:
    image, labels = onto_grid(np.ones((1, 10, 10)), np.ones((1, 10, 10), np.uint8), LPS @ np.eye(4), GRID)
    assert image.shape == labels.shape == (1, 5, 5)
    np.testing.assert_allclose(image, 1)


def test_orientation_is_the_nearest_of_the_anatomical_ones() -> None:
    tilted = LPS @ np.diag([1.0, 1.0, 5.0, 1.0])
    angle = np.radians(40)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert orientation_of(turn @ tilted) == "LPS"
    sagittal = np.zeros((4, 4))
    sagittal[[1, 2, 0, 3], [0, 1, 2, 3]] = [-1, -1, 1, 1]
    assert orientation_of(sagittal) == "PIR"
    volume = Volume(np.zeros((2, 2, 2)), sagittal * [2, 2, 3, 1])
    assert Grid.of(volume, (1, 8, 8)) == Grid((2.0, 2.0, 3.0), (1, 8, 8), "PIR")
    assert Grid.of(volume, (1, 8, 8), (1, 1, 1)).spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((1.0, 0.0, 1.0), (1, 1, 1)), "spacing is three positive"),
        (((1.0, 1.0, 1.0), (1, 0, 1)), "patch is three sizes"),
        (((1.0, 1.0, 1.0), (1, 1, 1), "LRS"), "orientation is like"),
        (((1.0, 1.0, 1.0), (1, 1, 1), "xyz"), "orientation is like"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Grid(*arguments)
