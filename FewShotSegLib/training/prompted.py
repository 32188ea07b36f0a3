"""Adapting a promptable model to exemplars: samples, prompts, losses, estimate, guard, and the final adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.devices import training_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import (
    background_slices,
    in_one_piece,
    labelled_slices,
    neighbour_slices,
    shown_together,
)
from FewShotSegLib.inference.structure_maps import StructureMaps
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.progress import Progress, Report, note, warning, with_share_done
from FewShotSegLib.sam.clicks import random_click
from FewShotSegLib.sam.cuda_graphs import graphed_training
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.synthesis.synthesizer import AnnotatedSlices, Synthesizer

from . import data_parallel, estimate
from .ahead import DrawnByThreads
from .context import AdaptInputs, RunContext
from .fit import FitResult, JointTraining, Schedule, fit, step_rng
from .lesson import Lesson, checkpointing
from .prompted_recipe import PromptedRecipe, adaptation_spec, image_size_of, resolve
from .queries import images_of

Beside = Callable[["Lesson", Mapping[str, torch.Tensor], int], JointTraining]
"""(lesson, trained parameters, seed) -> joint training that alternates with the exemplars."""


def adapt_prompted(
    inputs: AdaptInputs,
    recipe: PromptedRecipe,
    run: RunContext,
    *,
    method: str,
    beside: Beside | None = None,
    beside_identity: str = "",
) -> Adapter:
    """Train an adapter for the structures of the exemplars on the promptable base.

    An adapter to continue from must have the same base and structures. `beside` makes the joint training that
    accompanies the exemplars; estimates are made with it too. `beside_identity` is a digest of all that it depends on.
    """
    base, exemplars = inputs.promptable_base, inputs.exemplars
    recipe = resolve(recipe, base.family, base.device)
    structures, intensity = structures_and_intensity(inputs)
    seed = run.new_seed()
    trainer = _Trainer(base, structures, intensity, seed, inputs.start, beside, beside_identity)
    folds = estimate.leave_out(exemplars, recipe.estimate_folds)
    # The estimate may take a third of the time budget; the final run gets the rest.
    fold_seconds = run.max_seconds / 3 / len(folds) if run.max_seconds and folds else None
    steps = recipe.steps or 1
    fold_steps = max(steps // 3, 1)
    fold_recipe = replace(recipe, steps=fold_steps)
    all_steps = len(folds) * fold_steps + steps
    scores: list[dict[int, float]] = []
    for number, (kept, held_out) in enumerate(folds):
        done = number * fold_steps / all_steps, (number + 1) * fold_steps / all_steps
        part = replace(run, report=with_share_done(run.report, *done), max_seconds=fold_seconds, checkpoint=None)
        adaptation, _, _ = trainer.train(kept, fold_recipe, part, f"estimating {number + 1}/{len(folds)}")
        scores.append(estimate.held_out_dice(base, adaptation, held_out, intensity))
    rest = run.max_seconds - (fold_seconds or 0) * len(folds) if run.max_seconds else None
    part = replace(run, report=with_share_done(run.report, 1 - steps / all_steps, 1.0), max_seconds=rest)
    adaptation, fitted, joint = trainer.train(exemplars, recipe, part, "adapting", can_stop=True)
    metrics = metrics_of(fitted, scores, folds, structures, why_no_estimate(recipe))
    if joint is not None:
        metrics["auxiliary"] = joint.summary()
    if recipe.guard != "off":
        adapted = estimate.clicked_answers(base, intensity, adaptation)
        rng = step_rng(seed, 2**31 - 1)
        verdict = estimate.compare_with_base(base, adapted, exemplars, intensity, rng=rng)
        metrics["guard"] = verdict
        speak(verdict, recipe, run.report)
    return adapter_of(
        base,
        adaptation,
        recipe,
        method=method,
        seed=seed,
        **facts_of(exemplars, structures, intensity, base.image_size, metrics),
    )


def structures_and_intensity(inputs: AdaptInputs) -> tuple[dict[int, str], IntensitySpec]:
    """The structures {value: name} and the intensity scaling; an adapter to continue from must have the same
    structures.
    """
    structures = check_exemplars(inputs.exemplars)
    if inputs.start is not None:
        _check_same_structures(inputs.start, structures)
    scale = inputs.promptable_base.scale
    return structures, inputs.intensity or replace(inputs.intensity_of_exemplars(), scale=scale)


def facts_of(
    exemplars: Sequence[Exemplar],
    structures: dict[int, str],
    intensity: IntensitySpec,
    image_size: int,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of an `Adapter` determined by its exemplars, and its metrics with structure facts from them."""
    shown = [piece for exemplar in exemplars for piece in labelled_slices(exemplar, intensity, image_size)]
    return {
        "structures": structures,
        "intensity": intensity,
        "axis": exemplars[0].axis,
        "provenance": {"exemplars": [estimate.provenance(exemplar) for exemplar in exemplars]},
        "metrics": {
            **metrics,
            "in_one_piece": in_one_piece(shown, structures),
            "shown_together": shown_together(shown, structures),
        },
    }


