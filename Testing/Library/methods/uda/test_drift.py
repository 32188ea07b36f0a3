"""The gate behind translation: another contrast passes, moved anatomy does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.uda.drift import _similarity, drift_picture, edge_consistency
from Testing.Library.methods.uda.toys import Array, noise


def organs(seed: int = 0, shift: tuple[int, int] = (0, 0), leave_out: int | None = None) -> Array:
    """Smooth blobs of different grey, (4, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    image = np.zeros((4, 64, 64))
    for n in range(6):
        centre, radius, grey = rng.uniform(14, 50, 2), rng.uniform(6, 12), rng.uniform(0.3, 1)
        if n != leave_out:
            image[:, np.hypot(y - centre[0] - shift[0], x - centre[1] - shift[1]) < radius] = grey
    return gaussian_filter(image, (0, 1, 1))


def edges(image: Array) -> Array:
    strength = np.stack([gaussian_gradient_magnitude(piece, 1.0) for piece in image])
    return np.asarray(strength / np.percentile(strength, 99.5)).clip(0, 1)


@pytest.mark.parametrize("measure", ["ncc", "ssim"])
def test_the_gate_keeps_another_contrast_and_rejects_moved_anatomy(measure: Any) -> None:
    before = edges(organs())
    rng = np.random.default_rng(1)
    contrast = edges(np.clip(1 - organs() ** 0.7 + rng.normal(0, 0.01, (4, 64, 64)), 0, 1))
    moved, other = edges(organs(shift=(5, -4))), edges(organs(seed=9))
    good = edge_consistency(before, contrast, measure=measure)
    drifted = [edge_consistency(before, after, measure=measure) for after in (moved, other)]
    assert good.accepted
    assert good.reason == ""
    assert not any(found.accepted for found in drifted)
    assert "drifted" in drifted[0].reason
    assert good.score > 0.3 + max(found.score for found in drifted)


@pytest.mark.parametrize("measure", ["ncc", "ssim"])
def test_the_same_edges_score_one_and_none_at_all_score_nothing(measure: Any) -> None:
    before = edges(organs())
    assert edge_consistency(before, before, measure=measure).score == pytest.approx(1.0)
    wiped = edge_consistency(before, np.zeros_like(before), measure=measure)
    assert not wiped.accepted
    assert wiped.score < 0.2


def test_stronger_and_weaker_edges_correlate_all_the_same() -> None:
    before = edges(organs())
    assert edge_consistency(before, 0.5 * before).score == pytest.approx(1.0, abs=1e-9)


def test_the_slice_that_drifted_is_named_and_empty_ones_do_not_count() -> None:
    before = edges(organs())
    after = before.copy()
    after[2] = np.roll(after[2], 6, axis=0)
    before[0] = after[0] = 0
    found = edge_consistency(before, after)
    assert found.slices[0] is None
    assert found.worst_slice == 2
    assert found.slices[2] is not None
    assert found.score == pytest.approx((1 + 1 + found.slices[2]) / 3)


def test_a_volume_without_any_edge_is_not_accepted() -> None:
    nothing = edge_consistency(np.zeros((2, 8, 8)), np.zeros((2, 8, 8)))
    assert (nothing.score, nothing.accepted, nothing.worst_slice) == (0.0, False, None)


def test_ssim_agrees_with_its_definition_in_one_window() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((1, 33, 33)), rng.random((1, 33, 33))
    weights = gaussian_filter(np.pad([[1.0]], 16), 1.5)
    mean = lambda image: float((weights * image[0]).sum())  # noqa: E731
    va, vb, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    ssim = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (2 * cov + 9e-4) / (va + vb + 9e-4)
    only_middle = np.zeros((1, 33, 33))
    only_middle[0, 16, 16] = 1
    assert _similarity(a[0], b[0], only_middle[0] > 0) == pytest.approx(ssim, rel=1e-9)


def test_arrays_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        edge_consistency(noise(2, 8, 8), noise(3, 8, 8))
    with pytest.raises(InputError, match='"ncc" or "ssim"'):
        edge_consistency(noise(2, 8, 8), noise(2, 8, 8), measure="mse")  # type: ignore[arg-type]


def test_the_picture_shows_lost_edges_red_new_ones_cyan_and_common_ones_white() -> None:
    grey, before, after = np.full((4, 5), 0.5), np.zeros((4, 5)), np.zeros((4, 5))
    before[0], after[1] = 1, 1
    before[2] = after[2] = 1
    picture = drift_picture(grey, 2 * grey, before, after)
    assert picture.shape == (4, 15, 3)
    assert picture[0, 0].tolist() == [128] * 3
    assert picture[0, 5].tolist() == [255] * 3
    assert picture[:4, 12].tolist() == [[255, 0, 0], [0, 255, 255], [255, 255, 255], [0, 0, 0]]
