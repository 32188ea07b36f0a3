"""Adapting a promptable model to exemplars: samples, prompts, losses, estimate, guard, and the adapter of it all."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from FewShotSegLib.imaging.slices import background_slices, labelled_slices, neighbour_slices
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.progress import Progress, Report
from FewShotSegLib.sam.clicks import random_click
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.synthesis.synthesizer import Synthesizer

from . import estimate
from .fit import FitResult, JointTraining, Schedule, fit, step_rng
from .lesson import Lesson, Source, checkpointing
from .losses import cross_entropy
from .prompted_recipe import PromptedRecipe, adaptation_spec, architecture_of, resolve
from .queries import (
    PixelLoss,
    images_of,
)

Beside = Callable[["Lesson", Mapping[str, torch.Tensor], int], JointTraining]
"""(lesson, trained parameters, seed) -> what is trained beside the exemplars, in turns."""


def adapt_prompted(
    base: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    recipe: PromptedRecipe,
    *,
    method: str,
    rng: np.random.Generator,
    report: Report,
    intensity: IntensitySpec | None = None,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
    start: Adapter | None = None,
    beside: Beside | None = None,
) -> Adapter:
    """Trains an adapter for the exemplars' structures on `base`, which is bit-identical afterwards.

    `intensity` defaults to what suits the first exemplar's volume. `start` continues from an earlier adapter of the
    same base and structures. `checkpoint` makes the run resumable; the caller removes it once the adapter is saved.
    `beside` makes what is trained beside the exemplars; estimates are made with it too.
    """
    recipe = resolve(recipe, architecture_of(base), base.device)
    structures = check_exemplars(exemplars)
    if start is not None:
        _check_same_structures(start, structures)
    intensity = intensity or replace(IntensitySpec.auto(exemplars[0].volume), scale=base.scale)
    seed = int(rng.integers(2**31))
    run = functools.partial(
        _train, base, structures=structures, intensity=intensity, recipe=recipe, seed=seed, start=start,
        beside=beside,
    )  # fmt: skip
    folds = estimate.leave_out(exemplars, recipe.estimate_folds)
    # Estimating may take a third of the time; the final run gets the rest.
    fold_seconds = max_seconds / 3 / len(folds) if max_seconds and folds else None
    fold_recipe = replace(recipe, steps=max(recipe.steps // 3, 1))
    all_steps = len(folds) * fold_recipe.steps + recipe.steps
    scores: list[dict[int, float]] = []
    for number, (kept, held_out) in enumerate(folds):
        adaptation, _, _ = run(
            exemplars=kept, recipe=fold_recipe, max_seconds=fold_seconds,
            report=_as_part(report, number * fold_recipe.steps, all_steps),
            checkpoint=None, message=f"estimating {number + 1}/{len(folds)}",
        )  # fmt: skip
        scores.append(estimate.held_out_dice(base, adaptation, held_out, intensity))
    rest = max_seconds - (fold_seconds or 0) * len(folds) if max_seconds else None
    adaptation, fitted, turns = run(
        exemplars=exemplars, max_seconds=rest, report=_as_part(report, all_steps - recipe.steps, all_steps),
        checkpoint=checkpoint, message="adapting",
    )  # fmt: skip
    metrics = _metrics(fitted, scores, folds, structures, recipe.estimate_folds)
    if turns is not None:
        metrics["auxiliary"] = turns.summary()
    if recipe.guard != "off":
        verdict = estimate.compare(base, adaptation, exemplars, intensity, rng=step_rng(seed, 2**31 - 1))
        metrics["guard"] = verdict
        _speak(verdict, recipe, report)
    return Adapter(
        tensors=adaptation.tensors(base),
        method=method,
        recipe=to_dict(recipe),
        base_model=base.name,
        base_sha256=base.sha256,
        structures=structures,
        intensity=intensity,
        image_size=base.image_size,
        seed=seed,
        axis=exemplars[0].axis,
        provenance={"exemplars": [estimate.provenance(exemplar) for exemplar in exemplars]},
        metrics=metrics,
        architecture={
            "lora": to_dict(adaptation.spec.lora),
            "tokens": recipe.tokens,
            "full_decoder": recipe.full_decoder,
        },
    )


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
        synthesis = replace(synthesis, original_probability=1.0, empty_probability=0.0)
    near = []
    if synthesis.background == "neighbour":
        near = [s for exemplar in exemplars for s in neighbour_slices(exemplar, intensity, image_size)]
    return Synthesizer(slices, empty, near, synthesis, structures)


def _train(
    network: PromptableNetwork,
    *,
    exemplars: Sequence[Exemplar],
    structures: dict[int, str],
    intensity: IntensitySpec,
    recipe: PromptedRecipe,
    seed: int,
    start: Adapter | None,
    beside: Beside | None,
    max_seconds: float | None,
    report: Report,
    checkpoint: Path | None,
    message: str,
) -> tuple[Adaptation, FitResult, JointTraining | None]:
    generator = torch.Generator().manual_seed(seed)
    adaptation = Adaptation(network, adaptation_spec(recipe, network), sorted(structures), generator=generator)
    if start is not None:
        adaptation.load(network, start.tensors)
    source = synthesizer_of(exemplars, intensity, network.image_size, recipe, structures)
    if start is None:
        adaptation.remember_clicks(network, _typical_clicks(source, recipe.tokens, step_rng(seed + 3, 0)))
        drawn = [source.draw(step_rng(seed + 4, number)) for number in range(8)]
        with torch.no_grad():
            adaptation.locator.standardize(network.encode(images_of(drawn, network, intensity.scale)))
    for note in source.notes:
        report(Progress(0, recipe.steps, note))
    fitted, turns = learn(
        network, adaptation, source, recipe, intensity.scale, seed=seed, report=report, max_seconds=max_seconds,
        checkpoint=checkpoint, identity=_identity(network, exemplars, intensity, recipe, seed, start),
        message=message, beside=beside,
    )  # fmt: skip
    return adaptation, fitted, turns


def learn(
    network: PromptableNetwork,
    adaptation: Adaptation,
    source: Source,
    recipe: PromptedRecipe,
    scale: str,
    *,
    seed: int,
    identity: str,
    report: Report,
    message: str,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
    beside: Beside | None = None,
    pixel_loss: PixelLoss = cross_entropy,
) -> tuple[FitResult, JointTraining | None]:
    """Trains `adaptation` in place on samples of `source`; it ends as the best state that was seen."""
    lesson = Lesson(network, adaptation, source, recipe, scale, seed, pixel_loss)
    schedule = Schedule(
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        max_seconds=max_seconds,
        validate_every=recipe.validate_every,
        patience=recipe.patience,
        accumulate=recipe.accumulate,
        checkpoint_seconds=recipe.checkpoint_seconds,
    )
    with adaptation.applied(network) as parameters, checkpointing(network, bool(recipe.checkpointing)):
        turns = beside(lesson, parameters, seed) if beside else None
        with turns or contextlib.nullcontext():
            fitted = fit(
                parameters,
                turns.loss_at if turns else lesson.loss_at,
                turns.schedule(schedule) if turns else schedule,
                report=_with_picture(report, lesson),
                validate=lesson.validate if recipe.validate_every else None,
                checkpoint=checkpoint,
                identity=identity,
                amp=training_precision(network.device),
                message=message,
                companion=turns,
            )
        with torch.no_grad():
            for name, value in fitted.best.items():
                parameters[name].copy_(value)
    return fitted, turns


def _typical_clicks(source: Synthesizer, count: int, rng: np.random.Generator) -> dict[int, NDArray[np.float32]]:
    """`count` clicks per structure, spread over the exemplar slices that show it."""
    clicks = {}
    for value in source.structures:
        masks = [piece.labels == value for piece in source.slices if (piece.labels == value).any()]
        drawn = [random_click(masks[i % len(masks)], rng, central=0.5) for i in range(count)]
        clicks[value] = np.array(drawn, np.float32)
    return clicks


def _identity(
    network: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    recipe: PromptedRecipe,
    seed: int,
    start: Adapter | None,
) -> str:
    """What must be equal for a checkpoint to be continued."""
    digests = [estimate.provenance(exemplar)["sha256"] for exemplar in exemplars]
    given = (intensity.to_dict(), to_dict(recipe), seed, start.digest if start else "")
    return repr((network.name, network.sha256, network.image_size, digests, *given))


def _metrics(
    fitted: FitResult, scores: list[dict[int, float]], folds: Sequence[Any], structures: dict[int, str], asked: int
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "steps": fitted.steps,
        "stopped_by": fitted.stopped_by,
        "held_back_dice": fitted.best_score,
        "best_step": fitted.best_step,
    }
    if not folds:
        why = "not asked for" if asked == 0 else "not estimable with one annotated slice"
        return {**metrics, "estimated_dice": None, "estimate": why}
    names = {v: [s[v] for s in scores if v in s] for v in structures}
    estimated = {structures[v]: float(np.mean(values)) for v, values in names.items() if values}
    return {**metrics, "estimated_dice": estimated, "estimate": estimate.describe(folds)}


def _as_part(report: Report, before: int, all_steps: int) -> Report:
    """Reports that also say which share of all steps is `done`: estimating and adapting each count from one."""

    def told(progress: Progress) -> None:
        done = (before + progress.step) / all_steps
        report(replace(progress, metrics={**progress.metrics, "done": done} if progress.step else progress.metrics))

    return told


def _with_picture(report: Report, lesson: Lesson) -> Report:
    """Reports that bring the picture of the last validation along, once."""

    def told(progress: Progress) -> None:
        picture, lesson.picture = lesson.picture, None
        report(progress if picture is None else replace(progress, picture=picture))

    return told


def _check_same_structures(start: Adapter, structures: dict[int, str]) -> None:
    if dict(start.structures) != structures:
        had, has = (", ".join(f"{v} = {name}" for v, name in s.items()) for s in (start.structures, structures))
        raise InputError(
            f"The adapter to go on from has learned {had}; the exemplars show {has}. Use exemplars of the same "
            "structures, or start anew."
        )


def _speak(verdict: dict[str, Any], recipe: PromptedRecipe, report: Report) -> None:
    if not verdict["warnings"]:
        return
    sentence = " ".join(verdict["warnings"])
    if recipe.guard == "refuse":
        raise InputError(f"{sentence} The recipe says to refuse such an adapter (guard=refuse).")
    report(Progress(recipe.steps, recipe.steps, f"Warning: {sentence}"))
