"""ASAP: a bandit selects the auxiliary data set to train on alongside a few target cases, turn by turn.

Yang et al., "Adapting foundation models for few-shot medical image segmentation: actively and sequentially" (ASAP).
In every turn one *arm*, one structure of one auxiliary data set, is trained on together with the exemplars. It is
selected by its rewards so far: its loss, and the cosine between its gradient and the target's (`bandit`, `turns`). The
right data set helps more than any regularizer, the wrong one hurts; this finds out in a single run.

The model is a 3-D network (UNet, SwinUNet, MambaUNet, as in the paper; one per structure), or the promptable model with
LoRA, whose arms are clicked structures. The baselines of the paper are other `scheduler`s of the same run. Departures:
our variant of the bandit (see `BanditRecipe`) and of the gradients that it compares (see `turns`); a turn is a few
steps, not an epoch, as there are only three cases; networks without given weights are first trained on auxiliary data:
the bandit compares the arms, and the best one alone is the start, with which the exemplars go on. `preset=paper` is the
paper as far as it is specified.

When to use it: a few annotated cases, and a folder of other labelled data sets. A 3-D network gains most in short
training and on small structures; given 1,000 steps, direct fine-tuning is about as good on livers and spleens
(Testing/BENCHMARKS.md). Cost: as training with one fixed auxiliary data set, regardless of their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars, preflight
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import option, to_dict, with_preset
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.io.places import cache_folder
from FewShotSegLib.progress import Report
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.presets import smaller_preset
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training import data_parallel
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.estimate import provenance
from FewShotSegLib.training.lesson import Lesson, weights_of
from FewShotSegLib.training.patches import PatchRecipe
from FewShotSegLib.training.preview import patch_samples, shown_slice
from FewShotSegLib.training.prompted import adapt_prompted
from FewShotSegLib.training.prompted import training_samples as prompted_samples
from FewShotSegLib.training.prompted_recipe import STEPS, PromptedRecipe
from FewShotSegLib.training.prompted_recipe import resolve as resolve_prompted
from FewShotSegLib.training.queries import Pointing, click_query, images_of, on_device, query_loss

from .bandit import READINGS as READINGS
from .bandit import BanditRecipe
from .networks import NetworkLesson, NetworkRecipe, adapt_networks
from .pool import Pool
from .schedulers import SCHEDULERS, Direct, Scheduler, scheduler_of
from .turns import Gradients, TurnRecipe, Turns

__all__ = [
    "LABEL",
    "NEEDS",
    "Recipe",
    "adapt",
    "needs_base",
    "preflight",
    "resolve",
    "smaller_preset",
    "training_samples",
]

LABEL = "ASAP: learn beside auxiliary data sets"
NEEDS = frozenset({"exemplars", "auxiliary"})


@dataclass(frozen=True)
class Recipe(PromptedRecipe):
    """Options of LoRA and prompting apply to network "sam" only, those of patches and networks to the others."""

    preset: str = option(
        "auto",
        "Hardware preset, by free GPU memory; paper: a 3-D network as in the paper, for a GPU of 80 GB",
        choices=("auto", "cpu", "8GB", "12GB", "24GB", "paper"),
    )
    network: str = option(
        "sam",
        "What is adapted: the promptable model, or a 3-D network",
        choices=("sam", "unet", "swinunet", "mambaunet"),
    )
    scheduler: str = option(
        "asap", "Scheduler of the auxiliary data: ASAP, or a baseline", choices=SCHEDULERS, advanced=True
    )
    reading: str = option(
        "default",
        "Reading of ASAP: ours (then the options below count), or the authors' paper, run or code",
        choices=("default", "paper", "log", "released"),
        advanced=True,
    )
    gradients: str = option(
        "as reading",
        "Gradients to compare (eq. 2): running mean of the target's, means of batches, or one batch of each",
        choices=("as reading", "running mean", "batches", "step"),
        advanced=True,
    )
    bandit: BanditRecipe = field(default_factory=BanditRecipe, metadata={"help": "How an arm is valued"})
    weight_decay: float = option(1e-7, "AdamW weight decay (ASAP: 1e-7)", min=0.0, max=1.0, advanced=True)
    steps_per_turn: int = option(1, "Steps per turn, on one auxiliary data set", min=1, max=1000, advanced=True)
    finish: float = option(
        0.3,
        "Fraction of final steps on the exemplars only (ASAP: 0)",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    measured_steps: int = option(1, "Steps of a turn whose gradients are compared", min=1, max=1000, advanced=True)
    reward_batches: int = option(
        4, "Batches of each whose mean gradients are compared, where means of batches are", min=1, advanced=True
    )
    probe_batches: int = option(2, "Batches per arm for the initial estimate before training", min=1, advanced=True)
    max_cases: int = option(
        30, "Maximum number of cases per auxiliary data set (ASAP: 30)", min=1, max=10_000, advanced=True
    )
    exclude: str = option("", 'Arms to leave out, "data set: structure", separated by ;', advanced=True)
    size: str = option("small", "Size of a 3-D network", choices=("small", "paper"), advanced=True)
    patch: tuple[int, int, int] = option((16, 96, 96), "Patch of a 3-D network: slices, rows, columns", advanced=True)
    spacing_mm: tuple[float, float, float] | None = option(
        None, "Working voxel size (i, j, k) of a 3-D network in mm; none: that of the first exemplar", advanced=True
    )
    weights: str | None = option(None, "Weights file to initialize a 3-D network", advanced=True)
    pretraining: str = option(
        "chosen",
        "Auxiliary data to pretrain a 3-D network without weights: by the scheduler, by lot (at random), or none",
        choices=("chosen", "by lot", "none"),
        advanced=True,
    )
    pretraining_steps: int = option(200, "Pretraining steps", min=0, advanced=True)
    patches: PatchRecipe = field(default_factory=PatchRecipe, metadata={"help": "How patches are drawn"})


# 400 epochs of at most 30 cases in batches of 4 are 400 turns of 8 steps. Algorithm 1 takes gradients of whole data
# sets, here 8 batches. The paper's source model is not published: provide one as `weights`, or the network is
# pre-trained with random arms. The five folds are over the shots: three shots give three.
PAPER: dict[str, Any] = {
    "steps": 400 * 8,
    "steps_per_turn": 8,
    "learning_rate": 3e-4,
    "weight_decay": 1e-7,
    "warmup_steps": 0,
    "batch_size": 4,
    "patch": (32, 240, 240),
    "size": "paper",
    "reading": "paper",
    "finish": 0.0,
    "pretraining": "by lot",
    "probe_batches": 8,
    "reward_batches": 8,
    "estimate_folds": 5,
}


def needs_base(recipe: Recipe) -> bool:
    """Whether a promptable base model is adapted."""
    return recipe.network == "sam"


def resolve(recipe: Recipe, family: str, device: torch.device) -> Recipe:
    """The recipe completed from the preset."""
    if recipe.preset == "paper":
        if needs_base(recipe):
            raise InputError("preset=paper is of the paper's 3-D networks; choose network=unet, swinunet or mambaunet.")
        recipe = with_preset(recipe, PAPER)
    resolved = resolve_prompted(recipe, family, device)
    if needs_base(recipe):
        return resolved
    return replace(resolved, batch_size=recipe.batch_size or 2, encoder_blocks=0, checkpointing=False, pool_size=0)


def training_samples(inputs: AdaptInputs, recipe: Recipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` samples: of the exemplars, and of the arms if there are any. Of a 3-D patch, the slice with the most
    foreground.
    """
    structures = check_exemplars(inputs.exemplars)
    intensity = inputs.intensity_of_exemplars()
    if needs_base(recipe):
        grid = _slice_grid(inputs.exemplars[0], recipe.image_size or 0)
    else:
        grid = Grid.of(inputs.exemplars[0].volume, recipe.patch, recipe.spacing_mm)
    pool = _pool(inputs, grid, intensity, recipe)
    of_arms = count // 2 if pool is not None else 0
    if needs_base(recipe):
        samples = prompted_samples(inputs, recipe, rng, count - of_arms)
    else:
        samples = patch_samples(inputs.exemplars, structures, grid, intensity, recipe.patches, rng, count - of_arms)
    first = max(structures) + 1  # label values of arms follow those of the exemplars
    return [*samples, *(_arm_sample(pool, first, rng) for _ in range(of_arms) if pool is not None)]


