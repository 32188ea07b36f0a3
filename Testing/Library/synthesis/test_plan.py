"""The recipe of synthesis, and plans that can be kept and drawn again."""

from __future__ import annotations

import json

import pytest

from FewShotSegLib.data import recipe as recipes
from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import SynthesisRecipe


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