def adapter_of(
    base: PromptableNetwork,
    adaptation: Adaptation,
    recipe: PromptedRecipe,
    *,
    maps: StructureMaps | None = None,
    **facts: Any,
) -> Adapter:
    """The adapter of a trained adaptation, and of its maps if any; `facts` are the remaining fields of `Adapter`."""
    architecture: dict[str, Any] = {
        "lora": to_dict(adaptation.spec.lora),
        "tokens": recipe.tokens,
        "full_decoder": recipe.full_decoder,
    }
    if not adaptation.spec.locator:
        architecture["locator"] = False
    if maps is not None:
        architecture.update(maps={"ways": list(maps.ways)})
    return Adapter(
        tensors={**adaptation.tensors(base), **(maps.tensors() if maps is not None else {})},
        recipe=to_dict(recipe),
        base_model=base.name,
        base_sha256=base.sha256,
        image_size=base.image_size,
        architecture=architecture,
        **facts,
    )


def training_samples(inputs: AdaptInputs, recipe: PromptedRecipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` samples like those `adapt_prompted` trains on, at the image size of the recipe."""
    structures = check_exemplars(inputs.exemplars)
    size = image_size_of(recipe)
    source = synthesizer_of(inputs.exemplars, inputs.intensity_of_exemplars(), size, recipe, structures)
    return [source.draw(rng) for _ in range(count)]


def synthesizer_of(
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    image_size: int,
    recipe: PromptedRecipe,
    structures: dict[int, str],
) -> Synthesizer:
    """The source of training samples."""
    slices = [s for exemplar in exemplars for s in labelled_slices(exemplar, intensity, image_size)]
    empty = [s for exemplar in exemplars for s in background_slices(exemplar, intensity, image_size, limit=16)]
    synthesis = recipe.synthesizer
    if not recipe.synthesis:
        return AnnotatedSlices(slices, synthesis, structures)
    near = []
    if synthesis.background == "neighbour":
        near = [s for exemplar in exemplars for s in neighbour_slices(exemplar, intensity, image_size)]
    return Synthesizer(slices, empty, near, synthesis, structures)


@dataclass(frozen=True, eq=False)
class _Trainer:
    """Shared by the estimate and the final training."""

    network: PromptableNetwork
    structures: dict[int, str]
    intensity: IntensitySpec
    seed: int
    start: Adapter | None
    beside: Beside | None
    beside_identity: str

    def train(
        self, exemplars: Sequence[Exemplar], recipe: PromptedRecipe, run: RunContext, stage: str, can_stop: bool = False
    ) -> tuple[Adaptation, FitResult, JointTraining | None]:
        """Train on a subset of the exemplars."""
        network, start = self.network, self.start
        generator = torch.Generator().manual_seed(self.seed)
        spec = adaptation_spec(recipe, network)
        adaptation = Adaptation(network, spec, sorted(self.structures), generator=generator)
        if start is not None:
            adaptation.load(network, start.tensors)
        source = synthesizer_of(exemplars, self.intensity, network.image_size, recipe, self.structures)
        if start is None:
            self._prepare(adaptation, source, recipe.tokens)
        for sentence in source.notes:
            run.report(note(sentence))
        lesson = Lesson(network, adaptation, source, recipe, self.intensity.scale, self.seed)
        identity = identity_of(network, exemplars, self.intensity, recipe, self.seed, start) + self.beside_identity
        fitted, joint = learn(lesson, run, stage, identity=identity, beside=self.beside, can_stop=can_stop)
        return adaptation, fitted, joint

    def _prepare(self, adaptation: Adaptation, source: Synthesizer, tokens: int) -> None:
        """Initialize the tokens from clicks on the exemplars, and the locator from their feature statistics."""
        network = self.network
        labels = [piece.labels for piece in source.slices]
        clicks = typical_clicks(labels, tuple(source.structures), tokens, step_rng(self.seed + 3, 0))
        adaptation.remember_clicks(network, clicks)
        drawn = [source.draw(step_rng(self.seed + 4, number)) for number in range(8)]
        with torch.no_grad():
            adaptation.locator.standardize(network.encode(images_of(drawn, network, self.intensity.scale)))


def schedule_of(recipe: PromptedRecipe, run: RunContext) -> Schedule:
    """The schedule of a resolved recipe in this run."""
    return Schedule(
        steps=recipe.steps or 1,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        max_seconds=run.max_seconds,
        validate_every=recipe.validate_every,
        patience=recipe.patience,
        accumulate=recipe.accumulate,
        checkpoint_seconds=recipe.checkpoint_seconds,
    )


def learn(
    lesson: Lesson, run: RunContext, stage: str, *, identity: str, beside: Beside | None = None, can_stop: bool = False
) -> tuple[FitResult, JointTraining | None]:
    """Train the adaptation of `lesson` in place; it ends in the best state."""
    network, adaptation, recipe = lesson.network, lesson.adaptation, lesson.recipe
    schedule = schedule_of(recipe, run)
    with (
        adaptation.applied(network) as parameters,
        checkpointing(network, bool(recipe.checkpointing)),
        # NCCL's watchdog threads query CUDA events, which is not allowed during graph capture.
        graphed_training(network, wanted=not recipe.checkpointing and data_parallel.count() == 1) as begin,
        DrawnByThreads(lesson.draw, network.device) as drawn,
    ):
        lesson.begin, lesson.drawn = begin, drawn
        joint = beside(lesson, parameters, lesson.seed) if beside else None
        with joint or contextlib.nullcontext():
            fitted = fit(
                parameters,
                joint.loss_at if joint else lesson.loss_at,
                joint.schedule(schedule) if joint else schedule,
                report=_with_picture(run.report, lesson),
                validate=lesson.validate if recipe.validate_every else None,
                checkpoint=run.checkpoint,
                identity=identity,
                amp=training_precision(network.device),
                message=stage,
                can_stop=can_stop,
                companion=joint,
            )
        with torch.no_grad():
            for name, value in fitted.best.items():
                parameters[name].copy_(value)
        lesson.rest()
    return fitted, joint


def typical_clicks(
    labels: Sequence[NDArray[np.int32]], structures: Sequence[int], count: int, rng: np.random.Generator
) -> dict[int, NDArray[np.float32]]:
    """`count` clicks (n, 2) per structure in network pixels, spread over the slices (S, S) that show it."""
    clicks = {}
    for value in structures:
        masks = [mask for shown in labels if (mask := shown == value).any()]
        drawn = [random_click(masks[i % len(masks)], rng, central=0.5) for i in range(count)]
        clicks[value] = np.array(drawn, np.float32)
    return clicks


def identity_of(
    network: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    recipe: PromptedRecipe,
    seed: int,
    start: Adapter | None,
) -> str:
    """String of everything that must match to resume from a checkpoint."""
    digests = [
        (estimate.provenance(e)["sha256"], e.axis, e.annotated_slices, e.empty_slices, dict(e.structures))
        for e in exemplars
    ]
    given = (intensity.to_dict(), to_dict(recipe), seed, start.digest if start else "")
    return repr((network.name, network.sha256, network.image_size, digests, *given))


def why_no_estimate(recipe: PromptedRecipe) -> str:
    """Why nothing can be held out for an estimate."""
    return "not asked for" if recipe.estimate_folds == 0 else "not estimable with one annotated slice"


def metrics_of(
    fitted: FitResult, scores: list[dict[int, float]], folds: Sequence[Any], structures: dict[int, str], why_none: str
) -> dict[str, Any]:
    """Metrics of training and estimate as JSON types for the card of the adapter. `why_none` says why there is no
    estimate if there are no folds.
    """
    metrics: dict[str, Any] = {
        "steps": fitted.steps,
        "stopped_by": fitted.stopped_by,
        "held_back_dice": fitted.best_score,
        "best_step": fitted.best_step,
        **fitted.oddities,
    }
    if not folds:
        return {**metrics, "estimated_dice": None, "estimate": why_none}
    means, how = estimate.estimated(folds, scores, structures)
    return {**metrics, "estimated_dice": means, "estimate": how}


def _with_picture(report: Report, lesson: Lesson) -> Report:
    """Progress reports that include the image of the last validation, once."""

    def told(progress: Progress) -> None:
        picture, lesson.picture = lesson.picture, None
        report(progress if picture is None else replace(progress, picture=picture))

    return told


def _check_same_structures(start: Adapter, structures: dict[int, str]) -> None:
    """Reject an adapter with other structures as a starting point."""
    if dict(start.structures) != structures:
        had, has = (", ".join(f"{v} = {name}" for v, name in s.items()) for s in (start.structures, structures))
        raise InputError(
            f"The adapter to continue from was trained on {had}; the exemplars show {has}. Use exemplars of the same "
            "structures, or start from scratch."
        )


def speak(verdict: dict[str, Any], recipe: PromptedRecipe, report: Report) -> None:
    """Report warnings of the comparison with the base model, or reject the adapter if the recipe says so."""
    if not verdict["warnings"]:
        return
    sentence = " ".join(verdict["warnings"])
    if recipe.guard == "refuse":
        raise InputError(f"{sentence} The recipe says to refuse such an adapter (guard=refuse).")
    report(warning(sentence))
