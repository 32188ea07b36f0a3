"""What a step teaches: which samples it draws, what is kept of them, and what is left of the network afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training import lesson as module
from FewShotSegLib.training.lesson import Lesson, checkpointing, joined, weights_of
from FewShotSegLib.training.prompted_recipe import PromptedRecipe
from FewShotSegLib.training.queries import LossWeights, Pointing, click_query
from Testing.Library.lora.miniatures import STRUCTURES, compact, generator

RECIPE = PromptedRecipe(batch_size=2, click_prompts=1, token_prompts=2, pool_size=0, correction_probability=0.0)


class Drawer:
    """Squares of one structure or the other, at random places; counts how often it is asked."""

    structures = {1: "liver", 4: "spleen"}  # noqa: RUF012

    def __init__(self) -> None:
        self.drawn: list[Sample] = []

    def draw(self, rng: np.random.Generator) -> Sample:
        labels = np.zeros((64, 64), np.int32)
        top, left = rng.integers(4, 40, 2)
        labels[top : top + 16, left : left + 16] = STRUCTURES[int(rng.integers(2))]
        image = (0.2 + 0.15 * labels + rng.normal(0, 0.02, labels.shape)).clip(0, 1).astype(np.float32)
        self.drawn.append(Sample(image, labels, None, {}))
        return self.drawn[-1]


def a_lesson(network: PromptableNetwork, seed: int = 3, **options: Any) -> Lesson:
    spec = AdaptationSpec(LoraSpec(encoder=options.get("encoder_blocks") != 0))
    adaptation = Adaptation(network, spec, STRUCTURES, generator=generator())
    return Lesson(network, adaptation, Drawer(), replace(RECIPE, **options), "unit", seed)


def drawn(lesson: Lesson) -> list[Sample]:
    return lesson.source.drawn  # type: ignore[attr-defined]


def losses_at(lesson: Lesson, *steps: int) -> list[float]:
    with lesson.adaptation.applied(lesson.network):
        return [float(lesson.loss_at(step)[0].detach()) for step in steps]


def test_a_step_is_the_same_whatever_was_done_before(a_tiny_sam: PromptableNetwork) -> None:
    forward = losses_at(a_lesson(a_tiny_sam), 0, 1, 2)
    assert losses_at(a_lesson(a_tiny_sam), 2, 0, 1) == [forward[2], forward[0], forward[1]]
    assert losses_at(a_lesson(a_tiny_sam, seed=4), 0) != forward[:1]
    assert len(set(forward)) == 3


@pytest.mark.parametrize(("probability", "decoded"), [(0.0, 2), (1.0, 4)])
def test_corrective_clicks_come_as_often_as_the_recipe_says(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch, probability: float, decoded: int
) -> None:
    lengths = []
    decode = type(a_tiny_sam).decode

    def listening(self: Any, embedding: Any, prompts: Any) -> Any:
        lengths.append(prompts.coords.shape[1])
        return decode(self, embedding, prompts)

    monkeypatch.setattr(type(a_tiny_sam), "decode", listening)
    losses_at(a_lesson(a_tiny_sam, correction_probability=probability), *range(5))
    assert len(lengths) == 5 * decoded  # a query of clicks and one of tokens, answered once or twice
    assert (max(lengths) > min(lengths)) == (probability > 0)


def test_the_locator_learns_with_the_tokens(a_tiny_sam: PromptableNetwork) -> None:
    """Its loss is its own: without it the decoder's would not reach the bias of its last layer so plainly."""
    lesson = a_lesson(a_tiny_sam)
    with lesson.adaptation.applied(lesson.network):
        loss, _ = lesson.loss_at(0)
        samples = drawn(lesson)[:2]
        images = module.images_of(samples, lesson.network, "unit")
        alone = module.locator_loss(lesson.adaptation, lesson.network.encode(images), samples)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(module, "locator_loss", lambda *given: torch.zeros(()))
        with lesson.adaptation.applied(lesson.network):
            without, _ = lesson.loss_at(0)
    alone, loss, without = (float(value.detach()) for value in (alone, loss, without))
    assert alone > 0.1
    assert loss == pytest.approx(without + alone, rel=1e-4)


