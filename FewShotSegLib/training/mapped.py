"""Adaptation with a frozen encoder: structure maps, and a mask decoder trained to use them.

Each image is encoded once. The maps (`inference.map_fitting`) are fitted as convex problems, not trained; what is
trained, for a few dozen steps, is the decoder: LoRA on its attention, its small layers, the prompt encoder and
structure tokens. It is trained on cross-fitted maps, that is on maps of images that were held out when fitting, so that
it corrects the errors that maps make on unseen patients. At inference, map and base decoder segment without clicks, and
base decoder and trained decoder together with clicks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import option
from FewShotSegLib.devices import training_precision
from FewShotSegLib.imaging.slices import LabelledSlice, background_slices, labelled_slices
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.map_fitting import MOST_TRIED, decided, fitted_classifier, samples_of, tried
from FewShotSegLib.inference.pictures import Picture, digest_of_piece, distinct_slices, numbered, pictures_of
from FewShotSegLib.inference.pixel_classifier import PixelSamples
from FewShotSegLib.inference.predictor import network_tensors
from FewShotSegLib.inference.structure_maps import (
    BOX,
    CLICK,
    MAP,
    MapPredictor,
    StructureMaps,
    derived_prompts,
)
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.progress import Report, note, with_share_done
from FewShotSegLib.sam.cuda_graphs import graphed_training
from FewShotSegLib.sam.network import PADDING, Embedding, PromptableNetwork, PromptBatch, mask_prompts
from FewShotSegLib.sam.presets import best_preset, preset_of
from FewShotSegLib.synthesis.plan import Sample

from . import data_parallel, estimate
from .context import AdaptInputs, RunContext
from .fit import FitResult, fit, step_rng
from .lesson import joined, queries_of, weights_of
from .prompted import (
    adapter_of,
    facts_of,
    identity_of,
    metrics_of,
    schedule_of,
    speak,
    structures_and_intensity,
    typical_clicks,
    why_no_estimate,
)
from .prompted_recipe import STEPS, PromptedRecipe, adaptation_spec, image_size_of, resolve
from .queries import on_device, query_loss

PIXELS = 12_000  # over all images, to fit on
MOST_SLICES = 64
WAYS, SHARES = (MAP, CLICK, BOX), (0.2, 0.4, 0.4)  # how the decoder is prompted with a map
MOST_COMPARED = 4  # slices for the guard and for each fold's estimate; decoding dominates the cost
TRIED_FOR_ESTIMATE = 2  # slices to compare ways on there
MAP_STEPS = 40
HURRIED = "left out: the time was too short"
CACHE_BYTES = 2**30  # some 250 images of 256 pixels


@dataclass(frozen=True)
class MapRecipe(PromptedRecipe):
    """Options of a promptable model that may be adapted with its encoder frozen."""

    steps: int | None = option(
        None,
        "Maximum optimization steps; default: 400, or 40 of the mask decoder with structure maps",
        min=1,
        max=100_000,
    )
    structure_maps: bool | None = option(
        None,
        "Leave the encoder as it is: solve for maps of the structures and train the mask decoder to use them; "
        "default: set by the preset",
        advanced=True,
    )
    pictures: int = option(
        12,
        "With structure maps: slices and transformed copies of them to learn from, at least",
        min=1,
        max=256,
        advanced=True,
    )


M = TypeVar("M", bound=MapRecipe)


def resolve_maps(recipe: M, family: str, device: torch.device) -> M:
    """The recipe completed from the preset, including whether to use maps; the user's settings are kept."""
    resolved = resolve(recipe, family, device)
    maps = recipe.structure_maps
    if maps is None:
        maps = preset_of(family, best_preset(device), device).structure_maps
    return replace(resolved, structure_maps=maps, steps=recipe.steps or (MAP_STEPS if maps else STEPS))


