"""Synthesis: every promise of the recipe, against analytic ellipses and the numbers in the plan."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import Placement, Plan, SynthesisRecipe, Transform
from FewShotSegLib.synthesis.synthesizer import Synthesizer
from Testing.Library.synthesis.pieces import (
    ELLIPSES,
    NAMES,
    PLAIN,
    SIZE,
    VALUES,
    a_background,
    a_body,
    a_neighbour,
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


KINDS = [
    {"background": "known_empty"},
    {"background": "inpaint"},
    {"background": "neighbour"},
    {"background": "mixed"},
    {"original_probability": 1.0},
    {"empty_probability": 1.0},
    {"composite": "paper", "interpolation": "nearest"},
]


# ---------------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("options", KINDS)
def test_the_same_generator_draws_the_same_samples(options):
    recipe = dataclasses.replace(SynthesisRecipe(), **options)
    first, second = ([], [])
    for samples in (first, second):
        source, generator = a_synthesizer(recipe, neighbours=[a_neighbour()]), np.random.default_rng(4)
        samples.extend(source.draw(generator) for _ in range(5))
    assert all(the_same(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0].image, first[1].image)


@pytest.mark.parametrize("options", KINDS)
def test_a_plan_that_went_through_json_gives_the_same_sample(options, rng):
    source = a_synthesizer(dataclasses.replace(SynthesisRecipe(), **options), neighbours=[a_neighbour()])
    plans = [source.sample(rng) for _ in range(4)]
    expected = [source.apply(plan) for plan in plans]
    again = a_synthesizer(source.recipe, neighbours=[a_neighbour()])
    for plan, sample in zip(plans, expected, strict=True):
        read = Plan.from_dict(json.loads(json.dumps(sample.provenance["plan"])))
        assert read == plan
        assert the_same(again.apply(read), sample)


def test_applying_twice_or_in_another_order_changes_nothing(rng):
    source = a_synthesizer(SynthesisRecipe(original_probability=0.3))
    plans = [source.sample(rng) for _ in range(6)]
    forward = [source.apply(plan) for plan in plans]
    backward = [source.apply(plan) for plan in reversed(plans)][::-1]
    assert all(the_same(a, b) for a, b in zip(forward, backward, strict=True))


def test_the_slices_are_lent_and_come_back_unchanged(rng):
    pieces, backgrounds, near = [an_annotated_slice()], [a_background()], [a_neighbour()]
    before = [array.copy() for piece in (*pieces, *backgrounds, *near) for array in (piece.image, piece.labels)]
    for kind in ("known_empty", "inpaint", "neighbour"):
        source = Synthesizer(pieces, backgrounds, near, SynthesisRecipe(background=kind), NAMES)
        for _ in range(4):
            source.draw(rng)
    after = [array for piece in (*pieces, *backgrounds, *near) for array in (piece.image, piece.labels)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_global_generator_is_not_touched(rng):
    before = np.random.get_state()  # noqa: NPY002 - the point of the test
    source = a_synthesizer(SynthesisRecipe(background="mixed"))
    for _ in range(3):
        source.draw(rng)
    after = np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]


# ---------------------------------------------------------------------------------------------------------- compositing


def test_the_label_is_exactly_what_was_pasted(rng):
    """Structures and background have separate values, so the image itself says what was pasted."""
    source = a_synthesizer(scale=(0.8, 1.2), rotation_deg=30, shift=0.05, interpolation="nearest")
    for _ in range(10):
        sample = source.draw(rng)
        for value, level in VALUES.items():
            assert np.abs(sample.image[sample.labels == value] - level).max() < 0.06
        assert sample.image[sample.labels == 0].max() < 0.3


def test_a_sample_has_the_promised_types_and_range(rng):
    source = a_synthesizer(SynthesisRecipe(bias=1.0, noise_sd=1.0))
    for _ in range(8):
        sample = source.draw(rng)
        assert sample.image.dtype == np.float32
        assert sample.labels.dtype == np.int32
        assert sample.image.shape == sample.labels.shape == (SIZE, SIZE)
        assert sample.image.min() >= 0
        assert sample.image.max() <= 1
        assert sample.known is None


def test_without_intensity_changes_the_histogram_of_a_structure_stays(rng):
    source = a_synthesizer(scale=(0.8, 1.2), rotation_deg=40, shift=0.05, interpolation="nearest")
    piece = source.slices[0]
    quantiles = np.linspace(0.05, 0.95, 10)
    for _ in range(5):
        sample = source.draw(rng)
        for value in (1, 2):
            pasted, original = sample.image[sample.labels == value], piece.image[piece.labels == value]
            assert set(pasted) <= set(original)
            np.testing.assert_allclose(np.quantile(pasted, quantiles), np.quantile(original, quantiles), atol=3e-3)


def test_with_nothing_to_transform_the_structures_are_copied_to_the_byte(rng):
    source = a_synthesizer(PLAIN)
    piece, sample = source.slices[0], source.draw(rng)
    expected = np.where(piece.labels > 0, piece.image, source.backgrounds[0].image)
    np.testing.assert_array_equal(sample.image, expected)
    np.testing.assert_array_equal(sample.labels, piece.labels)


def test_smaller_structures_are_painted_over_larger_ones(rng):
    image, labels = a_body(0.3, 1), np.zeros((SIZE, SIZE), np.int32)
    for value, (centre, radius) in {1: ((64, 50), 20), 2: ((64, 75), 6)}.items():
        labels[an_ellipse(centre, (radius, radius), 0)] = value
        image[labels == value] = VALUES[value]
    source = a_synthesizer(pieces=[a_slice(image, labels, "a")])
    plan = source.sample(rng)
    assert [placement.value for placement in plan.placements] == [1, 2]
    moved = Placement(2, Transform(shift=(0.0, -15 / SIZE)))
    labels = source.apply(dataclasses.replace(plan, placements=(plan.placements[0], moved))).labels
    np.testing.assert_array_equal(labels == 2, an_ellipse((64, 60), (6, 6), 0))


# ---------------------------------------------------------------------------------------------------------- geometry


def test_structures_stay_roughly_where_they_were(rng):
    limit_px = 0.05 * SIZE
    source = a_synthesizer(scale=(0.8, 1.2), rotation_deg=15, shift=0.05, min_visible=0.9)
    original = {value: np.argwhere(source.slices[0].labels == value).mean(axis=0) for value in NAMES}
    largest = 0.0
    for _ in range(40):
        sample = source.draw(rng)
        for value in NAMES:
            moved = np.abs(np.argwhere(sample.labels == value).mean(axis=0) - original[value]).max()
            largest = max(largest, moved)
    # Up to a tenth of a structure may be hidden, which moves what is left of it by a pixel or two.
    assert 0.6 * limit_px < largest < limit_px + 2.0


@pytest.mark.parametrize("background", ["inpaint", "neighbour"])
def test_on_its_own_place_a_structure_moves_with_the_background(background, rng):
    source = a_synthesizer(background=background, neighbours=[a_neighbour()])
    plan = dataclasses.replace(source.sample(rng), scene=Transform(rotation_deg=90))
    # From rows to columns: what was at the top of the picture, above its middle, comes to lie on the left of it.
    np.testing.assert_array_equal(source.apply(plan).labels, np.rot90(source.slices[0].labels))


def test_total_scale_and_rotation_stay_within_the_recipe_on_the_structures_own_slice(rng):
    source = a_synthesizer(background="inpaint", scale=(0.8, 1.2), rotation_deg=20)
    for _ in range(30):
        plan = source.sample(rng)
        for placement in plan.placements:
            assert abs(plan.scene.rotation_deg + placement.transform.rotation_deg) <= 20
            assert 0.8 <= plan.scene.scale * placement.transform.scale <= 1.22


def test_an_original_is_the_whole_slice_transformed_with_its_labels(rng):
    source = a_synthesizer(
        original_probability=1, rotation_deg=30, scale=(0.9, 1.1), shift=0.05, interpolation="nearest"
    )
    for _ in range(5):
        sample = source.draw(rng)
        for value, level in VALUES.items():
            assert np.abs(sample.image[sample.labels == value] - level).max() < 0.06
        body = sample.image[sample.labels == 0]
        assert body.max() < 0.4


def test_the_plan_less_original_is_the_slice_itself():
    source = a_synthesizer(SynthesisRecipe())
    sample = source.original(0)
    np.testing.assert_array_equal(sample.image, source.slices[0].image)
    np.testing.assert_array_equal(sample.labels, source.slices[0].labels)


def test_elastic_deformation_bends_image_and_label_alike(rng):
    source = a_synthesizer(original_probability=1, elastic=0.05, interpolation="nearest")
    sample = source.draw(rng)
    assert iou(sample.labels == 1, source.slices[0].labels == 1) < 0.99
    for value, level in VALUES.items():
        assert np.abs(sample.image[sample.labels == value] - level).max() < 0.06


def test_padding_stays_zero_and_unlabelled():
    content = (SIZE, 75)
    piece = an_annotated_slice(content=content)
    for options in KINDS:
        recipe = dataclasses.replace(
            SynthesisRecipe(), **{"background": "inpaint", "original_probability": 0.4, **options}
        )
        source = a_synthesizer(recipe, pieces=[piece], neighbours=[a_neighbour()])
        generator = np.random.default_rng(2)
        for _ in range(4):
            sample = source.draw(generator)
            if sample.provenance["plan"]["kind"] != "empty":
                assert not sample.image[:, 75:].any()
                assert not sample.labels[:, 75:].any()


# ---------------------------------------------------------------------------------------------------------- visibility


def test_no_class_is_lost_and_half_of_every_structure_stays_visible(rng):
    crowd = {value: ((60.0, 45.0 + 20 * n), (9.0, 9.0), 0.0) for n, value in enumerate(NAMES)}
    source = a_synthesizer(pieces=[an_annotated_slice(ellipses=crowd)], scale=(0.8, 1.2), rotation_deg=15, shift=0.2)
    tries = []
    for _ in range(60):
        plan = source.sample(rng)
        labels = source.apply(plan).labels
        tries.append(plan.tries)
        for placement in plan.placements:
            area = (source.slices[0].labels == placement.value).sum() * placement.transform.scale**2
            assert (labels == placement.value).sum() >= 0.5 * area
        assert set(np.unique(labels)) == {0, *NAMES}
    assert max(tries) > 1


def test_a_structure_at_the_border_is_clipped_and_keeps_half_its_area(rng):
    border = {2: ((64.0, 124.0), (14.0, 10.0), 0.0)}
    source = a_synthesizer(pieces=[an_annotated_slice(ellipses=border)], scale=(1, 1.2), shift=0.1)
    area, clipped = (source.slices[0].labels == 2).sum(), 0
    for _ in range(40):
        plan = source.sample(rng)
        seen = (source.apply(plan).labels == 2).sum()
        expected = area * plan.placements[0].transform.scale ** 2
        assert seen >= 0.5 * expected
        clipped += seen < 0.85 * expected
    assert clipped


def test_where_no_draw_fits_structures_keep_their_places_and_the_sample_says_so(rng):
    source = a_synthesizer(shift=0.5, scale=(1, 3), max_tries=1, min_visible=0.9)
    samples = [source.draw(rng) for _ in range(5)]
    flagged = [sample for sample in samples if sample.provenance["plan"]["own_places"]]
    assert flagged
    for sample in flagged:
        np.testing.assert_array_equal(sample.labels, source.slices[0].labels)
        assert any("own places" in remark for remark in sample.provenance["remarks"])


def test_a_structure_of_one_pixel_is_always_in_the_sample(rng):
    labels = np.zeros((SIZE, SIZE), np.int32)
    labels[50, 60] = 3
    for background in ("known_empty", "inpaint"):
        source = a_synthesizer(
            SynthesisRecipe(original_probability=0, empty_probability=0, background=background),
            pieces=[a_slice(a_body(0.3, 1), labels, "dot")],
            names={3: "dot"},
        )
        assert all((source.draw(rng).labels == 3).any() for _ in range(20))


def test_a_slice_that_is_all_structure_can_be_used(rng):
    image = np.random.default_rng(0).random((SIZE, SIZE))
    piece = a_slice(image, np.ones((SIZE, SIZE)), "full")
    source = a_synthesizer(SynthesisRecipe(), pieces=[piece], backgrounds=[], names={1: "all"})
    for _ in range(5):
        sample = source.draw(rng)
        assert np.isfinite(sample.image).all()
        assert (sample.labels == 1).any()


def test_structures_are_left_out_as_often_as_the_recipe_says(rng):
    source = a_synthesizer(keep_structure_probability=0.7)
    present = np.array([[(v in plan_values) for v in NAMES] for plan_values in _kept(source, rng, 300)])
    assert present.any(axis=1).all()
    # 0.7 each, and one of three in the 2.7 % of draws that would leave nothing
    np.testing.assert_allclose(present.mean(axis=0), 0.7 + 0.3**3 / 3, atol=0.1)


def _kept(source, rng, count):
    for _ in range(count):
        plan = source.sample(rng)
        kept = {placement.value for placement in plan.placements}
        assert kept.isdisjoint(plan.left_out)
        assert kept | set(plan.left_out) == set(NAMES)
        yield kept


def test_kinds_are_drawn_as_often_as_the_recipe_says(rng):
    source = a_synthesizer(original_probability=0.5, empty_probability=0.2)
    kinds = [source.sample(rng).kind for _ in range(400)]
    assert kinds.count("empty") / 400 == pytest.approx(0.2, abs=0.07)
    assert kinds.count("original") / 400 == pytest.approx(0.4, abs=0.08)


# ---------------------------------------------------------------------------------------------------------- mirroring


@pytest.mark.parametrize("background", ["known_empty", "inpaint"])
@pytest.mark.parametrize("flip", ["horizontal", "vertical", "both"])
def test_nothing_is_mirrored_where_any_structure_has_a_side(background, flip, rng):
    names = {1: "liver", 2: "left kidney", 5: "aorta"}
    source = a_synthesizer(SynthesisRecipe(background=background, flip=flip), names=names)
    for _ in range(40):
        plan = source.sample(rng)
        assert plan.scene.mirrored == (False, False)
        assert all(placement.transform.mirrored == (False, False) for placement in plan.placements)
    assert any("left kidney" in note and "mirrored" in note for note in source.notes)


def test_nothing_is_mirrored_unless_asked(rng):
    source = a_synthesizer(SynthesisRecipe())
    assert not any(any(source.sample(rng).scene.mirrored) for _ in range(20))
    assert not source.notes


def test_mirroring_turns_left_into_right_when_asked(rng):
    source = a_synthesizer(original_probability=1, flip="horizontal")
    plans = [source.sample(rng) for _ in range(30)]
    mirrored = [plan for plan in plans if plan.scene.mirrored == (False, True)]
    assert 5 < len(mirrored) < 25
    np.testing.assert_array_equal(source.apply(mirrored[0]).labels, source.slices[0].labels[:, ::-1])


# ---------------------------------------------------------------------------------------------------------- backgrounds


def test_without_a_background_the_own_slice_is_inpainted_and_the_sample_says_so(rng):
    source = a_synthesizer(background="auto", backgrounds=[])
    assert any("inpainted" in note for note in source.notes)
    sample = source.draw(rng)
    assert sample.provenance["plan"]["background_kind"] == "inpaint"
    assert any("inpainted" in remark for remark in sample.provenance["remarks"])
    assert sample.known is None


def test_an_inpainted_structure_that_is_left_out_is_gone(rng):
    source = a_synthesizer(background="inpaint", keep_structure_probability=0)
    for _ in range(6):
        plan = source.sample(rng)
        image = source.apply(plan).image
        for value in plan.left_out:
            place = an_ellipse(ELLIPSES[value][0], ELLIPSES[value][1], ELLIPSES[value][2])
            kept = source.apply(plan).labels > 0
            assert abs(image[place & ~kept].mean() - 0.3) < 0.03


def test_of_an_unlabelled_neighbour_only_what_was_pasted_is_known(rng):
    source = a_synthesizer(background="neighbour", neighbours=[a_neighbour()], rim=0.05, feather_px=1.5)
    for _ in range(5):
        sample = source.draw(rng)
        assert sample.known is not None
        assert sample.known[sample.labels > 0].all()
        background = sample.known & (sample.labels == 0)
        # Whatever counts as known background looks like the exemplar (0.3), not like the neighbour (0.2).
        assert background.any()
        assert sample.image[background].min() > 0.25
        assert sample.known.mean() < 0.6


def test_empty_samples_come_from_slices_vouched_to_be_empty(rng):
    sample = a_synthesizer(empty_probability=1).draw(rng)
    assert sample.provenance["plan"]["kind"] == "empty"
    assert sample.provenance["plan"]["sources"] == ["anna k=40"]
    assert not sample.labels.any()
    assert sample.known is None


def test_constant_backgrounds_are_dropped_and_mentioned():
    black = a_slice(np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE)), "air")
    source = a_synthesizer(backgrounds=[black, a_background()])
    assert [piece.source for piece in source.backgrounds] == ["anna k=40"]
    assert "1 of 2" in source.notes[0]


# ---------------------------------------------------------------------------------------------------------- intensities


def test_gain_and_bias_are_what_the_plan_says(rng):
    source = a_synthesizer(original_probability=1, gain=(0.8, 1.2), bias=0.05)
    plan = source.sample(rng)
    expected = np.clip(source.slices[0].image * plan.gain + plan.bias, 0, 1)
    np.testing.assert_allclose(source.apply(plan).image, expected, atol=1e-6)


def test_noise_has_the_drawn_standard_deviation(rng):
    source = a_synthesizer(original_probability=1, noise_sd=0.05)
    plan = dataclasses.replace(source.sample(rng), noise_sd=0.04)
    middle = np.s_[50:70, 30:50]
    noise = (source.apply(plan).image - source.slices[0].image)[middle]
    assert noise.std() == pytest.approx(0.04, rel=0.15)
    assert abs(noise.mean()) < 0.01


# ---------------------------------------------------------------------------------------------------------- bad input


def test_slices_without_any_structure_are_refused():
    with pytest.raises(InputError, match="annotate"):
        Synthesizer([a_background()], recipe=PLAIN)


def test_a_wished_background_that_is_missing_is_refused():
    with pytest.raises(InputError, match="known_empty"):
        a_synthesizer(background="known_empty", backgrounds=[])
    with pytest.raises(InputError, match="neighbour"):
        a_synthesizer(background="neighbour")


def test_a_background_that_is_not_known_to_be_empty_is_refused():
    with pytest.raises(InputError, match="anna k=6"):
        a_synthesizer(backgrounds=[a_neighbour()])
    with pytest.raises(InputError, match="anna k=5"):
        a_synthesizer(backgrounds=[an_annotated_slice()])


def test_structures_that_are_all_black_cannot_be_pasted_as_in_the_paper():
    piece = an_annotated_slice(ellipses={2: ELLIPSES[2]})
    piece.image[piece.labels == 2] = 0
    with pytest.raises(InputError, match="black"):
        a_synthesizer(pieces=[piece], composite="paper")


def test_a_plan_for_other_slices_is_refused(rng):
    plan = a_synthesizer().sample(rng)
    other = a_synthesizer(pieces=[an_annotated_slice("bert k=9")])
    with pytest.raises(InputError, match="anna k=5"):
        other.apply(plan)
    with pytest.raises(InputError, match=r"plan entry .* is missing"):
        Plan.from_dict({"kind": "pasted"})
