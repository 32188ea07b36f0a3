"""Adapting with a frozen encoder: maps of the structures, and a mask decoder that learns to use them.

Each picture is encoded once. The maps (`inference.map_fitting`) are solved for, not trained; what is trained, for a few
dozen steps, is the decoder: LoRA on its attention, its small layers, the prompt encoder and structure tokens. It learns
from maps as they are on pictures that were left out when they were fitted, so that it corrects the mistakes that maps
make on patients nobody has seen. Afterwards map and base decoder answer without clicks, and base decoder and trained
decoder together where a user points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.devices import training_precision
from FewShotSegLib.imaging.slices import LabelledSlice, background_slices, in_one_piece, labelled_slices
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.map_fitting import MOST_TRIED, decided, fitted_classifier, samples_of, tried
from FewShotSegLib.inference.pictures import Picture, distinct_slices, numbered, pictures_of
from FewShotSegLib.inference.pixel_classifier import PixelSamples
from FewShotSegLib.inference.predictor import network_tensors
from FewShotSegLib.inference.structure_maps import (
    BOX,
    CLICK,
    MAP,
    MapPredictor,
    StructureMaps,
    derived_prompts,
    mask_prompts,
)
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.progress import Report, with_share_done
from FewShotSegLib.sam.clicks import random_click
from FewShotSegLib.sam.network import PADDING, Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.synthesis.plan import Sample

from . import estimate
from .context import AdaptInputs, RunContext
from .fit import FitResult, Schedule, fit, step_rng
from .lesson import joined, queries_of, weights_of
from .prompted import adapter_of, check_same_structures, metrics_of, speak
from .prompted_recipe import PromptedRecipe, adaptation_spec, resolve
from .queries import query_loss

PIXELS = 12_000  # of all pictures, to fit on
MOST_SLICES = 64
WAYS, SHARES = (MAP, CLICK, BOX), (0.2, 0.4, 0.4)  # how the decoder is asked about a map
MOST_COMPARED = 4  # slices of the guard, and of the estimate of each fold; decoding is what costs
TRIED_FOR_ESTIMATE = 2  # slices that ways are compared on there
CACHE_BYTES = 2**30  # some 250 pictures of 256 pixels


def adapt_with_maps(inputs: AdaptInputs, recipe: PromptedRecipe, run: RunContext, *, method: str) -> Adapter:
    """An adapter for the structures of the exemplars, on a promptable base whose encoder stays as it is.

    Estimates of accuracy are those of maps fitted without the exemplar in question and the base model's decoder: a
    little below what the adapter reaches, and cheap.
    """
    started = time.monotonic()
    base, exemplars = inputs.promptable_base, inputs.exemplars
    recipe = resolve(recipe, base.family, base.device)
    structures = check_exemplars(exemplars)
    if inputs.start is not None:
        check_same_structures(inputs.start, structures)
    intensity = inputs.intensity or replace(inputs.intensity_of_exemplars(), scale=base.scale)
    seed = run.new_seed()
    lesson = _Lesson.of(base, exemplars, recipe, intensity, seed, with_share_done(run.report, 0.0, 0.4))
    hurried = run.max_seconds is not None and time.monotonic() - started > run.max_seconds / 3
    folds = [] if hurried else estimate.leave_out(exemplars, recipe.estimate_folds)
    scores = [lesson.held_out_dice(exemplar) for _, exemplar in folds]
    lesson.fit_maps()
    spent = time.monotonic() - started
    seconds = max(run.max_seconds - spent, 1.0) if run.max_seconds else None
    part = replace(run, report=with_share_done(run.report, 0.4, 1.0), max_seconds=seconds)
    identity = _identity(base, exemplars, intensity, recipe, seed, inputs.start)
    adaptation, fitted = lesson.trained_decoder(part, identity, inputs.start)
    metrics = metrics_of(fitted, scores, folds, structures, recipe.estimate_folds)
    shown = [piece for exemplar in exemplars for piece in labelled_slices(exemplar, intensity, base.image_size)]
    metrics["in_one_piece"] = in_one_piece(shown, structures)
    if hurried and recipe.estimate_folds:
        metrics["estimate"] = "left out: the time was too short"
    adapter = adapter_of(
        base,
        adaptation,
        recipe,
        maps=lesson.predictor.maps,
        method=method,
        structures=structures,
        intensity=intensity,
        seed=seed,
        axis=exemplars[0].axis,
        provenance={"exemplars": [estimate.provenance(exemplar) for exemplar in exemplars]},
        metrics=metrics,
    )
    if recipe.guard == "off":
        return adapter
    verdict = lesson.compared_with_base(adapter, exemplars)
    speak(verdict, recipe, run.report)
    return replace(adapter, metrics={**metrics, "guard": verdict})


def map_pictures(
    exemplars: Sequence[Exemplar], intensity: IntensitySpec, image_size: int, recipe: PromptedRecipe, seed: int
) -> list[Picture]:
    """What maps and decoder learn from: slices of the exemplars and, where samples are synthesized, copies of them."""
    slices = numbered(distinct_slices(exemplars, intensity, image_size, MOST_SLICES).values())
    return pictures_of(slices, recipe.pictures, seed) if recipe.synthesis else slices


def map_samples(inputs: AdaptInputs, recipe: PromptedRecipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` of the pictures that `adapt_with_maps` learns from, at the image size of the recipe."""
    size = recipe.image_size
    if size is None:
        raise TypeError("The recipe is not resolved: it has no image size.")
    pictures = map_pictures(inputs.exemplars, inputs.intensity_of_exemplars(), size, recipe, int(rng.integers(2**31)))
    chosen = rng.choice(len(pictures), count, replace=count > len(pictures))
    structures = check_exemplars(inputs.exemplars)
    return [_sample(pictures[number], structures) for number in chosen.tolist()]