def adapt_with_maps(inputs: AdaptInputs, recipe: MapRecipe, run: RunContext, *, method: str) -> Adapter:
    """An adapter for the structures of the exemplars, on a promptable base with a frozen encoder; the recipe must be
    resolved.

    Accuracy is estimated with maps fitted without the held-out exemplar and the base model's decoder: cheap, and
    slightly below what the adapter reaches.
    """
    data_parallel.refuse(
        "Structure maps are solved for",
        "start the command without torchrun, as it takes a minute, or train LoRA in the encoder with "
        "structure_maps=false",
    )
    started = time.monotonic()
    base, exemplars = inputs.promptable_base, inputs.exemplars
    structures, intensity = structures_and_intensity(inputs)
    seed = run.new_seed()
    lesson = _Lesson.of(base, exemplars, recipe, intensity, seed, with_share_done(run.report, 0.0, 0.4))
    if lesson.predictor.advice:
        run.report(note(lesson.predictor.advice))
    hurried = run.max_seconds is not None and time.monotonic() - started > run.max_seconds / 3
    folds = [] if hurried else estimate.leave_out(exemplars, recipe.estimate_folds)
    scores = [lesson.held_out_dice(exemplar) for _, exemplar in folds]
    lesson.fit_maps()
    spent = time.monotonic() - started
    seconds = max(run.max_seconds - spent, 1.0) if run.max_seconds else None
    part = replace(run, report=with_share_done(run.report, 0.4, 1.0), max_seconds=seconds)
    identity = "maps " + identity_of(base, exemplars, intensity, recipe, seed, inputs.start)
    adaptation, fitted = lesson.trained_decoder(part, identity, inputs.start)
    why_none = HURRIED if hurried and recipe.estimate_folds else why_no_estimate(recipe)
    metrics = metrics_of(fitted, scores, folds, structures, why_none)
    adapter = adapter_of(
        base,
        adaptation,
        recipe,
        maps=lesson.predictor.maps,
        method=method,
        seed=seed,
        **facts_of(exemplars, structures, intensity, base.image_size, metrics),
    )
    if recipe.guard == "off":
        return adapter
    verdict = lesson.compared_with_base(adapter, exemplars)
    speak(verdict, recipe, run.report)
    return replace(adapter, metrics={**adapter.metrics, "guard": verdict})


def map_pictures(
    exemplars: Sequence[Exemplar], intensity: IntensitySpec, image_size: int, recipe: MapRecipe, seed: int
) -> list[Picture]:
    """Training images of maps and decoder: the exemplars' slices and, if synthesis is on, transformed copies."""
    slices = numbered(distinct_slices(exemplars, intensity, image_size, MOST_SLICES).values())
    return pictures_of(slices, recipe.pictures, seed) if recipe.synthesis else slices