def _arm_sample(pool: Pool, first: int, rng: np.random.Generator) -> Sample:
    """The slice with the most foreground of a patch of a random arm."""
    arm = int(rng.integers(len(pool.names)))
    image, mask = pool.sample(arm, rng)
    value, name = first + arm, pool.names[arm]
    return shown_slice(image, value * mask.astype(np.int32), f"auxiliary: {name}", {value: name})


def adapt(inputs: AdaptInputs, recipe: Recipe, run: RunContext) -> Adapter:
    """Train an adapter for the structures of the exemplars alongside the auxiliary data sets.

    A 3-D network is trained on the device of the run, a promptable one on that of its base. Without auxiliary data this
    is plain fine-tuning, bit for bit. The selections and their rewards are in the metrics under "auxiliary".
    """
    base = inputs.base
    family, device = (base.family, base.device) if base is not None else ("compact", run.device)
    recipe = resolve(recipe, family, device)
    structures = check_exemplars(inputs.exemplars)
    intensity = inputs.intensity_of_exemplars()
    if base is not None:
        return _adapt_promptable(replace(inputs, intensity=replace(intensity, scale=base.scale)), base, recipe, run)
    if inputs.start is not None:
        raise InputError("A 3-D network cannot continue from an adapter; leave the warm start out, or use network=sam.")
    grid = Grid.of(inputs.exemplars[0].volume, recipe.patch, recipe.spacing_mm)
    pool = _pool(inputs, grid, intensity, recipe)
    _prepare(pool, recipe, run.report)

    def scheduler_for(seed: int, *, explores: bool = False) -> Scheduler:
        return _scheduler(recipe, pool, seed, explores)

    lesson = NetworkLesson(inputs.exemplars, structures, grid, intensity, pool, scheduler_for)
    trained = adapt_networks(lesson, _network_recipe(recipe), run)
    return Adapter(
        tensors=trained.tensors,
        method="asap",
        recipe=to_dict(recipe),
        base_model="",
        base_sha256="",
        structures=trained.structures,
        intensity=intensity,
        image_size=max(grid.patch),
        seed=trained.seed,
        axis=inputs.exemplars[0].axis,
        provenance={"exemplars": [provenance(exemplar) for exemplar in inputs.exemplars]},
        metrics=trained.metrics,
        architecture=trained.architecture,
    )


