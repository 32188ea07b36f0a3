"""Cutting out, transforming and laying down, against analytic ellipses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from FewShotSegLib.synthesis.pasting import displacement
from Testing.Library.synthesis.pieces import (
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
