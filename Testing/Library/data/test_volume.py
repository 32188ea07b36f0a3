"""Volumes know where their voxels are; labelmaps know what their values mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from FewShotSegLib.data.volume import Labelmap, Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError
from Testing.Library.grids import GEOMETRIES, affine_of, blocks


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 3000, (4, 5, 6)).astype(np.int16)


# ---------------------------------------------------------------------------------------------------- the object


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 5)), "3 dimensions .* got 2"),
        (np.zeros((2, 3, 4, 5)), "3 dimensions .* got 4"),
        (np.zeros((0, 3, 4)), r"at least one voxel, got the shape \(0, 3, 4\)"),
        (np.zeros((2, 2, 2), complex), "real numbers"),
        (np.array([[["a"]]]), "real numbers"),
        (np.array([[[np.nan, 1, np.inf]]]), "2 voxels have no value"),
        (np.array([[[-np.inf, 1, 1]]], np.float32), "1 voxel has no value"),
    ],
)
def test_an_array_that_is_no_volume_is_refused(bad, message):
    with pytest.raises(InputError, match=message):
        Volume(bad, np.eye(4))


@pytest.mark.parametrize(
    "bad", [np.eye(3), np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.diag([1, 1, 1, 2])]
)
def test_an_affine_that_places_nothing_is_refused(bad, array):
    with pytest.raises(InputError, match="affine"):
        Volume(array, bad)


def test_two_axes_along_one_line_are_refused_and_tiny_voxels_are_not(array):
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    with pytest.raises(InputError, match="invertible"):
        Volume(array, flat)
    assert Volume(array, np.diag([1e-5, 1e-5, 1e-5, 1])).spacing_mm == pytest.approx([1e-5] * 3)


def test_spacing_is_in_ijk_order(array):
    volume = Volume(array, GEOMETRIES["oblique"])
    assert volume.spacing_mm == pytest.approx([0.8, 1.1, 3.3])
    assert volume.shape == (4, 5, 6)


def test_like_keeps_the_place_and_refuses_another_shape(array):
    volume = Volume(array, GEOMETRIES["oblique"])
    assert np.array_equal(volume.like(array > 0).affine, volume.affine)
    with pytest.raises(InputError, match="does not fit"):
        volume.like(array[1:])


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((4, 5, 6), (1, 1, 1), 0),
        ((4, 5, 6), (1, 1, 5), 0),
        ((4, 5, 6), (1, 5, 1), 1),
        ((4, 5, 6), (5, 1, 1), 2),
        ((4, 5, 6), (3, 3, 1), 1),
        ((4, 5, 6), (1.0004, 1.0001, 1), 0),
        ((4, 5, 1), (1, 1, 5), 2),
        ((4, 1, 6), (1, 1, 5), 1),
        ((1, 5, 6), (4, 4, 1), 0),
    ],
)
def test_the_acquisition_axis_is_across_the_thick_slices(shape, spacing, axis):
    volume = Volume(np.zeros(shape), GEOMETRIES["oblique"] / [0.8, 1.1, 3.3, 1] * [*spacing, 1])
    assert volume.acquisition_axis == axis


def test_geometry_is_compared_where_the_difference_is_largest(array):
    volume = Volume(array, np.eye(4))
    assert volume.same_geometry(Volume(array, affine_of(origin=(5e-4, 0, 0))))
    assert not volume.same_geometry(Volume(array, affine_of(origin=(2e-3, 0, 0))))
    assert not volume.same_geometry(Volume(array[1:], np.eye(4)))
    long = np.zeros((1, 1, 400))
    stretched = Volume(long, affine_of(spacing=(1 + 5e-6, 1, 1)))  # 5e-6 mm at the first voxel, 2e-3 mm at the last
    assert not Volume(long, np.eye(4)).same_geometry(stretched)


numbers = st.floats(-500, 500)
spacings = st.floats(0.05, 20)


@given(
    angles=st.tuples(numbers, numbers, numbers),
    spacing=st.tuples(spacings, spacings, spacings),
    origin=st.tuples(numbers, numbers, numbers),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    points=st.lists(st.tuples(numbers, numbers, numbers), max_size=4),
)
def test_ijk_to_ras_and_back_is_the_identity(angles, spacing, origin, flips, points):
    affine = affine_of(angles, spacing, origin, flips)
    points_ijk = np.reshape(points, (-1, 3))
    back = ijk_from_ras(affine, ras_from_ijk(affine, points_ijk))
    assert back.shape == points_ijk.shape
    assert back == pytest.approx(points_ijk, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ labelmaps


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ({0: "background"}, "from 1 to 65535, got 0"),
        ({-1: "a"}, "got -1"),
        ({1.5: "a"}, r"got 1\.5"),
        ({1: ""}, "needs a name"),
        ({1: None}, "needs a name"),
        ({1: "liver", 2: "liver"}, 'same structure name "liver"'),
    ],
)
def test_structures_without_sense_are_refused(structures, message):
    with pytest.raises(InputError, match=message):
        Labelmap(Volume(blocks(), np.eye(4)), structures)


def test_a_labelmap_of_signed_numbers_is_refused():
    with pytest.raises(InputError, match="unsigned integers, got int16"):
        Labelmap(Volume(blocks().astype(np.int16), np.eye(4)), {1: "a"})
