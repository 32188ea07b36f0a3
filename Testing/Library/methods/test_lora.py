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
from FewShotSegLib.sam.network import PADDING, PromptableNetwork
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
    assert (recipe.cross_entropy_weight, recipe.dice_weight, recipe.weight_decay) == (1.0, 0.8, 0.1)
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
    with pytest.raises(
        InputError, match="was trained on 1 = disc, 2 = square; the exemplars show 1 = square, 2 = disc"
    ):
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


@pytest.mark.parametrize(("name", "count"), [("paper", 1800), ("paper tumour", 4500)])
def test_the_paper_s_presets_are_the_paper_and_leave_what_was_set(name: str, count: int) -> None:
    recipe = lora.resolve(lora.Recipe(preset=name), "compact", torch.device("cpu"))
    assert (recipe.preset, recipe.pool_size, recipe.encoder_blocks) == (name, count, -1)
    assert (recipe.box_share, recipe.central_share, recipe.correction_probability) == (0.0, 0.0, 0.0)
    assert (recipe.click_prompts, recipe.token_prompts, recipe.most_points) == (1, 0, 1)
    assert (recipe.dice, recipe.quality_weight) == ("with background", 0.0)
    synthesis = recipe.synthesizer
    assert (synthesis.composite, synthesis.rim, synthesis.original_probability) == ("paper", 0.0, 0.0)
    assert (synthesis.flip, synthesis.rotation_deg) == (("both", 180.0) if "tumour" in name else ("never", 15.0))
    own = lora.resolve(lora.Recipe(preset=name, pool_size=7, rank=8), "compact", torch.device("cpu"))
    assert (own.pool_size, own.rank, own.dice) == (7, 8, "with background")
    assert lora.smaller_preset(name) is None


def test_the_paper_s_tumour_is_scaled_by_the_range_of_each_slice_unless_chosen(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    small = lora.Recipe(preset="paper tumour", steps=1, image_size=64, batch_size=1, guard="off", pool_size=2)
    scaled = adapt(a_tiny_sam, an_exemplar, small).intensity
    assert (scaled.kind, scaled.scale) == ("minmax", a_tiny_sam.scale)
    chosen = IntensitySpec("window", -50, 150, a_tiny_sam.scale)
    assert adapt(a_tiny_sam, an_exemplar, small, intensity=chosen).intensity == chosen
    assert adapt(a_tiny_sam, an_exemplar, replace(small, preset="paper")).intensity.kind == "window"
    resolved = lora.resolve(small, "compact", torch.device("cpu"))
    brighter = replace(an_exemplar, volume=an_exemplar.volume.like(3 * an_exemplar.volume.array + 700))
    samples = [
        lora.training_samples(AdaptInputs(exemplars=[one]), resolved, np.random.default_rng(0), 1)[0].image
        for one in (an_exemplar, brighter)
    ]
    assert np.allclose(*samples, atol=1e-5)  # the range of a slice is all that counts


def test_an_adapter_of_the_paper_learns_from_points_alone(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    decode = type(a_tiny_sam).decode

    def listening(self, embedding, prompts):
        asked.append(prompts.labels)
        return decode(self, embedding, prompts)

    monkeypatch.setattr(type(a_tiny_sam), "decode", listening)
    small = lora.Recipe(preset="paper", steps=3, image_size=64, batch_size=2, guard="off", pool_size=4)
    adapter = adapt(a_tiny_sam, an_exemplar, small)
    assert adapter.recipe["preset"] == "paper"
    assert len(asked) == 3
    for labels in asked:
        assert labels.shape[0] == 2  # a click on each of two slices
        assert (labels[:, 1:] == PADDING).all()
