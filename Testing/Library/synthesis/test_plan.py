"""The recipe of synthesis, and plans that can be kept and drawn again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from FewShotSegLib.data import recipe as recipes
from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import Placement, Plan, SynthesisRecipe, Transform


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (1.2, 0.8)},
        {"scale": (0.0, 1.0)},
        {"rotation_deg": 181},
        {"flip": "sometimes"},
        {"background": "none"},
        {"elastic": 0.2},
        {"original_probability": 1.5},
        {"max_tries": 0},
        {"gain": (1.1, 0.9)},
        {"min_visible": 0.95},
    ],
)
def test_a_recipe_out_of_range_is_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SynthesisRecipe(**options)


def test_a_recipe_survives_json():
    recipe = SynthesisRecipe(scale=(0.9, 1.3), composite="paper", flip="both")
    assert recipes.from_dict(SynthesisRecipe, json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("scale", "angle_deg", "shift"), [(1.0, 0.0, (0.0, 0.0)), (0.8, 30.0, (0.1, -0.05)), (2.0, -90.0, (0, 0.2))]
)
def test_the_inverse_of_a_transform_mirrors_turns_scales_and_shifts_back(mirrored, scale, angle_deg, shift):
    centre, size = np.array([30.0, 50.0]), 128
    points = np.random.default_rng(0).uniform(0, size, (20, 2))
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    there = (points - centre) * [-1.0 if m else 1.0 for m in mirrored]
    there = scale * np.stack([c * there[:, 0] - s * there[:, 1], s * there[:, 0] + c * there[:, 1]], axis=1)
    there = there + centre + np.array(shift) * size
    matrix, offset = Transform(scale, angle_deg, shift, mirrored).inverse(centre, size)
    np.testing.assert_allclose(there @ matrix.T + offset, points, atol=1e-9)


def test_a_transform_that_does_nothing_is_its_own_inverse():
    matrix, offset = Transform().inverse(np.array([3.0, 4.0]), 64)
    np.testing.assert_array_equal(matrix, np.eye(2))
    np.testing.assert_array_equal(offset, [0, 0])


def test_a_plan_survives_json_with_all_that_was_drawn():
    placement = Placement(5, Transform(1.1, -20.0, (0.01, 0.02), (False, True)), 0.9, 0.05, 3.5)
    plan = Plan("pasted", 0, 1, "known_empty", ("a k=1", "b k=2"), placements=(placement,), left_out=(2,), noise_seed=7)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "drawn"}, '"kind"'),
        ({"gain": "much"}, '"gain"'),
        ({"colour": 1}, "colour"),
        ({"scene": {"size": 1}}, "scene"),
    ],
)
def test_a_plan_that_says_something_else_is_refused(changes, message):
    plan = Plan("original", 0, None, "exemplar", ("a k=1",))
    with pytest.raises(InputError, match=message):
        Plan.from_dict({**plan.to_dict(), **changes})