def _adapt_promptable(inputs: AdaptInputs, base: PromptableNetwork, recipe: Recipe, run: RunContext) -> Adapter:
    """The promptable model, with clicked slices of the arms alongside the exemplars."""
    first = inputs.exemplars[0]
    pool = _pool(inputs, _slice_grid(first, base.image_size), inputs.intensity_of_exemplars(), recipe)
    _prepare(pool, recipe, run.report)
    arms = _PromptedArms(base, pool, recipe, first.axis) if pool else None
    digest = arms.pool.digest() if arms else ""
    return adapt_prompted(
        inputs, recipe, run, method="asap", beside=arms.beside if arms else None, beside_identity=digest
    )


def _pool(inputs: AdaptInputs, grid: Grid, intensity: IntensitySpec, recipe: Recipe) -> Pool | None:
    """The arms, without the exemplars' own images: other labels on them would contradict the exemplars'."""
    if not inputs.auxiliary:
        return None
    exclude = [name.strip() for name in recipe.exclude.split(";") if name.strip()]
    return Pool(
        inputs.auxiliary,
        grid,
        cache_folder() / "auxiliary",
        max_cases=recipe.max_cases,
        intensity=intensity,
        foreground=recipe.patches.foreground,
        exclude=exclude,
        of_target=frozenset(sha256_of_array(exemplar.volume.array) for exemplar in inputs.exemplars),
    )


def _prepare(pool: Pool | None, recipe: Recipe, report: Report) -> None:
    if pool is not None and (recipe.scheduler != "direct" or recipe.pretraining == "by lot"):
        pool.prepare(report)


