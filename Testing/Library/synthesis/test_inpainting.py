"""Slices without their structures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from FewShotSegLib.synthesis.inpainting import harmonic_fill, without_structures
from Testing.Library.synthesis.pieces import ELLIPSES, an_annotated_slice, an_ellipse


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_removing_structures_leaves_no_halo_no_hole_and_nothing_else_changed():
    piece = an_annotated_slice()
    removed = without_structures(piece)
    body = an_ellipse((64, 64), (50, 54), 0)
    assert np.abs(removed[body] - 0.3).max() < 0.08
    far = ~np.any([an_ellipse(c, (r[0] + 4, r[1] + 4), a) for c, r, a in ELLIPSES.values()], axis=0)
    np.testing.assert_array_equal(removed[far], piece.image[far])
    # The patch has the grain of its surroundings: neither glass nor sand.
    patch = an_ellipse((60, 40), (20, 14), 20)
    assert 0.003 < (removed - _smoothed(removed))[patch].std() < 0.03


def _smoothed(image):
    from scipy import ndimage

    return ndimage.gaussian_filter(image, 2.0)


def test_a_harmonic_function_is_restored_exactly_and_others_without_overshoot(rng):
    rows, columns = np.indices((50, 60)).astype(float)
    harmonic = 0.3 * rows - 0.2 * columns + 0.01 * (rows * columns) + 0.005 * (rows**2 - columns**2)
    region = np.hypot(rows - 24, columns - 30) < 15
    np.testing.assert_allclose(harmonic_fill(np.where(region, 0, harmonic), region), harmonic, atol=1e-9)
    noise = rng.random((50, 60))
    filled = harmonic_fill(noise, region)
    assert filled[region].min() > noise[~region].min()
    assert filled[region].max() < noise[~region].max()
    np.testing.assert_array_equal(filled[~region], noise[~region])


def test_a_region_at_the_border_is_filled_without_any_flow_over_the_edge(rng):
    image, region = rng.random((12, 14)), np.zeros((12, 14), bool)
    region[:5, :6] = region[9:, 10:] = True
    # The same equations, written pixel by pixel.
    number, rows = np.arange(image.size).reshape(image.shape), sparse.lil_array((image.size, image.size))
    wanted = image.copy().ravel()
    for (r, c), n in np.ndenumerate(number):
        if not region[r, c]:
            rows[n, n] = 1
            continue
        near = [(r + a, c + b) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        near = [(a, b) for a, b in near if 0 <= a < 12 and 0 <= b < 14]
        rows[n, n], wanted[n] = len(near), 0
        for place in near:
            rows[n, number[place]] = -1
    np.testing.assert_allclose(harmonic_fill(image, region).ravel(), spsolve(rows.tocsc(), wanted), atol=1e-9)


def test_without_surroundings_there_is_the_mean_and_without_a_region_nothing_changes(rng):
    image = rng.random((6, 7))
    assert np.unique(harmonic_fill(image, np.ones((6, 7), bool))) == image.mean()
    np.testing.assert_array_equal(harmonic_fill(image, np.zeros((6, 7), bool)), image)


def test_islands_inside_a_structure_go_with_it():
    piece = an_annotated_slice(ellipses={1: ELLIPSES[1]})
    vessel = an_ellipse((60, 40), (3, 3), 0)
    piece.labels[vessel] = 0
    piece.image[vessel] = 1.0
    assert without_structures(piece)[an_ellipse((60, 40), (25, 18), 20)].max() < 0.5


def test_a_slice_loses_its_structures_the_same_way_every_time_and_is_left_as_it_was():
    piece = an_annotated_slice(content=(128, 75))
    before = piece.image.copy()
    one = without_structures(piece)
    np.testing.assert_array_equal(one, without_structures(piece))
    np.testing.assert_array_equal(piece.image, before)
    assert not one[:, 75:].any()  # padding
    assert one.min() >= 0
    assert one.max() <= 1


def test_structures_too_small_to_have_a_grain_leave_a_smooth_patch():
    labels = np.zeros((128, 128), np.int32)
    labels[60:63, 60:63] = 1
    piece = dataclasses.replace(an_annotated_slice(ellipses={}), labels=labels)
    region = ndimage.distance_transform_edt(labels == 0) <= 2.5
    np.testing.assert_allclose(without_structures(piece)[region], harmonic_fill(piece.image, region)[region], atol=1e-6)
