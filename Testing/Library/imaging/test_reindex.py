"""Labels come to another grid exactly where it has the same voxels, and otherwise by the nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from FewShotSegLib.data.volume import Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.imaging.reindex import reindexed, resample_labelmap
from Testing.Library.grids import GEOMETRIES, affine_of


def random_labels(shape=(4, 5, 6)):
    return np.random.default_rng(3).integers(0, 5, shape).astype(np.uint8)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_the_same_voxels_in_another_order_are_put_back_exactly(order, signs):
    onto = Volume(np.zeros((4, 5, 6)), GEOMETRIES["oblique left-handed"])
    labels = random_labels()
    moved = labels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    # The affine of the turned array, from its own definition: where do its first voxel and its steps lie?
    index = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), axis=-1)[..., ::-1]  # i, j, k
    where = index.transpose(*order, 3)[tuple(slice(None, None, sign) for sign in signs)]
    step = np.stack([where[0, 0, 1], where[0, 1, 0], where[1, 0, 0]]) - where[0, 0, 0]
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = step.T, where[0, 0, 0]
    result = reindexed(Volume(moved, onto.affine @ turn), onto)
    assert result is not None
    assert np.array_equal(result.array, labels)
    assert result.same_geometry(onto)


def test_a_part_of_the_grid_is_placed_when_asked():
    onto = Volume(np.zeros((6, 7, 8)), GEOMETRIES["oblique"])
    shift = np.eye(4)
    shift[:3, 3] = 2, 1, 1
    part = Volume(random_labels(), onto.affine @ shift)
    assert reindexed(part, onto) is None
    placed = reindexed(part, onto, crop=True)
    assert placed is not None
    assert np.array_equal(placed.array[1:5, 1:6, 2:8], part.array)
    assert np.count_nonzero(placed.array) == np.count_nonzero(part.array)
    assert reindexed(Volume(random_labels((6, 7, 8)), part.affine), onto, crop=True) is None  # reaches out of the grid


@pytest.mark.parametrize(
    "affine",
    [affine_of(origin=(0.4, 0, 0)), affine_of(spacing=(1, 1, 1.2)), affine_of((0, 0, 30)), affine_of((3, 0, 0))],
)
def test_a_different_grid_is_not_the_same_voxels(affine):
    assert reindexed(Volume(random_labels(), affine), Volume(random_labels(), np.eye(4)), crop=True) is None


def test_resampling_takes_the_nearest_label_and_nothing_outside():
    source = Volume(random_labels((9, 10, 11)), affine_of((10, -20, 30), (1.5, 1, 2), (3, 4, 5)))
    onto = Volume(np.zeros((12, 13, 14)), affine_of((0, 5, 0), (1, 1.3, 1.1), (3, 4, 18), (1, 1, -1)))
    index = np.stack(np.meshgrid(*map(np.arange, onto.shape), indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    source_ijk = ijk_from_ras(source.affine, ras_from_ijk(onto.affine, index))
    expected = map_coordinates(source.array, source_ijk.T[::-1], order=0, mode="grid-constant").reshape(onto.shape)
    result = resample_labelmap(source, onto)
    assert result.array.dtype == source.array.dtype
    assert np.count_nonzero(result.array) > 100
    assert np.array_equal(result.array, expected)
