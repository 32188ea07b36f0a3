"""metrics.py against SimpleITK, MONAI and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.metrics import Scores, compare, hausdorff_mm, image_diagonal_mm, surface_distances

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

SPACING = (0.8, 1.1, 3.0)  # I, J, K


def blobs(seed: int, shape: tuple[int, int, int] = (14, 30, 26)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping irregular masks that keep clear of the border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    other = field + 0.4 * ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    inner = np.zeros(shape, dtype=bool)
    inner[2:-2, 3:-3, 3:-3] = True
    return (field > 0.01) & inner, (other > 0.01) & inner


def cube(shape: tuple[int, int, int], low: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = True
    return mask


def as_itk(mask: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(SPACING)
    return image


def as_monai(mask: np.ndarray) -> torch.Tensor:
    """One-hot (1, 1, K, J, I)."""
    return torch.from_numpy(mask)[None, None]


@pytest.mark.parametrize("seed", range(4))
def test_dice_and_iou_equal_those_of_simpleitk(seed):
    pred, ref = blobs(seed)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(as_itk(ref), as_itk(pred))
    scores = compare(pred, ref, SPACING)
    assert scores.dsc == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-12)
    assert scores.iou == pytest.approx(overlap.GetJaccardCoefficient(), abs=1e-12)


@pytest.mark.parametrize("shift", [(0, 0, 3), (0, 4, 0), (2, 0, 0), (2, -3, 4)])
def test_the_100th_percentile_is_the_hausdorff_distance_of_simpleitk(shift):
    shape = (16, 32, 32)
    ref = cube(shape, (4, 10, 10), (6, 9, 8))
    pred = np.roll(ref, shift, axis=(0, 1, 2))
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(as_itk(ref), as_itk(pred))
    distances = surface_distances(pred, ref, SPACING)
    assert hausdorff_mm(*distances) == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_surface_metrics_equal_those_of_monai(seed):
    pred, ref = blobs(seed)
    kji = list(SPACING[::-1])
    y_pred, y = as_monai(pred), as_monai(ref)
    scores = compare(pred, ref, SPACING, tolerance_mm=1.5)
    hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=kji)
    asd = compute_average_surface_distance(y_pred, y, include_background=True, symmetric=True, spacing=kji)
    nsd = compute_surface_dice(y_pred, y, class_thresholds=[1.5], include_background=True, spacing=kji)
    assert scores.hd95_mm == pytest.approx(float(hd95), abs=1e-4)
    assert scores.asd_mm == pytest.approx(float(asd), abs=1e-4)
    assert scores.nsd == pytest.approx(float(nsd), abs=1e-6)


def test_one_slice_gives_the_same_surface_metrics_as_monai_in_two_dimensions():
    pred, ref = (mask.any(axis=0, keepdims=True) for mask in blobs(7))
    pred[:, 12:], ref[:, :9] = False, False
    scores = compare(pred, ref, SPACING, tolerance_mm=1.5)
    y_pred, y = as_monai(pred)[:, :, 0], as_monai(ref)[:, :, 0]
    hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=[1.1, 0.8])
    nsd = compute_surface_dice(y_pred, y, class_thresholds=[1.5], include_background=True, spacing=[1.1, 0.8])
    assert scores.hd95_mm == pytest.approx(float(hd95), abs=1e-4)
    assert scores.nsd == pytest.approx(float(nsd), abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_may_lie_along_any_axis(axis):
    pred, ref = (mask[7:8] for mask in blobs(3))
    spacing_kji = np.array([3.0, 1.1, 0.8])
    flat = compare(pred, ref, spacing_kji[::-1])
    turned = compare(np.moveaxis(pred, 0, axis), np.moveaxis(ref, 0, axis), _moved(spacing_kji, axis)[::-1])
    assert turned == flat


def _moved(values: np.ndarray, axis: int) -> np.ndarray:
    return np.insert(values[1:], axis, values[0])


@pytest.mark.parametrize(("axis", "step_mm"), [(0, 3.0), (1, 1.1), (2, 0.8)])
def test_two_voxels_lie_apart_by_the_spacing_of_their_axis(axis, step_mm):
    pred = cube((9, 9, 9), (4, 4, 4), (1, 1, 1))
    scores = compare(pred, np.roll(pred, 2, axis=axis), SPACING, tolerance_mm=2 * step_mm)
    assert scores.hd95_mm == pytest.approx(2 * step_mm)
    assert scores.asd_mm == pytest.approx(2 * step_mm)
    assert (scores.dsc, scores.nsd) == (0.0, 1.0)
    assert compare(pred, np.roll(pred, 2, axis=axis), SPACING, tolerance_mm=2 * step_mm - 0.01).nsd == 0.0


def test_a_cube_shifted_by_half_its_edge_has_dice_one_half():
    ref = cube((20, 20, 30), (5, 5, 5), (10, 10, 10))
    scores = compare(np.roll(ref, 5, axis=2), ref, (1.0, 1.0, 1.0))
    assert scores.dsc == pytest.approx(0.5)
    assert scores.iou == pytest.approx(1 / 3)
    assert scores.volume_pred_ml == scores.volume_ref_ml == pytest.approx(1.0)


def test_concentric_spheres_lie_apart_by_the_difference_of_their_radii():
    z, y, x = np.ogrid[-30:31, -30:31, -30:31]
    radius = np.sqrt(x**2 + y**2 + z**2)
    scores = compare(radius <= 20.5, radius <= 16.5, (1.0, 1.0, 1.0), tolerance_mm=5.0)
    assert scores.asd_mm == pytest.approx(4.0, abs=0.25)
    assert scores.hd95_mm == pytest.approx(4.0, abs=0.5)
    assert scores.dsc == pytest.approx(2 * 16.5**3 / (20.5**3 + 16.5**3), abs=0.005)
    assert scores.volume_ref_ml == pytest.approx(4 / 3 * np.pi * 16.5**3 / 1000, rel=0.01)
    assert scores.nsd == 1.0


def test_equal_masks_score_perfectly_even_at_the_border_of_the_image():
    full = np.ones((3, 4, 5), dtype=bool)
    assert compare(full, full, SPACING) == Scores(1.0, 1.0, 0.0, 0.0, 1.0, *[60 * 0.8 * 1.1 * 3 / 1000] * 2)


def test_two_empty_masks_agree():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert compare(empty, empty, SPACING) == Scores(1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("pred_is_empty", [True, False])
def test_one_empty_mask_costs_the_diagonal_of_the_image(pred_is_empty):
    empty, one = np.zeros((3, 4, 5), dtype=bool), cube((3, 4, 5), (1, 1, 1), (1, 1, 1))
    scores = compare(*((empty, one) if pred_is_empty else (one, empty)), SPACING)
    diagonal = np.sqrt(9.0**2 + 4.4**2 + 4.0**2)
    assert (scores.dsc, scores.iou, scores.nsd) == (0.0, 0.0, 0.0)
    assert scores.hd95_mm == scores.asd_mm == pytest.approx(diagonal)


def test_one_voxel_against_itself_and_a_one_voxel_image_are_exact():
    one = np.ones((1, 1, 1), dtype=bool)
    assert compare(one, one, SPACING).hd95_mm == 0.0
    assert compare(one, ~one, SPACING).hd95_mm == pytest.approx(image_diagonal_mm((1, 1, 1), SPACING))


def test_the_crop_to_the_joint_box_changes_nothing():
    pred, ref = blobs(5)
    wide = [np.pad(mask, ((9, 2), (3, 20), (0, 11))) for mask in (pred, ref)]
    assert compare(*wide, SPACING) == compare(pred, ref, SPACING)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(0.0, 8.0))
def test_scores_stay_in_their_ranges_and_are_symmetric(seed, share, tolerance_mm):
    rng = np.random.default_rng(seed)
    pred, ref = rng.random((2, 4, 6, 5)) < share
    scores, swapped = compare(pred, ref, SPACING, tolerance_mm), compare(ref, pred, SPACING, tolerance_mm)
    assert 0 <= scores.iou <= scores.dsc <= 1
    assert scores.iou == pytest.approx(scores.dsc / (2 - scores.dsc))
    assert 0 <= scores.nsd <= 1
    assert scores.asd_mm <= image_diagonal_mm(pred.shape, SPACING)
    for name in ("dsc", "iou", "hd95_mm", "asd_mm", "nsd"):
        assert getattr(scores, name) == pytest.approx(getattr(swapped, name))


@pytest.mark.parametrize(
    ("pred", "ref", "spacing", "tolerance", "words"),
    [
        (np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), SPACING, 2.0, "differ in shape"),
        (np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), bool), SPACING, 2.0, "bool array"),
        (np.ones((2, 2), bool), np.ones((2, 2), bool), SPACING, 2.0, "bool array"),
        (np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), (1, 0, 1), 2.0, "three positive numbers"),
        (np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), SPACING, -1.0, "negative"),
    ],
)
def test_what_cannot_be_compared_is_refused(pred, ref, spacing, tolerance, words):
    with pytest.raises(InputError, match=words):
        compare(pred, ref, spacing, tolerance)


def test_surface_distances_of_an_empty_mask_are_refused():
    empty = np.zeros((3, 4, 5), dtype=bool)
    with pytest.raises(InputError, match="at least one voxel"):
        surface_distances(empty, ~empty, SPACING)
