"""Patches against slicing, analytic ramps and rotations, and MONAI's loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from scipy.spatial.transform import Rotation
from torch import Tensor

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.training.patches import Case, Change, PatchRecipe, PatchSource, case_of, cut, draw_change, patch_loss

UNIT = IntensitySpec("window", 0, 1, "unit")
GRID = Grid((1.0, 1.0, 1.0), (4, 8, 8))


def noise_case(rng: np.random.Generator, shape: tuple[int, int, int] = (9, 20, 22)) -> Case:
    return Case(rng.random(shape, dtype=np.float32), rng.random(shape) < 0.3, rng.random(shape) < 0.8)


def ball_case(shape: tuple[int, int, int], radius: float) -> Case:
    axes = np.ogrid[tuple(slice(-(size - 1) / 2, (size + 1) / 2) for size in shape)]
    mask = sum(axis**2 for axis in axes) < radius**2
    return Case(mask.astype(np.float32), mask)


def middle(shape: tuple[int, ...]) -> np.ndarray:
    return (np.array(shape) - 1) / 2


# ----------------------------------------------------------------------------------------------------------------- cut


def test_a_patch_without_changes_is_the_part_of_the_case(an_rng: np.random.Generator) -> None:
    case = noise_case(an_rng)
    patch = cut(case, np.array([2, 5, 6]) + middle((4, 8, 9)), (4, 8, 9))
    at = slice(2, 6), slice(5, 13), slice(6, 15)
    assert case.known is not None
    np.testing.assert_array_equal(patch.image, case.image[at])
    np.testing.assert_array_equal(patch.mask, case.mask[at])
    np.testing.assert_array_equal(patch.known, case.known[at])


@pytest.mark.parametrize("change", [Change(), Change(mirrored=(False, True, False))])
def test_beyond_the_case_there_is_black_background(an_rng: np.random.Generator, change: Change) -> None:
    case = noise_case(an_rng)
    patch = cut(case, middle((9, 20, 22)), (13, 20, 22), change)
    assert patch.image.shape == (13, 20, 22)
    for beyond in (slice(0, 2), slice(11, 13)):
        assert not patch.image[beyond].any()
        assert not patch.mask[beyond].any()
        assert patch.known[beyond].all()


@pytest.mark.parametrize("mirrored", [(True, False, False), (False, True, True)])
def test_mirroring_is_numpys_flip(an_rng: np.random.Generator, mirrored: tuple[bool, bool, bool]) -> None:
    case = noise_case(an_rng)
    plain, flipped = (cut(case, middle((9, 20, 22)), (5, 8, 8), Change(mirrored=m)) for m in ((False,) * 3, mirrored))
    axes = tuple(np.flatnonzero(mirrored))
    np.testing.assert_allclose(flipped.image, np.flip(plain.image.numpy(), axes), atol=1e-5)
    np.testing.assert_array_equal(flipped.mask, np.flip(plain.mask.numpy(), axes))
    np.testing.assert_array_equal(flipped.known, np.flip(plain.known.numpy(), axes))


def test_a_quarter_turn_within_the_slice_is_numpys(an_rng: np.random.Generator) -> None:
    case = noise_case(an_rng)
    plain, turned = (cut(case, middle((9, 20, 22)), (4, 8, 8), Change(angles_deg=(a, 0, 0))) for a in (0.0, 90.0))
    np.testing.assert_allclose(turned.image, np.rot90(plain.image.numpy(), -1, (1, 2)), atol=1e-5)
    np.testing.assert_array_equal(turned.mask, np.rot90(plain.mask.numpy(), -1, (1, 2)))


def test_turns_are_in_millimetres_and_agree_with_those_of_scipy() -> None:
    """A ramp is interpolated without error, so every voxel says where it was taken from."""
    shape, spacing, slope = (16, 48, 48), (0.5, 0.8, 2.5), np.array([0.012, 0.005, -0.009])
    d, h, w = (np.arange(size) * mm for size, mm in zip(shape, spacing[::-1], strict=True))
    ramp = 0.3 + slope[0] * d[:, None, None] + slope[1] * h[:, None] + slope[2] * w
    case = Case(ramp.astype(np.float32), ramp > 0.5, spacing_mm=spacing)
    centre, patch, angles = np.array([7.5, 20.0, 24.5]), (4, 12, 10), (20.0, -8.0, 5.0)
    found = cut(case, centre, patch, Change(angles_deg=angles, scale=1.1))
    offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in patch), indexing="ij"), -1) * spacing[::-1]
    turn = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()
    at = centre * spacing[::-1] + offsets @ turn.T / 1.1
    np.testing.assert_allclose(found.image, 0.3 + at @ slope, atol=2e-5)


def test_volume_grows_with_the_cube_of_the_scale_and_stays_under_turns() -> None:
    case, patch = ball_case((31, 31, 31), 7.3), (31, 31, 31)
    volumes = [
        int(cut(case, middle(patch), patch, change).mask.sum())
        for change in (Change(), Change(scale=1.9), Change(angles_deg=(30.0, 20.0, 10.0)))
    ]
    assert volumes[1] / volumes[0] == pytest.approx(1.9**3, rel=0.02)
    assert volumes[2] / volumes[0] == pytest.approx(1, rel=0.02)


def test_a_single_slice_stays_whole_when_it_is_tilted(an_rng: np.random.Generator) -> None:
    case = noise_case(an_rng, (1, 20, 20))
    tilted = cut(case, middle((1, 20, 20)), (1, 12, 12), Change(angles_deg=(0.0, 10.0, 10.0)))
    assert (tilted.image > 0).all()


def test_intensities_change_as_written_and_stay_between_0_and_1(an_rng: np.random.Generator) -> None:
    case = noise_case(an_rng)
    shaded = cut(case, middle((9, 20, 22)), (9, 20, 22), Change(gamma=1.5, gain=0.5, bias=0.1))
    np.testing.assert_allclose(shaded.image, case.image**1.5 * 0.5 + 0.1, rtol=1e-5)
    noisy = cut(case, middle((9, 20, 22)), (9, 20, 22), Change(gain=2.0, blur_sigma_px=1.0, noise_sd=0.2, noise_seed=1))
    assert 0 <= noisy.image.min() < noisy.image.max() <= 1
    again = cut(case, middle((9, 20, 22)), (9, 20, 22), Change(gain=2.0, blur_sigma_px=1.0, noise_sd=0.2, noise_seed=1))
    assert torch.equal(noisy.image, again.image)


# ---------------------------------------------------------------------------------------------------------------- draw


def test_augmentation_keeps_its_precision_under_autocast(an_rng: np.random.Generator) -> None:
    case = Case(an_rng.random((4, 20, 20), np.float32), np.zeros((4, 20, 20), bool), None, (1.0, 1.0, 1.0), "")
    change = Change(angles_deg=(7.0, 2.0, 0.0), gamma=1.2, blur_sigma_px=0.7)
    plain = cut(case, np.array([1.5, 9.5, 9.5]), (2, 12, 12), change).image
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cut(case, np.array([1.5, 9.5, 9.5]), (2, 12, 12), change).image, plain)


def test_patches_lie_within_the_case_and_most_show_the_structure(an_rng: np.random.Generator) -> None:
    mask = np.zeros((12, 40, 40), bool)
    mask[0, 1, 2] = mask[11, 20, 39] = True
    source = PatchSource([Case(np.zeros(mask.shape, np.float32), mask)], GRID, PatchRecipe(foreground=0.6))
    shown, corners = 0, []
    for _ in range(400):
        case, centre = source.place(an_rng)
        corners.append(centre - middle(GRID.patch))
        shown += bool(cut(case, centre, GRID.patch).mask.any())
    np.testing.assert_array_equal(np.min(corners, axis=0), 0)
    np.testing.assert_array_equal(np.max(corners, axis=0), np.array(mask.shape) - GRID.patch)
    assert np.array_equal(corners, np.rint(corners))
    assert 0.6 * 400 - 30 < shown < 0.62 * 400 + 30


def test_the_structure_is_not_always_in_the_centre(an_rng: np.random.Generator) -> None:
    mask = np.zeros((30, 40, 40), bool)
    mask[15, 20, 20] = True
    source = PatchSource([Case(np.zeros(mask.shape, np.float32), mask)], GRID, PatchRecipe(foreground=1.0))
    where = [np.argwhere(cut(*source.place(an_rng), GRID.patch).mask.numpy())[0] for _ in range(100)]
    assert set(np.array(where)[:, 1]) == {2, 3, 4, 5}  # the middle half of 8


def test_of_a_case_known_on_one_slice_every_patch_shows_some_of_it(an_exemplar: Exemplar, an_rng: Any) -> None:
    one = dataclasses.replace(an_exemplar, annotated_slices=(3,), labelmap=_only(an_exemplar.labelmap, 3))
    grid = Grid.of(one.volume, (4, 24, 24))
    case = case_of(one, 1, grid, IntensitySpec.auto(one.volume))
    assert case.known is not None
    assert np.flatnonzero(case.known.any(axis=(1, 2))).tolist() == [3]
    assert case.known[3].all()
    np.testing.assert_array_equal(case.mask[3], one.labelmap[3] == 1)
    source = PatchSource([case], grid, PatchRecipe(tilt_deg=0.0))
    patches = [source.draw(an_rng) for _ in range(40)]
    assert all(patch.known.any() and not patch.known.all() for patch in patches)


def _only(labelmap: np.ndarray, index: int) -> np.ndarray:
    kept = np.zeros_like(labelmap)
    kept[index] = labelmap[index]
    return kept


def test_slices_vouched_to_be_empty_are_known(an_exemplar: Exemplar) -> None:
    exemplar = dataclasses.replace(an_exemplar, empty_slices=(0,))
    case = case_of(exemplar, 2, Grid.of(exemplar.volume, (4, 24, 24)), IntensitySpec.auto(exemplar.volume))
    assert case.known is not None
    assert np.flatnonzero(case.known.all(axis=(1, 2))).tolist() == [0, 1, 3]
    whole = dataclasses.replace(exemplar, empty_slices=(0, 2, 4, 5))
    assert case_of(whole, 2, Grid.of(whole.volume, (4, 24, 24)), IntensitySpec.auto(whole.volume)).known is None


def test_a_grid_that_passes_by_the_annotated_slices_is_refused(an_exemplar: Exemplar) -> None:
    grid = Grid.of(an_exemplar.volume, (4, 24, 24), spacing_mm=(1.0, 1.0, 12.0))
    one = dataclasses.replace(an_exemplar, annotated_slices=(3,), labelmap=_only(an_exemplar.labelmap, 3))
    with pytest.raises(InputError, match="fall between those of the grid, which are 12 mm apart"):
        case_of(one, 1, grid, UNIT)
    with pytest.raises(InputError, match="has no structure with label 7"):
        case_of(one, 7, grid, UNIT)


def test_the_same_generator_gives_the_same_patches(an_rng: np.random.Generator) -> None:
    source = PatchSource([noise_case(an_rng), noise_case(an_rng)], GRID)
    first, again = ([source.draw(np.random.default_rng(5)) for _ in range(3)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)


def test_changes_stay_within_the_recipe_and_use_up_the_same_numbers() -> None:
    recipe = PatchRecipe(flip="all", scale=(0.9, 1.3), rotation_deg=12.0, tilt_deg=3.0, change_probability=0.5)
    changes = [draw_change(recipe, (True, True, False), np.random.default_rng(seed)) for seed in range(200)]
    moved = [change for change in changes if any(change.angles_deg)]
    assert 70 < len(moved) < 130
    assert all(0.9 <= change.scale <= 1.3 for change in moved)
    assert np.abs([change.angles_deg for change in moved]).max(axis=0) == pytest.approx([12, 3, 3], rel=0.1)
    assert all(change.scale == 1 for change in changes if change not in moved)
    assert {change.mirrored[2] for change in changes} == {False}
    assert {change.mirrored[:2] for change in changes} == {(a, b) for a in (False, True) for b in (False, True)}
    states = []
    for other in (recipe, PatchRecipe(change_probability=0.0), PatchRecipe(change_probability=1.0)):
        rng = np.random.default_rng(0)
        draw_change(other, (False, False, False), rng)
        states.append(rng.random())
    assert len(set(states)) == 1


def test_left_structures_are_never_mirrored_to_the_right(an_rng: np.random.Generator) -> None:
    case, recipe = noise_case(an_rng), PatchRecipe(flip="all")
    assert PatchSource([case], GRID, recipe, ["liver"]).mirrors == (True, True, True)
    assert PatchSource([case], GRID, recipe, ["liver", "left kidney"]).mirrors == (True, True, False)
    sagittal = Grid((1.0, 1.0, 1.0), (4, 8, 8), orientation="PSL")
    assert PatchSource([case], sagittal, recipe, ["kidney_l"]).mirrors == (False, True, True)
    careful = PatchRecipe(flip="not_sideways")
    assert PatchSource([case], GRID, careful, ["liver"]).mirrors == (True, True, False)
    assert PatchSource([case], GRID, PatchRecipe(), ["liver"]).mirrors == (False, False, False)


def test_a_kept_image_of_16_bits_gives_the_patch_of_its_floats(an_rng: np.random.Generator) -> None:
    case = noise_case(an_rng)
    kept = Case(np.rint(case.image * 65535).astype(np.uint16), case.mask, case.known, case.spacing_mm)
    change = Change(angles_deg=(10.0, 0.0, 0.0), scale=1.1, gain=0.9)
    for given in (Change(), change):
        one, other = (cut(c, np.array(case.image.shape) / 2, GRID.patch, given) for c in (case, kept))
        np.testing.assert_allclose(other.image, one.image, atol=2e-5)
        np.testing.assert_array_equal(other.mask, one.mask)


def test_changes_for_other_sources_are_drawn_as_for_its_own(an_rng: np.random.Generator) -> None:
    source = PatchSource([noise_case(an_rng)], GRID)
    assert source.change(np.random.default_rng(4)) == draw_change(
        PatchRecipe(), source.mirrors, np.random.default_rng(4)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchRecipe(scale=(1.2, 0.8)), '"scale" must be the smaller, then the larger'),
        (lambda: PatchRecipe(foreground=1.5), "foreground"),
        (lambda: PatchSource([], GRID), "at least one labelled case"),
        (lambda: Case(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 5), bool), name="p1"), "p1: .* differ in shape"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_with_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# ---------------------------------------------------------------------------------------------------------------- loss


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 2, 4, 6, 5, generator=generator)
    return logits.requires_grad_(), torch.rand(3, 4, 6, 5, generator=generator) < 0.4


def test_the_loss_is_that_of_monai_where_everything_is_known() -> None:
    logits, mask = batch()
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, mask[:, None].float())
    torch.testing.assert_close(patch_loss(logits, mask).mean(), theirs)
    torch.testing.assert_close(patch_loss(logits, mask, torch.ones_like(mask)), patch_loss(logits, mask))
    one = (logits[:, 1] - logits[:, 0])[:, None]
    torch.testing.assert_close(patch_loss(one, mask), patch_loss(logits, mask))


def test_unknown_voxels_neither_count_nor_teach() -> None:
    logits, mask = batch()
    known = torch.zeros_like(mask)
    known[:, 1:3] = True
    loss = patch_loss(logits, mask, known)
    torch.testing.assert_close(loss, patch_loss(logits[:, :, 1:3], mask[:, 1:3]))
    torch.testing.assert_close(loss, patch_loss(logits, mask ^ ~known, known))  # other labels where nobody looked
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1:3].all()


def test_a_patch_without_any_known_voxel_costs_nothing() -> None:
    logits, mask = batch()
    known = torch.ones_like(mask)
    known[1] = False
    loss = patch_loss(logits, mask, known)
    assert loss[1] == 0
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[1].any()
    assert gradient.isfinite().all()


def test_a_structure_against_all_else_has_one_or_two_channels() -> None:
    with pytest.raises(InputError, match="1 or 2 channels, got 3"):
        patch_loss(torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------------------- predict


def test_patches_are_drawn_around_small_structures_as_often_as_around_large_ones() -> None:
    labels = np.zeros((8, 64, 64), np.uint8)
    labels[:, :40, :40], labels[4, 60:62, 60:62] = 1, 2
    grid = Grid((1.0, 1.0, 1.0), (4, 8, 8))
    recipe = PatchRecipe(foreground=1.0, change_probability=0.0)
    source = PatchSource([Case(np.zeros(labels.shape, np.float32), labels)], grid, recipe)
    drawn = [source.draw(np.random.default_rng(seed)).mask for seed in range(60)]
    shows_small = sum(bool((patch == 2).any()) for patch in drawn)
    assert 15 < shows_small < 45
    assert {int(value) for patch in drawn for value in patch.unique()} == {0, 1, 2}


def test_an_elastic_change_moves_image_and_mask_alike_and_smoothly(an_rng: np.random.Generator) -> None:
    """A ramp along an axis says where each voxel of the patch came from."""
    shape = (20, 60, 60)
    ramps = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    spacing, patch = (1.0, 2.0, 4.0), (8, 24, 24)
    change = Change(elastic_mm=3.0, elastic_seed=5)
    centre = (np.array(shape) - 1) / 2
    moved = []
    for axis, ramp in enumerate(ramps):
        case = Case(ramp.astype(np.float32), ramp > 0.5, None, spacing)
        plain, bent = cut(case, centre, patch), cut(case, centre, patch, change)
        moved.append((bent.image - plain.image).numpy() * shape[axis] * spacing[2 - axis])  # mm
        clear = np.abs(bent.image.numpy() - 0.5) > 1 / shape[axis]  # the mask is that of the nearest voxel
        np.testing.assert_array_equal(bent.mask.numpy()[clear], (bent.image.numpy() > 0.5)[clear])
    for along in moved:
        assert 0.5 < np.abs(along).mean() < 6.0 + 1e-3
        assert np.abs(along).max() <= 6.0 + 1e-2  # two standard deviations
        assert np.abs(np.diff(along, axis=2)).max() < 3.0  # from pixel to pixel


def test_edges_get_the_changes_of_shape_and_none_of_intensities() -> None:
    recipe = PatchRecipe(elastic_mm=2.0, change_probability=1.0).unshaded()
    change = draw_change(recipe, (False, False, False), np.random.default_rng(0))
    assert change.moves
    assert (change.gain, change.bias, change.gamma, change.blur_sigma_px, change.noise_sd) == (1.0, 0.0, 1.0, 0.0, 0.0)
    assert change.elastic_mm == 2.0
