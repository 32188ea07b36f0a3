"""LoRA on a promptable model: what the paper says, and what an adapter of it tells. `test_methods` has the contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.methods import lora
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import QUICK, Listener

RECIPE = replace(lora.Recipe(**QUICK), steps=2)


def adapt(
    network: PromptableNetwork, exemplar: Exemplar, recipe: lora.Recipe = RECIPE, report: Listener | None = None, **more
):
    run = RunContext(np.random.default_rng(0), report or Listener())
    return lora.adapt(AdaptInputs(network, [exemplar], **more), recipe, run)


def test_the_numbers_of_the_paper_are_the_defaults() -> None:
    recipe = lora.Recipe()
    assert (recipe.rank, recipe.learning_rate) == (4, 1e-3)
    assert (recipe.cross_entropy_weight, recipe.dice_weight) == (1.0, 0.8)
    assert lora.needs_base(recipe)
    assert frozenset({"exemplars"}) == lora.NEEDS


def test_an_adapter_tells_what_it_was_made_of(a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> None:
    adapter = adapt(a_tiny_sam, an_exemplar)
    assert (adapter.method, adapter.base_model, adapter.base_sha256) == ("lora", a_tiny_sam.name, a_tiny_sam.sha256)
    assert (adapter.structures, adapter.axis) == (an_exemplar.structures, an_exemplar.axis)
    assert adapter.image_size == a_tiny_sam.image_size
    assert adapter.recipe["steps"] == adapter.metrics["steps"] == 2
    (shown,) = adapter.provenance["exemplars"]
    assert (shown["name"], shown["annotated_slices"]) == ("discs", [1, 3])


def test_images_are_scaled_as_the_base_was_trained_unless_chosen(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    automatic = adapt(a_tiny_sam, an_exemplar).intensity
    assert (automatic.kind, automatic.scale) == ("window", a_tiny_sam.scale)
    chosen = IntensitySpec("window", -50, 150, a_tiny_sam.scale)
    assert adapt(a_tiny_sam, an_exemplar, intensity=chosen).intensity == chosen


def test_training_goes_on_from_the_weights_of_an_earlier_adapter(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    first = adapt(a_tiny_sam, an_exemplar)
    still = replace(RECIPE, steps=1, learning_rate=1e-6)
    second = adapt(a_tiny_sam, an_exemplar, still, start=first)
    anew = adapt(a_tiny_sam, an_exemplar, still)
    assert all(np.allclose(second.tensors[name], value, atol=1e-5) for name, value in first.tensors.items())
    assert not all(np.allclose(anew.tensors[name], value, atol=1e-5) for name, value in first.tensors.items())
    other = replace(an_exemplar, structures={1: "square", 2: "disc"})
    with pytest.raises(InputError, match="has learned 1 = disc, 2 = square; the exemplars show 1 = square, 2 = disc"):
        adapt(a_tiny_sam, other, start=first)


def test_an_adapter_worse_than_the_base_is_warned_of_or_refused_as_the_recipe_says(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar, a_listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = {"warnings": ["The adapter is worse than the base model.", "It ignores clicks."]}
    monkeypatch.setattr("FewShotSegLib.training.estimate.compare_with_base", lambda *given, **more: verdict)
    adapter = adapt(a_tiny_sam, an_exemplar, replace(RECIPE, guard="warn"), a_listener)
    assert adapter.metrics["guard"] == verdict
    warned = [progress.message for progress in a_listener.heard if progress.kind == "warning"]
    assert warned == ["The adapter is worse than the base model. It ignores clicks."]
    with pytest.raises(InputError, match=r"worse than the base model\..*guard=refuse"):
        adapt(a_tiny_sam, an_exemplar, replace(RECIPE, guard="refuse"))
    assert "guard" not in adapt(a_tiny_sam, an_exemplar, replace(RECIPE, guard="off")).metrics


def test_samples_to_look_at_are_those_of_the_recipe(an_exemplar: Exemplar) -> None:
    inputs = AdaptInputs(exemplars=[an_exemplar])
    recipe = lora.resolve(replace(RECIPE, synthesis=False), "compact", torch.device("cpu"))
    samples = lora.training_samples(inputs, recipe, np.random.default_rng(0), 5)
    assert {sample.image.shape for sample in samples} == {(64, 64)}
    assert {sample.provenance["plan"]["kind"] for sample in samples} == {"original"}  # nothing is pasted
    pasted = replace(recipe, synthesis=True, synthesizer=replace(recipe.synthesizer, original_probability=0.0))
    samples = lora.training_samples(inputs, pasted, np.random.default_rng(0), 5)
    assert {sample.provenance["plan"]["kind"] for sample in samples} == {"pasted"}