def test_the_recipe_s_weights_prompts_and_points_are_those_of_the_lesson(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cross_entropy_weight": 2.0, "dice_weight": 3.0, "quality_weight": 5.0, "dice": "with background"}
    assert weights_of(replace(RECIPE, **options)) == LossWeights(2.0, 3.0, 5.0, with_background=True)
    asked = []
    monkeypatch.setattr(module, "click_query", lambda *given: asked.append(given[-1]) or click_query(*given))
    losses_at(a_lesson(a_tiny_sam, box_share=0.1, central_share=0.2, most_points=2), 0)
    assert asked == [Pointing(0.1, 0.2, 2)]


def test_every_step_draws_a_batch_of_its_own(a_tiny_sam: PromptableNetwork) -> None:
    lesson = a_lesson(a_tiny_sam, batch_size=3)
    losses_at(lesson, 0, 1)
    images = {sample.image.tobytes() for sample in drawn(lesson)}
    assert len(images) == 6


def test_a_pool_is_drawn_once_and_learned_from_again(a_tiny_sam: PromptableNetwork) -> None:
    lesson = a_lesson(a_tiny_sam, pool_size=3)
    losses_at(lesson, *range(8))
    assert len(drawn(lesson)) == len(lesson.pool) == 3
    assert not lesson.encoded  # an encoder that learns looks anew


def test_behind_a_frozen_encoder_each_sample_of_the_pool_is_encoded_once(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = a_tiny_sam.encode
    monkeypatch.setattr(a_tiny_sam, "encode", lambda images: sizes.append(len(images)) or real(images))
    pooled, fresh = a_lesson(a_tiny_sam, pool_size=3, encoder_blocks=0), a_lesson(a_tiny_sam, pool_size=3)
    with_embeddings = losses_at(pooled, *range(8))
    assert sizes == [1, 1, 1]
    assert with_embeddings == pytest.approx(losses_at(fresh, *range(8)), rel=1e-4)  # LoRA begins with no change


def test_without_tokens_the_locator_learns_nothing(a_tiny_sam: PromptableNetwork) -> None:
    for count in (0, 2):
        lesson = a_lesson(a_tiny_sam, token_prompts=count, click_prompts=2)
        with lesson.adaptation.applied(a_tiny_sam) as parameters:
            lesson.loss_at(0)[0].backward()
            moved = {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
        assert any(name.startswith("locator.") for name in moved) == bool(count)
        assert any(name.startswith("image_encoder.") for name in moved)


def test_validation_looks_at_the_same_held_back_samples_every_time(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = a_lesson(a_tiny_sam)
    scores = iter([0.25, 0.5, 1.0, 0.0, 0.5, 0.75] * 2)  # three batches, clicks and tokens each
    monkeypatch.setattr(module, "batch_dice", lambda *arguments: next(scores))
    with lesson.adaptation.applied(a_tiny_sam):
        assert lesson.validate() == lesson.validate() == pytest.approx(0.5)
        assert len(drawn(lesson)) == Lesson.HELD_BACK
        held_back = {sample.image.tobytes() for sample in drawn(lesson)}
        for step in range(4):
            lesson.loss_at(step)
    assert len({sample.image.tobytes() for sample in drawn(lesson)} - held_back) == 8
    assert lesson.picture is not None
    assert lesson.picture.shape == (64, 4 * 64, 3)


def test_validation_changes_no_parameter_and_asks_for_no_gradient(a_tiny_sam: PromptableNetwork) -> None:
    lesson = a_lesson(a_tiny_sam)
    with lesson.adaptation.applied(a_tiny_sam) as parameters:
        before = {name: p.detach().clone() for name, p in parameters.items()}
        assert 0 <= lesson.validate() <= 1
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in parameters.items())


@pytest.mark.parametrize("kind", ["sam", "compact"])
def test_embeddings_that_are_joined_are_those_of_one_batch(a_tiny_sam: PromptableNetwork, kind: str) -> None:
    network = a_tiny_sam if kind == "sam" else compact()
    images = network.normalize(torch.rand(3, 64, 64, generator=generator(1)))
    with torch.inference_mode():
        whole = network.encode(images)
        parts = joined([network.encode(images[:1]), network.encode(images[1:])])
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-4, atol=1e-5)
    assert len(parts.skips) == len(whole.skips)
    for part, skip in zip(parts.skips, whole.skips, strict=True):
        torch.testing.assert_close(part, skip, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "compact"])
def test_forgetting_activations_changes_no_gradient_and_leaves_the_network_as_it_was(
    a_tiny_sam: PromptableNetwork, kind: str
) -> None:
    network = a_tiny_sam if kind == "sam" else compact()
    gradients = []
    for wanted in (False, True):
        lesson = a_lesson(network)
        with lesson.adaptation.applied(network) as parameters, checkpointing(network, wanted):
            assert [("forward" in vars(block)) for block in network.image_encoder.blocks] == [wanted] * len(
                network.image_encoder.blocks
            )
            lesson.loss_at(0)[0].backward()
            gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        assert not any("forward" in vars(block) for block in network.image_encoder.blocks)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_blocks_forget_activations_no_more_after_an_error(a_tiny_sam: PromptableNetwork) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), checkpointing(a_tiny_sam, True):
        raise RuntimeError("out of memory")
    assert not any("forward" in vars(block) for block in a_tiny_sam.image_encoder.blocks)
