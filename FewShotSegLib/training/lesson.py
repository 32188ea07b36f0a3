"""What one step of prompted training teaches: a batch of samples, queries on it, their loss; and its validation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.sam.network import Embedding, PromptableNetwork
from FewShotSegLib.synthesis.plan import Sample

from .answers_picture import answers_picture
from .fit import step_rng
from .losses import cross_entropy
from .prompted_recipe import PromptedRecipe
from .queries import (
    LossWeights,
    PixelLoss,
    Pointing,
    Query,
    batch_dice,
    click_query,
    images_of,
    locator_loss,
    on_device,
    query_loss,
    token_query,
)


class Source(Protocol):
    """Where training samples come from."""

    structures: dict[int, str]

    def draw(self, rng: np.random.Generator) -> Sample:
        """One sample; all that is random comes from `rng`."""


class Lesson:
    """Draws the samples and prompts of each step and answers with their loss."""

    HELD_BACK = 12  # samples that training never sees

    def __init__(
        self,
        network: PromptableNetwork,
        adaptation: Adaptation,
        source: Source,
        recipe: PromptedRecipe,
        scale: str,
        seed: int,
        pixel_loss: PixelLoss = cross_entropy,
    ) -> None:
        self.network, self.adaptation, self.source = network, adaptation, source
        self.recipe, self.scale, self.seed, self.pixel_loss = recipe, scale, seed, pixel_loss
        self.pool: dict[int, tuple[Sample, Embedding | None]] = {}
        self.held_back: list[tuple[torch.Tensor, list[Query]]] = []
        self.shown: list[Sample] = []
        self.picture: NDArray[np.uint8] | None = None

    def loss_at(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, recipe = step_rng(self.seed, step), self.recipe
        samples, embedding = self._batch(rng)
        correction = rng if rng.random() < recipe.correction_probability else None
        weights = weights_of(recipe)
        losses = [
            query_loss(self.network, self.adaptation, embedding, query, weights, correction, self.pixel_loss)
            for query in self._queries(samples, rng)
        ]
        loss = torch.stack(losses).mean()
        if recipe.token_prompts:
            loss = loss + locator_loss(self.adaptation, embedding, samples)
        return loss, {}

    def _queries(self, samples: list[Sample], rng: np.random.Generator) -> list[Query]:
        return queries_of(samples, self.adaptation.structures, self.recipe, rng, self.network.device)

    def _batch(self, rng: np.random.Generator) -> tuple[list[Sample], Embedding]:
        batch_size = self.recipe.batch_size or 1
        if not self.recipe.pool_size:
            samples = [self.source.draw(rng) for _ in range(batch_size)]
            return samples, self.network.encode(images_of(samples, self.network, self.scale))
        drawn = [self._pooled(int(rng.integers(self.recipe.pool_size))) for _ in range(batch_size)]
        samples = [sample for sample, _ in drawn]
        embeddings = [embedding for _, embedding in drawn if embedding is not None]
        if len(embeddings) == len(samples):
            return samples, joined(embeddings)
        return samples, self.network.encode(images_of(samples, self.network, self.scale))

    def _pooled(self, number: int) -> tuple[Sample, Embedding | None]:
        """Sample `number` of the pool; with a frozen encoder its embedding, made once."""
        if number not in self.pool:
            sample = self.source.draw(step_rng(self.seed + 1, number))
            embedding = None
            if self.recipe.encoder_blocks == 0:
                with torch.no_grad():
                    embedding = self.network.encode(images_of([sample], self.network, self.scale))
            self.pool[number] = sample, embedding
        return self.pool[number]

    def validate(self) -> float:
        """Mean Dice over held-back samples and all kinds of prompts."""
        if not self.held_back:
            for number in range(0, self.HELD_BACK, 4):
                rng = step_rng(self.seed + 2, number)
                samples = [self.source.draw(rng) for _ in range(4)]
                self.shown = self.shown or samples
                self.held_back.append((images_of(samples, self.network, self.scale), self._queries(samples, rng)))
        scores = []
        for images, queries in self.held_back:
            with torch.inference_mode():
                embedding = self.network.encode(images)
            scores += [batch_dice(self.network, self.adaptation, embedding, query) for query in queries]
        if self.recipe.token_prompts:
            images, structures = self.held_back[0][0], self.source.structures
            self.picture = answers_picture(self.network, self.adaptation, self.shown, images, structures)
        return float(np.mean(scores))


def queries_of(
    samples: Sequence[Sample],
    structures: Sequence[int],
    recipe: PromptedRecipe,
    rng: np.random.Generator,
    device: torch.device,
) -> list[Query]:
    """What a step asks about its samples: clicks and boxes, and structures by name, as the recipe says."""
    queries = []
    pointing = Pointing(recipe.box_share, recipe.central_share, recipe.most_points)
    if recipe.click_prompts:
        queries.append(click_query(samples, recipe.click_prompts, rng, pointing))
    if recipe.token_prompts:
        count = min(recipe.token_prompts, max(2, len(structures)))
        queries.append(token_query(samples, structures, count, rng, recipe.token_click_probability, pointing))
    return [on_device(query, device) for query in queries]


def weights_of(recipe: PromptedRecipe) -> LossWeights:
    """What the loss is made of."""
    with_background = recipe.dice == "with background"
    return LossWeights(recipe.cross_entropy_weight, recipe.dice_weight, recipe.quality_weight, with_background)


def joined(embeddings: Sequence[Embedding]) -> Embedding:
    """One batch of the embeddings of several images."""
    skips = zip(*(e.skips for e in embeddings), strict=True)
    return Embedding(torch.cat([e.features for e in embeddings]), tuple(torch.cat(s) for s in skips))


@contextlib.contextmanager
def checkpointing(network: PromptableNetwork, wanted: bool) -> Iterator[None]:
    """Transformer blocks forget their activations and recompute them in the backward pass."""
    blocks = list(network.image_encoder.blocks) if wanted else []
    for block in blocks:
        block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
