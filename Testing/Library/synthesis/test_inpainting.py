"""Slices without their structures."""

from __future__ import annotations

import numpy as np
import pytest

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
