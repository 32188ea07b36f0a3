"""One step of prompted training: a batch of samples, prompts for it, their loss; and the validation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.sam.network import Embedding, PromptableNetwork
from FewShotSegLib.synthesis.plan import Sample

from . import data_parallel
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
    """Source of training samples."""

    structures: dict[int, str]

    def draw(self, rng: np.random.Generator) -> Sample:
        """One sample; all randomness comes from `rng`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The batch of a step: samples, their indices in the pool if there is one, queries on them, and the generator of
    the corrective clicks, if any.
    """

    samples: list[Sample]
    numbers: list[int] | None
    queries: list[Query]
    correction: np.random.Generator | None

    def share(self) -> Batch:
        """This process's shard of the global batch."""
        if data_parallel.count() == 1:
            return self
        numbers = None if self.numbers is None else list(data_parallel.own(self.numbers))
        samples = list(data_parallel.own(self.samples))
        return Batch(samples, numbers, [query.share() for query in self.queries], self.correction)


class Lesson:
    """Draws the samples and prompts of each step and computes their loss."""

    HELD_BACK = 12  # held-out samples

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
        self.pool: dict[int, Sample] = {}
        self.encoded: dict[int, Embedding] = {}  # by pool index
        self.held_back: list[tuple[torch.Tensor, list[Query]]] = []
        self.shown: list[Sample] = []
        self.picture: NDArray[np.uint8] | None = None
        self.rest()

    def rest(self) -> None:
        """Disable step callbacks and prefetching."""
        self.begin: Callable[[], None] = lambda: None
        self.drawn: Callable[[int], Batch] = self.draw

    def loss_at(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        self.begin()
        batch, recipe = self.drawn(step), self.recipe
        embedding = self._embedding(batch)
        weights = weights_of(recipe)
        losses = [
            query_loss(self.network, self.adaptation, embedding, query, weights, batch.correction, self.pixel_loss)
            for query in (on_device(query, self.network.device) for query in batch.queries)
        ]
        loss = torch.stack(losses).mean()
        if recipe.token_prompts:
            loss = loss + locator_loss(self.adaptation, embedding, batch.samples)
        return loss, {}

    def draw(self, step: int) -> Batch:
        """The batch of a step. Nothing here needs the network, so threads can prefetch it."""
        rng, recipe = step_rng(self.seed, step), self.recipe
        count, numbers = (recipe.batch_size or 1) * data_parallel.count(), None
        if recipe.pool_size:
            numbers = [int(rng.integers(recipe.pool_size)) for _ in range(count)]
            samples = [self._pooled(number) for number in numbers]
        else:
            samples = [self.source.draw(rng) for _ in range(count)]
        # Whether there is a correction is drawn before the prompts, to keep runs reproducible by seed.
        correction = rng if rng.random() < recipe.correction_probability else None
        queries = queries_of(samples, self.adaptation.structures, recipe, rng)
        return Batch(samples, numbers, queries, correction).share()

    def _pooled(self, number: int) -> Sample:
        if number not in self.pool:
            self.pool[number] = self.source.draw(step_rng(self.seed + 1, number))
        return self.pool[number]

    def _embedding(self, batch: Batch) -> Embedding:
        """Embeddings of all samples; with a frozen encoder those of the pool are encoded once."""
        if batch.numbers is None or self.recipe.encoder_blocks != 0:
            return self.network.encode(images_of(batch.samples, self.network, self.scale))
        for number, sample in zip(batch.numbers, batch.samples, strict=True):
            if number not in self.encoded:
                with torch.no_grad():
                    self.encoded[number] = self.network.encode(images_of([sample], self.network, self.scale))
        return joined([self.encoded[number] for number in batch.numbers])

    def validate(self) -> float:
        """Mean Dice over held-out samples and all prompt types."""
        if not self.held_back:
            for number in range(0, self.HELD_BACK, 4):
                rng = step_rng(self.seed + 2, number)
                samples = [self.source.draw(rng) for _ in range(4)]
                self.shown = self.shown or samples
                queries = queries_of(samples, self.adaptation.structures, self.recipe, rng)
                queries = [on_device(query, self.network.device) for query in queries]
                self.held_back.append((images_of(samples, self.network, self.scale), queries))
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
) -> list[Query]:
    """The prompts of a step: clicks and boxes, and structure tokens, as configured by the recipe."""
    queries = []
    pointing = Pointing(recipe.box_share, recipe.central_share, recipe.most_points)
    if recipe.click_prompts:
        queries.append(click_query(samples, recipe.click_prompts, rng, pointing))
    if recipe.token_prompts:
        count = min(recipe.token_prompts, max(2, len(structures)))
        queries.append(token_query(samples, structures, count, rng, recipe.token_click_probability, pointing))
    return queries


def weights_of(recipe: PromptedRecipe) -> LossWeights:
    """The weights of the loss terms."""
    with_background = recipe.dice == "with background"
    return LossWeights(recipe.cross_entropy_weight, recipe.dice_weight, recipe.quality_weight, with_background)


def joined(embeddings: Sequence[Embedding]) -> Embedding:
    """Concatenate the embeddings of several images into one batch."""
    skips = zip(*(e.skips for e in embeddings), strict=True)
    return Embedding(torch.cat([e.features for e in embeddings]), tuple(torch.cat(s) for s in skips))


@contextlib.contextmanager
def checkpointing(network: PromptableNetwork, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing: transformer blocks recompute their activations in the backward pass."""
    blocks = list(network.image_encoder.blocks) if wanted else []
    for block in blocks:
        block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
