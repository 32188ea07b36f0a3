"""Cutting out, transforming and laying down, against analytic ellipses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.synthesis.pasting import (
    Pasted,
    bordered,
    cutouts_of,
    displacement,
    grid,
    hidden,
    interpolated,
    moved,
    moving_together,
)
from FewShotSegLib.synthesis.plan import SynthesisRecipe
from Testing.Library.synthesis.pieces import (
    NAMES,
    PLAIN,
    SIZE,
    a_body,
    a_slice,
    a_synthesizer,
    an_annotated_slice,
    an_ellipse,
    iou,
    the_same,
)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


# ---------------------------------------------------------------------------------------------------------- compositing


def test_the_papers_composite_equals_the_mask_composite_where_structures_are_positive(rng):
    options = {"scale": (0.8, 1.2), "rotation_deg": 25, "shift": 0.05, "interpolation": "nearest", "gain": (0.9, 1.1)}
    ours, papers = (a_synthesizer(composite=composite, **options) for composite in ("mask", "paper"))
    for _ in range(5):
        plan = ours.sample(rng)
        assert the_same(ours.apply(plan), papers.apply(plan))


def test_the_papers_composite_loses_black_pixels_of_a_structure_and_the_mask_composite_does_not(rng):
    piece = an_annotated_slice()
    piece.image[55:60, 35:45] = 0.0
    lost = {}
    for composite in ("mask", "paper"):
        source = a_synthesizer(pieces=[piece], composite=composite, interpolation="nearest")
        lost[composite] = int((piece.labels == 1).sum() - (source.draw(rng).labels == 1).sum())
    assert lost == {"mask": 0, "paper": 50}


def test_the_rim_brings_own_surroundings_and_leaves_label_and_structure_alone(rng):
    hard, soft = a_synthesizer(PLAIN), a_synthesizer(PLAIN, rim=0.05, feather_px=2.0)
    plan = soft.sample(rng)
    plan = dataclasses.replace(plan, placements=tuple(dataclasses.replace(p, rim_px=4.0) for p in plan.placements))
    with_rim, without = soft.apply(plan), hard.apply(plan)
    np.testing.assert_array_equal(with_rim.labels, without.labels)
    inside = without.labels > 0
    np.testing.assert_array_equal(with_rim.image[inside], without.image[inside])
    grown = an_ellipse((60.0, 40.0), (33.0, 25.0), 20.0) & ~inside & (soft.slices[0].labels == 0)
    np.testing.assert_allclose(with_rim.image[grown], soft.slices[0].image[grown], atol=1e-6)
    far = ~an_ellipse((60.0, 40.0), (42.0, 34.0), 20.0) & (np.indices((SIZE, SIZE))[1] < 40)
    np.testing.assert_array_equal(with_rim.image[far], without.image[far])


def test_a_rim_never_shows_another_structure(rng):
    image, labels = a_body(0.3, 1), np.zeros((SIZE, SIZE), np.int32)
    labels[40:80, 30:60], labels[40:80, 60:90] = 1, 2
    image[labels == 1], image[labels == 2] = 0.6, 0.95
    source = a_synthesizer(pieces=[a_slice(image, labels, "a")], rim=0.1, feather_px=2.0, keep_structure_probability=0)
    for _ in range(6):
        sample = source.draw(rng)
        if not (sample.labels == 2).any():
            assert sample.image.max() < 0.7


# ---------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_a_transformed_structure_is_the_transformed_ellipse(interpolation, rng):
    centre, radii, angle_deg = (60.0, 64.0), (30.0, 20.0), 25.0
    piece = an_annotated_slice(ellipses={1: (centre, radii, angle_deg)})
    centroid = np.argwhere(piece.labels).mean(axis=0)
    source = a_synthesizer(
        pieces=[piece], scale=(0.8, 1.2), rotation_deg=180, shift=0.1, interpolation=interpolation, rim=0.02
    )
    for _ in range(12):
        plan = source.sample(rng)
        transform = plan.placements[0].transform
        # The centre of the ellipse turns about the centroid of its pixels.
        turned = np.deg2rad(transform.rotation_deg)
        offset = np.array(centre) - centroid
        offset = transform.scale * np.array(
            [
                np.cos(turned) * offset[0] - np.sin(turned) * offset[1],
                np.sin(turned) * offset[0] + np.cos(turned) * offset[1],
            ]
        )
        expected_centre = centroid + offset + np.array(transform.shift) * SIZE
        expected = an_ellipse(expected_centre, radii, angle_deg + transform.rotation_deg, transform.scale)
        assert iou(source.apply(plan).labels == 1, expected) > 0.97


def test_elastic_displacement_is_bounded_smooth_and_never_folds():
    for seed in range(20):
        down, right = displacement(seed, 0.05 * SIZE, SIZE)
        assert max(np.abs(down).max(), np.abs(right).max()) <= 0.05 * SIZE
        jacobian = (1 + np.gradient(down, axis=0)) * (1 + np.gradient(right, axis=1)) - np.gradient(
            down, axis=1
        ) * np.gradient(right, axis=0)
        assert jacobian.min() > 0.3


@pytest.mark.parametrize(("how", "order"), [("linear", 1), ("nearest", 0)])
def test_interpolating_is_that_of_scipy_on_what_is_bordered(how, order, rng):
    channels = [rng.random((12, 15)).astype(np.float32) for _ in range(3)]
    outside = [0.25, -1.0, 7.0]
    rows, columns = (rng.uniform(-4, size + 3, 400).astype(np.float32) for size in (12, 15))
    found = interpolated(bordered(channels, outside), rows, columns, how)
    for channel, value, plane in zip(channels, outside, found, strict=True):
        framed = np.pad(channel, 1, constant_values=value)
        at = np.clip(rows + 1, 0, 13), np.clip(columns + 1, 0, 16)  # beyond the border it goes on for ever
        expected = ndimage.map_coordinates(framed, at, order=order, mode="nearest")
        np.testing.assert_allclose(plane, expected, atol=1e-5)


def test_every_pixel_read_at_its_own_place_is_itself(rng):
    image = rng.random((SIZE, SIZE)).astype(np.float32)
    for how in ("linear", "nearest"):
        np.testing.assert_array_equal(interpolated(bordered([image]), *grid(SIZE), how)[0], image)


def test_moving_is_a_matrix_and_an_offset(rng):
    matrix, offset, points = rng.normal(size=(2, 2)), rng.normal(size=2), rng.uniform(0, 100, (2, 50))
    rows, columns = moved(matrix, offset, *points.astype(np.float32))
    np.testing.assert_allclose([rows, columns], matrix @ points + offset[:, None], rtol=1e-4, atol=1e-4)


def test_displacement_depends_on_its_seed_and_grows_with_its_limit():
    one, same, other = (displacement(seed, 3.0, SIZE) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(displacement(5, 6.0, SIZE), 2 * np.array(one), rtol=1e-5)


def test_cutouts_hold_their_structure_with_the_distance_to_it():
    piece = an_annotated_slice()
    recipe = SynthesisRecipe(rim=0.05, feather_px=1.5)
    cutouts = cutouts_of(piece, recipe)
    assert cutouts.keys() == set(NAMES)
    for value, cutout in cutouts.items():
        mask = piece.labels == value
        image, inside, distance = cutout.pixels[:, 1:-1, 1:-1]
        (top, left), (height, width) = cutout.origin, inside.shape
        window = np.s_[top : top + height, left : left + width]
        np.testing.assert_array_equal(inside > 0, mask[window])
        assert cutout.area == mask.sum() == (inside > 0).sum()
        np.testing.assert_array_equal(image, piece.image[window])
        np.testing.assert_allclose(cutout.centroid, np.argwhere(mask).mean(axis=0))
        alone = distance < 0.05 * SIZE + 1.5
        np.testing.assert_allclose(distance[alone], ndimage.distance_transform_edt(~mask)[window][alone], atol=1e-4)
        others = (piece.labels[window] != 0) & ~mask[window]
        assert (distance[others] == 0.05 * SIZE + 2.5).all()  # no rim reaches into another structure


def laid(top: int, left: int, side: int, area: float | None = None) -> Pasted:
    mask = np.ones((side, side), bool)
    window = slice(top, top + side), slice(left, left + side)
    return Pasted(window, mask.astype(np.float32), mask, mask.astype(np.float32), area or side**2)


def test_hidden_are_those_of_which_too_little_shows_once_smaller_ones_lie_on_top():
    large, small = laid(0, 0, 10), laid(0, 0, 8)
    assert hidden({1: large, 2: small}, 0.5, (20, 20)) == [1]  # 36 of 100 pixels are left
    assert hidden({1: large, 2: small}, 0.36, (20, 20)) == []
    assert hidden({1: large, 2: laid(12, 12, 8)}, 0.9, (20, 20)) == []
    assert hidden({3: laid(0, 0, 4, area=100.0)}, 0.5, (20, 20)) == [3]  # most of it lies outside the picture
    assert hidden({1: laid(0, 0, 4), 2: laid(0, 0, 4)}, 0.0, (20, 20)) == [1]  # nothing at all is left


# ------------------------------------------------------------------------------------------------------ moving together


def a_heart() -> np.ndarray:
    """A wall (1) around a cavity (2), a lobe (3) that leans against the wall, and a speck (4) apart."""
    labels = np.zeros((SIZE, SIZE), np.int32)
    labels[an_ellipse((40, 40), (14, 14), 0)] = 1
    labels[an_ellipse((40, 40), (9, 9), 0)] = 2
    labels[an_ellipse((40, 58), (8, 6), 0) & (labels == 0)] = 3
    labels[80:84, 80:84] = 4
    return labels


def test_what_lies_inside_another_moves_with_it():
    assert moving_together(a_heart()) == [(1, 2), (3,), (4,)]


def test_half_of_the_contour_is_needed():
    labels = np.zeros((SIZE, SIZE), np.int32)
    labels[20:40, 20:40], labels[40:60, 20:40] = 1, 2  # side by side: a quarter
    assert moving_together(labels) == [(1,), (2,)]
    assert moving_together(np.zeros_like(labels)) == []


@pytest.mark.parametrize("together", [True, False])
def test_a_wall_keeps_its_cavity_when_they_move_together(together, rng):
    labels = np.where(a_heart() == 3, 0, a_heart())
    image = np.clip(0.2 + 0.2 * labels, 0, 1).astype(np.float32)
    names = {1: "wall", 2: "cavity", 4: "speck"}
    source = a_synthesizer(
        pieces=[a_slice(image, labels, "heart")],
        names=names,
        move_together=together,
        rotation_deg=40,
        shift=0.1,
        scale=(0.8, 1.2),
        keep_structure_probability=1.0,
    )
    closed = 0
    for _ in range(8):
        made = source.draw(rng).labels
        ring = ndimage.binary_dilation(made == 2, iterations=2) & (made != 2)
        closed += bool((made[ring] == 1).mean() > 0.95)
    assert (closed == 8) is together
    groups = [{p.value: p.transform for p in source.sample(rng).placements} for _ in range(3)]
    assert all((one[1] == one[2]) is together and one[1] != one[4] for one in groups)