@dataclass(eq=False)
class _Lesson:
    """Pictures that were seen once, and all that is learned from them."""

    predictor: MapPredictor
    structures: tuple[int, ...]
    recipe: PromptedRecipe
    intensity: IntensitySpec
    seed: int
    pictures: list[Picture]
    digests: list[str]
    """Of the slices, by their number."""
    samples: list[PixelSamples]
    left_out: dict[int, Tensor]

    @classmethod
    def of(
        cls,
        base: PromptableNetwork,
        exemplars: Sequence[Exemplar],
        recipe: PromptedRecipe,
        intensity: IntensitySpec,
        seed: int,
        report: Report,
    ) -> _Lesson:
        """The lesson with all pictures encoded, and pixels of them drawn."""
        structures = tuple(check_exemplars(exemplars))
        predictor = MapPredictor(base, scale=intensity.scale, cache=EmbeddingCache(CACHE_BYTES))
        pictures = map_pictures(exemplars, intensity, base.image_size, recipe, seed)
        samples = samples_of(predictor, pictures, structures, PIXELS, seed, report)
        digests = [_digest(picture) for picture in pictures if picture.original]
        return cls(predictor, structures, recipe, intensity, seed, pictures, digests, samples, {})

    def held_out_dice(self, exemplar: Exemplar) -> dict[int, float]:
        """Dice of each structure on an exemplar's slices, by maps that have not seen them and the base's decoder."""
        shown = labelled_slices(exemplar, self.intensity, self.predictor.image_size)
        empty = background_slices(exemplar, self.intensity, self.predictor.image_size)
        hidden = {_digest(piece) for piece in (*shown, *empty)}
        kept = [number for number, digest in enumerate(self.digests) if digest not in hidden]
        if not kept:
            return {}
        self.predictor.maps, _ = self._maps(kept, [], TRIED_FOR_ESTIMATE)
        return estimate.dice_of_slices(shown, self.structures, self._answer, MOST_COMPARED)

    def fit_maps(self) -> None:
        """Maps from all pictures, and what each of them would have been told when it was left out."""
        everything = list(range(len(self.digests)))
        self.predictor.maps, self.left_out = self._maps(everything, range(len(self.pictures)))

    def _maps(
        self, sources: Sequence[int], wanted: Sequence[int], most_tried: int = MOST_TRIED
    ) -> tuple[StructureMaps, dict[int, Tensor]]:
        pictures, chosen = self.pictures, tried(self.pictures, sources, most_tried)
        classifier, odds = fitted_classifier(self.predictor, pictures, self.samples, sources, {*wanted, *chosen})
        left_out = [(number, odds[number]) for number in chosen]
        return decided(self.predictor, pictures, self.structures, [classifier], left_out), odds

    def _answer(self, piece: LabelledSlice) -> NDArray[np.bool_]:
        embedding = self.predictor.encode([piece.image])[0]
        return np.asarray(self.predictor.decode_structures(embedding, self.structures).logits > 0)

    def trained_decoder(self, run: RunContext, identity: str, start: Adapter | None) -> tuple[Adaptation, FitResult]:
        """A decoder that learned to use maps, after the time or the steps that there are."""
        network, recipe = self.predictor.network, self.recipe
        generator = torch.Generator().manual_seed(self.seed)
        spec = replace(adaptation_spec(replace(recipe, encoder_blocks=0), network), locator=False)
        adaptation = Adaptation(network, spec, self.structures, generator=generator)
        if start is not None:
            adaptation.load(network, network_tensors(start))
        else:
            adaptation.remember_clicks(network, self._typical_clicks(recipe.tokens))
        steps = recipe.steps or 1
        schedule = Schedule(
            steps,
            recipe.learning_rate,
            recipe.weight_decay,
            min(recipe.warmup_steps, steps // 8),
            max_seconds=run.max_seconds,
            accumulate=recipe.accumulate,
            checkpoint_seconds=recipe.checkpoint_seconds,
        )
        with adaptation.applied(network) as parameters:
            fitted = fit(
                parameters,
                lambda step: self._loss_at(adaptation, step),
                schedule,
                report=run.report,
                checkpoint=run.checkpoint,
                identity=identity,
                amp=training_precision(network.device),
                message="adapting",
                can_stop=True,
            )
        return adaptation, fitted

    def _typical_clicks(self, count: int) -> dict[int, NDArray[np.float32]]:
        rng, clicks = step_rng(self.seed + 3, 0), {}
        for value in self.structures:
            masks = [mask for picture in self.pictures if (mask := picture.labels == value).any()]
            drawn = [random_click(masks[i % len(masks)], rng, central=0.5) for i in range(count)]
            clicks[value] = np.array(drawn, np.float32)
        return clicks

    def _loss_at(self, adaptation: Adaptation, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, recipe, network = step_rng(self.seed, step), self.recipe, self.predictor.network
        batch = min(recipe.batch_size or 1, len(self.pictures))
        numbers = rng.choice(len(self.pictures), batch, replace=False).tolist()
        samples = [_sample(self.pictures[n], {}) for n in numbers]
        embedding = joined([_plain(self.predictor.encode([self.pictures[n].image])[0]) for n in numbers])
        odds = torch.stack([self.left_out[n] for n in numbers]) + self.predictor.maps.offsets[:, None, None]
        told = _ToldByMaps(adaptation, odds, rng)
        queries = queries_of(samples, self.structures, recipe, rng, network.device)
        correction = rng if rng.random() < recipe.correction_probability else None
        weights = weights_of(recipe)
        losses = [query_loss(network, told, embedding, query, weights, correction) for query in queries]
        return torch.stack(losses).mean(), {}

    def compared_with_base(self, adapter: Adapter, exemplars: Sequence[Exemplar]) -> dict[str, Any]:
        """The guard: clicks on the exemplars, answered by the base model and by the adapter."""
        adapted = MapPredictor(self.predictor.network, adapter, cache=self.predictor.cache)

        def answer(piece: LabelledSlice, prompts: PromptBatch, values: Sequence[int]) -> NDArray[np.bool_]:
            embedding = adapted.encode([piece.image])[0]
            known = [row for row, value in enumerate(values) if adapted.knows(value)]
            others = [row for row in range(len(values)) if row not in known]
            parts = []
            for rows, structures in ((known, [values[row] for row in known]), (others, [])):
                if rows:
                    asked = PromptBatch(prompts.coords[rows], prompts.labels[rows])
                    parts.append(adapted.decode_known(embedding, asked, structures).logits > 0)
            return np.concatenate(parts)[np.argsort([*known, *others])]

        network, rng = self.predictor.network, step_rng(self.seed, 2**31 - 1)
        return estimate.compare_with_base(network, answer, exemplars, self.intensity, rng=rng, most=MOST_COMPARED)


@dataclass(frozen=True, eq=False)
class _ToldByMaps:
    """Puts maps in the place of an adaptation's locator: odds (B, K, g, g) of the slices of a batch."""

    adaptation: Adaptation
    odds: Tensor
    rng: np.random.Generator

    def structure_prompts(
        self, network: PromptableNetwork, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]
    ) -> PromptBatch:
        """The prompts (N, grouped by image) with tokens, the structure's map as mask and, where nobody clicked, the
        click or box that is derived from it.
        """
        per_image = len(structures) // len(self.odds)
        rows = [self.adaptation.structures.index(value) for value in structures]
        maps = torch.stack([self.odds[i // per_image, row] for i, row in enumerate(rows)])
        coords, labels = prompts.coords.clone(), prompts.labels.clone()
        ways = [str(self.rng.choice(WAYS, p=SHARES)) for _ in structures]
        derived = derived_prompts(maps, ways, network.image_size)
        alone = (labels == PADDING).all(1)
        coords[alone] = torch.from_numpy(derived[0]).to(coords)[alone]
        labels[alone] = torch.from_numpy(derived[1]).to(labels)[alone]
        tokens = self.adaptation.tokens_of(structures)
        return PromptBatch(coords, labels, mask_prompts(maps, network.mask_input_size), tokens=tokens)


def _sample(picture: Picture, structures: Mapping[int, str]) -> Sample:
    caption = f"slice {picture.source + 1}" + ("" if picture.original else ", transformed")
    return Sample(picture.image, picture.labels, None, {"caption": caption, "structures": dict(structures)})


def _plain(embedding: Embedding) -> Embedding:
    return Embedding(embedding.features.float(), tuple(skip.float() for skip in embedding.skips))


def _digest(piece: LabelledSlice | Picture) -> str:
    return sha256_of_array(np.stack([piece.image, piece.labels]))


def _identity(
    base: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    recipe: PromptedRecipe,
    seed: int,
    start: Adapter | None,
) -> str:
    """What must be equal for a checkpoint to be continued."""
    digests = [estimate.provenance(exemplar)["sha256"] for exemplar in exemplars]
    given = (intensity.to_dict(), to_dict(recipe), seed, start.digest if start else "")
    return repr(("maps", base.name, base.sha256, base.image_size, digests, *given))
