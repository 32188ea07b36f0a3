"""Options of unsupervised adaptation."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.uda.cycle_gan import TRANSLATION_PRESETS
from FewShotSegLib.methods.uda.recipe import UDA_PRESETS, Recipe, found_in, needs_base, resolve, smaller_preset

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_filtering_needs_two_rounds_that_can_be_compared() -> None:
    with pytest.raises(InputError, match="at least 2 rounds, got rounds=1; choose more"):
        Recipe(rounds=1, match=False)
    assert Recipe(rounds=2, match=False).filter
    assert Recipe(rounds=1, filter=False).match


def test_the_paper_s_preset_is_the_paper_and_leaves_what_was_set() -> None:
    paper = resolve(Recipe(preset="paper"), "", CPU)
    assert (paper.space, paper.rounds, paper.patch, paper.spacing_mm) == (
        "anatomy",
        3,
        (40, 224, 192),
        (0.81, 0.81, 2.5),
    )
    assert (paper.optimizer, paper.learning_rate, paper.decide) == ("sgd", 0.01, "threshold")
    assert (paper.size, paper.teacher_size, paper.adversarial) == ("paper", "large", "log")
    assert paper.foreground_percentiles
    assert paper.patches.elastic_mm > 0
    assert paper.pseudo_labels.drop_fraction == 0.038
    assert (paper.registration.metric, paper.target_share) == ("l2", 0.75)
    assert (paper.patches.foreground, paper.patches.scale) == (0.33, (0.7, 1.4))
    own = resolve(Recipe(preset="paper", learning_rate=0.02, space="anatomy", steps=9), "", CPU)
    assert (own.learning_rate, own.steps, own.optimizer) == (0.02, 9, "sgd")


@pytest.mark.parametrize(("name", "smaller"), [("cpu", None), ("gpu", "cpu"), ("paper", "gpu")])
def test_presets_step_down(name: str, smaller: str | None) -> None:
    assert smaller_preset(name) == smaller


@pytest.mark.parametrize("name", UDA_PRESETS)
def test_a_preset_decides_what_the_user_left_open(name: str) -> None:
    preset, resolved = UDA_PRESETS[name], resolve(Recipe(preset=name), "", CPU)
    assert (resolved.steps, resolved.patch, resolved.size) == (preset.steps, preset.patch, preset.size)
    assert resolved.teacher_size == preset.teacher_size
    assert resolved.translation_steps == TRANSLATION_PRESETS[preset.translation].steps
    assert resolve(resolved, "", GPU) == resolved


def test_what_the_user_set_stays_and_the_machine_decides_the_rest() -> None:
    mine = Recipe(steps=7, patch=(4, 32, 32), size="paper", translation_steps=9)
    resolved = resolve(mine, "", CPU)
    assert (resolved.steps, resolved.patch, resolved.size, resolved.translation_steps) == (7, (4, 32, 32), "paper", 9)
    assert [resolve(Recipe(), "", device).preset for device in (CPU, GPU)] == ["cpu", "gpu"]
    assert not needs_base(resolved)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(rounds=3, domain_of=r"_(\w+)$", spacing_mm=(1.0, 1.0, 3.0), patch=(4, 32, 32))
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_the_group_of_an_expression_is_found_in_every_name() -> None:
    names = ["amos_1_t1", "amos_2_t2", "chaos_1_t1"]
    assert found_in(names, r"_(t\d)$", "domain_of") == dict(zip(names, ["t1", "t2", "t1"], strict=True))
    assert found_in(names, "", "domain_of") == {}


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "is not a regular expression"),
        ("t1", "must have one group in brackets"),
        ("(a)(b)", "must have one group in brackets"),
        (r"(t9)$", 'finds nothing in the target name "amos_1_t1"'),
    ],
)
def test_an_expression_that_finds_nothing_is_refused_by_the_name_of_its_option(pattern: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f'"patient_of".*{sentence}'):
        found_in(["amos_1_t1"], pattern, "patient_of")


def test_an_expression_is_checked_before_any_target_is_known() -> None:
    with pytest.raises(InputError, match='"domain_of" is not a regular expression'):
        Recipe(domain_of="[")