def map_samples(inputs: AdaptInputs, recipe: MapRecipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` of the training images of `adapt_with_maps`, at the image size of the recipe."""
    size = image_size_of(recipe)
    pictures = map_pictures(inputs.exemplars, inputs.intensity_of_exemplars(), size, recipe, int(rng.integers(2**31)))
    chosen = rng.choice(len(pictures), count, replace=count > len(pictures))
    structures = check_exemplars(inputs.exemplars)
    return [_sample(pictures[number], structures) for number in chosen.tolist()]


@dataclass(eq=False)
class _Lesson:
    """Encoded training images, and everything fitted to them."""

    predictor: MapPredictor
    structures: tuple[int, ...]
    recipe: MapRecipe
    intensity: IntensitySpec
    seed: int
    pictures: list[Picture]
    digests: list[str]
    """By slice index."""
    samples: list[PixelSamples]
    left_out: dict[int, Tensor]

    @classmethod
    def of(
        cls,
        base: PromptableNetwork,
        exemplars: Sequence[Exemplar],
        recipe: MapRecipe,
        intensity: IntensitySpec,
        seed: int,
        report: Report,
    ) -> _Lesson:
        """The lesson with all images encoded and their pixels sampled."""
        structures = tuple(check_exemplars(exemplars))
        predictor = MapPredictor(base, scale=intensity.scale, cache=EmbeddingCache(CACHE_BYTES))
        pictures = map_pictures(exemplars, intensity, base.image_size, recipe, seed)
        samples = samples_of(predictor, pictures, structures, PIXELS, seed, report)
        digests = [digest_of_piece(picture) for picture in pictures if picture.original]
        return cls(predictor, structures, recipe, intensity, seed, pictures, digests, samples, {})

    def held_out_dice(self, exemplar: Exemplar) -> dict[int, float]:
        """Dice of each structure on an exemplar's slices, by maps fitted without them and the base decoder."""
        shown = labelled_slices(exemplar, self.intensity, self.predictor.image_size)
        empty = background_slices(exemplar, self.intensity, self.predictor.image_size)
        hidden = {digest_of_piece(piece) for piece in (*shown, *empty)}
        kept = [number for number, digest in enumerate(self.digests) if digest not in hidden]
        if not kept:
            return {}
        self.predictor.maps, _ = self._maps(kept, [], TRIED_FOR_ESTIMATE)
        return estimate.dice_of_slices(shown, self.structures, self._answer, MOST_COMPARED)

    def fit_maps(self) -> None:
        """Maps fitted to all images, and the cross-fitted (held-out) map of each."""
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
        """A decoder trained to use maps, within the time or step budget."""
        network, recipe = self.predictor.network, self.recipe
        generator = torch.Generator().manual_seed(self.seed)
        spec = replace(adaptation_spec(replace(recipe, encoder_blocks=0), network), locator=False)
        adaptation = Adaptation(network, spec, self.structures, generator=generator)
        if start is not None:
            adaptation.load(network, network_tensors(start))
        else:
            labels = [picture.labels for picture in self.pictures]
            clicks = typical_clicks(labels, self.structures, recipe.tokens, step_rng(self.seed + 3, 0))
            adaptation.remember_clicks(network, clicks)
        schedule = schedule_of(recipe, run)
        schedule = replace(schedule, warmup_steps=min(schedule.warmup_steps, schedule.steps // 8))
        with adaptation.applied(network) as parameters, graphed_training(network) as begin:

            def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
                begin()
                return self._loss_at(adaptation, step)

            fitted = fit(
                parameters,
                loss_at,
                schedule,
                report=run.report,
                checkpoint=run.checkpoint,
                identity=identity,
                amp=training_precision(network.device),
                message="adapting",
                can_stop=True,
            )
        return adaptation, fitted

    def _loss_at(self, adaptation: Adaptation, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, recipe, network = step_rng(self.seed, step), self.recipe, self.predictor.network
        batch = min(recipe.batch_size or 1, len(self.pictures))
        numbers = rng.choice(len(self.pictures), batch, replace=False).tolist()
        samples = [_sample(self.pictures[n], {}) for n in numbers]
        embedding = joined([self.predictor.encode([self.pictures[n].image])[0].to(torch.float32) for n in numbers])
        odds = torch.stack([self.left_out[n] for n in numbers]) + self.predictor.maps.offsets[:, None, None]
        told = _ToldByMaps(adaptation, odds, rng)
        drawn = queries_of(samples, self.structures, recipe, rng)
        queries = [on_device(query, network.device) for query in drawn]
        correction = rng if rng.random() < recipe.correction_probability else None
        weights = weights_of(recipe)
        losses = [query_loss(network, told, embedding, query, weights, correction) for query in queries]
        return torch.stack(losses).mean(), {}

    def compared_with_base(self, adapter: Adapter, exemplars: Sequence[Exemplar]) -> dict[str, Any]:
        """The guard: base model and adapter compared on clicks on the exemplars."""
        adapted = MapPredictor(self.predictor.network, adapter, cache=self.predictor.cache)

        def answer(piece: LabelledSlice, prompts: PromptBatch, values: Sequence[int]) -> NDArray[np.bool_]:
            embedding = adapted.encode([piece.image])[0]
            known = [row for row, value in enumerate(values) if adapted.knows(value)]
            others = [row for row in range(len(values)) if row not in known]
            parts = []
            for rows, structures in ((known, [values[row] for row in known]), (others, [])):
                if rows:
                    asked = PromptBatch(*(part[rows].to(adapted.device) for part in (prompts.coords, prompts.labels)))
                    parts.append(adapted.decode_known(embedding, asked, structures).logits > 0)
            return np.concatenate(parts)[np.argsort([*known, *others])]

        network, rng = self.predictor.network, step_rng(self.seed, 2**31 - 1)
        return estimate.compare_with_base(network, answer, exemplars, self.intensity, rng=rng, most=MOST_COMPARED)


@dataclass(frozen=True, eq=False)
class _ToldByMaps:
    """Replaces an adaptation's locator by maps: log-odds (B, K, g, g) of the slices of a batch."""

    adaptation: Adaptation
    odds: Tensor
    rng: np.random.Generator

    def structure_prompts(
        self, network: PromptableNetwork, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]
    ) -> PromptBatch:
        """The prompts (N, grouped by image) with tokens, the structure's map as mask prompt and, without a user click,
        the click or box derived from it.
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
