"""What a preset decides, what the user decides, and which parts of a network a recipe trains."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.errors import InputError
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.presets import ALL_BLOCKS
from FewShotSegLib.training.prompted_recipe import PromptedRecipe as Recipe
from FewShotSegLib.training.prompted_recipe import adaptation_spec, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")
UNDECIDED = ("encoder_blocks", "image_size", "batch_size", "checkpointing", "pool_size")


def free_memory(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), 80 * 2**30))


# --- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "batch", "checkpointing", "pool"),
    [("24GB", -1, 8, False, 0), ("12GB", 6, 4, False, 0), ("8GB", 3, 2, True, 0), ("cpu", 0, 2, False, 64)],
)
def test_a_preset_decides_everything_the_user_left_open(
    name: str, blocks: int, batch: int, checkpointing: bool, pool: int
) -> None:
    recipe = resolve(Recipe(preset=name), "vit_b", CPU)
    assert (recipe.encoder_blocks, recipe.batch_size, recipe.checkpointing) == (blocks, batch, checkpointing)
    assert (recipe.image_size, recipe.pool_size) == (512, pool)


def test_what_the_user_set_stays() -> None:
    mine = {"encoder_blocks": 0, "image_size": 1024, "batch_size": 1, "checkpointing": False, "pool_size": 0}
    recipe = resolve(Recipe(preset="8GB", steps=17, **mine), "vit_b", CPU)  # type: ignore[arg-type]
    assert {field: getattr(recipe, field) for field in UNDECIDED} == mine
    assert recipe.steps == 17


def test_resolving_twice_changes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 11)
    once = resolve(Recipe(), "vit_b", GPU)
    free_memory(monkeypatch, 70)  # a preset that was chosen stays chosen
    assert resolve(once, "vit_b", GPU) == once


@pytest.mark.parametrize("preset", ["auto", "24GB"])
def test_the_compact_model_is_trained_whole_at_its_own_size_on_every_machine(preset: str) -> None:
    recipe = resolve(Recipe(preset=preset), "compact", CPU)
    assert (recipe.encoder_blocks, recipe.image_size, recipe.pool_size) == (ALL_BLOCKS, 160, 0)


def test_a_frozen_encoder_keeps_what_it_has_encoded() -> None:
    recipe = resolve(Recipe(), "vit_b", CPU)
    assert recipe.encoder_blocks == 0
    assert recipe.pool_size


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="8GB"):
        Recipe(preset="3GB")


def test_a_recipe_without_any_prompts_is_refused() -> None:
    with pytest.raises(InputError, match="click_prompts or token_prompts"):
        Recipe(click_prompts=0, token_prompts=0)


# --- what is trained ------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> PromptableNetwork:
    with torch.random.fork_rng(devices=[]):
        return build_compact(CompactArchitecture(64, (8, 8, 16), 32, 4, 2, 32)).requires_grad_(False)


def trained(network: PromptableNetwork, **recipe: object) -> set[str]:
    """Where LoRA sits: blocks of the encoder by number, "mlp", "decoder"; and whether the transformer learns whole."""
    spec = adaptation_spec(Recipe(**recipe), network)  # type: ignore[arg-type]
    with Adaptation(network, spec, (1,), generator=torch.Generator()).applied(network) as parameters:
        names = list(parameters)
    found = {name.split(".")[2] for name in names if name.startswith("image_encoder.blocks")}
    found |= {"mlp" for name in names if ".mlp." in name and ".lora" in name and name.startswith("image_encoder")}
    found |= {"decoder" for name in names if name.startswith("mask_decoder.transformer") and ".lora" in name}
    return found | {"whole" for name in names if name.startswith("mask_decoder.transformer") and ".lora" not in name}


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ({}, {"0", "1", "2", "3", "decoder"}),
        ({"encoder_blocks": -1}, {"0", "1", "2", "3", "decoder"}),
        ({"encoder_blocks": 2}, {"2", "3", "decoder"}),
        ({"encoder_blocks": 9}, {"0", "1", "2", "3", "decoder"}),
        ({"encoder_blocks": 0}, {"decoder"}),
        ({"encoder_blocks": 1, "mlp": True}, {"3", "mlp", "decoder"}),
        ({"encoder_blocks": 1, "full_decoder": True}, {"3", "whole"}),
        ({"encoder_blocks": 0, "full_decoder": True}, {"decoder", "whole"}),
    ],
)
def test_a_recipe_trains_the_last_blocks_and_the_decoder_as_it_says(
    network: PromptableNetwork, recipe: dict[str, object], parts: set[str]
) -> None:
    assert trained(network, **recipe) == parts


def test_rank_alpha_and_tokens_are_those_of_the_recipe(network: PromptableNetwork) -> None:
    spec = adaptation_spec(Recipe(rank=7, alpha=14.0, tokens=3), network)
    assert (spec.lora.rank, spec.lora.scale, spec.tokens) == (7, 2.0, 3)