def _scheduler(recipe: Recipe, pool: Pool | None, seed: int, explores: bool = False) -> Scheduler:
    """The scheduler of the recipe; one that explores pulls an arm in every turn."""
    rng = np.random.default_rng([seed, 3])
    if pool is None:
        return Direct(rng)
    options = recipe.bandit if recipe.reading == "default" else READINGS[recipe.reading]
    if explores:
        options = replace(options, abstain=False)
    scheduler = scheduler_of(recipe.scheduler, pool.names, options, rng)
    for arm, reason in pool.quarantined.items():
        scheduler.quarantine(arm, reason)
    return scheduler


def _network_recipe(recipe: Recipe) -> NetworkRecipe:
    return NetworkRecipe(
        network=recipe.network,
        size=recipe.size,
        steps=recipe.steps or STEPS,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        batch_size=recipe.batch_size or 1,
        validate_every=recipe.validate_every,
        estimate_folds=recipe.estimate_folds,
        weights=recipe.weights,
        pretraining=recipe.pretraining,
        pretraining_steps=recipe.pretraining_steps,
        keep_to_best=recipe.reading == "default",
        checkpoint_seconds=recipe.checkpoint_seconds,
        patches=recipe.patches,
        turns=_turn_recipe(recipe),
    )


def _turn_recipe(recipe: Recipe) -> TurnRecipe:
    gradients = recipe.gradients
    if gradients == "as reading":
        gradients = "running mean" if recipe.reading == "default" else "batches"
    return TurnRecipe(
        recipe.steps_per_turn,
        min(recipe.measured_steps, recipe.steps_per_turn),
        recipe.probe_batches,
        alone_from=round((1 - recipe.finish) * (recipe.steps or STEPS)),
        gradients=cast(Gradients, gradients),  # one of its choices
        reward_batches=recipe.reward_batches,
    )


# ------------------------------------------------------------------------------------------------- the promptable model


def _slice_grid(exemplar: Exemplar, image_size: int) -> Grid:
    """Slices of auxiliary data at the scale of the exemplar's slices in the network, cropped to its square."""
    axes = [axis for axis in range(3) if axis != exemplar.axis]  # of the array, (k, j, i)
    mm = np.asarray(exemplar.volume.spacing_mm, dtype=np.float64)[::-1]
    scale = max(exemplar.volume.shape[axis] for axis in axes) / image_size
    spacing, patch = mm.copy(), [image_size] * 3
    spacing[axes] *= scale
    patch[exemplar.axis] = 1
    d, h, w = patch
    return Grid.of(exemplar.volume, (d, h, w), spacing[::-1].tolist())


@dataclass(frozen=True, eq=False)
class _PromptedArms:
    """Arms of the promptable model: one slice with a click on one structure, regardless of its name."""

    network: PromptableNetwork
    pool: Pool
    recipe: Recipe
    axis: int

    def beside(self, lesson: Lesson, parameters: Mapping[str, torch.Tensor], seed: int) -> Turns:
        """Turns with the exemplars' lesson as the target."""

        def auxiliary(arm: int, rng: np.random.Generator) -> torch.Tensor:
            lesson.begin()
            recipe = self.recipe
            samples = [self._sample(arm, rng) for _ in range((recipe.batch_size or 1) * data_parallel.count())]
            pointing = Pointing(recipe.box_share, recipe.central_share, recipe.most_points)
            query = click_query(samples, max(recipe.click_prompts, 1), rng, pointing).share()
            query = on_device(query, self.network.device)
            images = images_of(data_parallel.own(samples), self.network, lesson.scale)
            embedding = self.network.encode(images)
            return query_loss(self.network, lesson.adaptation, embedding, query, weights_of(recipe))

        return Turns(
            _scheduler(self.recipe, self.pool, seed),
            self.pool.names,
            lambda step: lesson.loss_at(step)[0],
            auxiliary,
            self.network,
            parameters,
            seed=seed,
            recipe=_turn_recipe(self.recipe),
            probe_scale=2.0**12 if self.network.device.type == "cuda" else 1.0,
        )

    def _sample(self, arm: int, rng: np.random.Generator) -> Sample:
        image, mask = self.pool.sample(arm, rng)
        return Sample(image.squeeze(self.axis), mask.squeeze(self.axis).astype(np.int32), None, {})
