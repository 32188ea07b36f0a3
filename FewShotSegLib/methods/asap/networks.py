"""Training 3-D networks on a few exemplars, beside auxiliary data where there are some: one network per structure.

What is learned is binary, structure against all else, as the arms of auxiliary data are (1-way segmentation of the ASAP
paper). How many steps are best is found by leaving exemplars out in turn; the final run trains on all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.devices import bfloat16_pays
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference.sliding_window import foreground_logit, predict
from FewShotSegLib.inference.volume_network import grid_to_dict, network_arguments, tensors_of
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.io.places import cache_folder
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import load_weights, weights_of
from FewShotSegLib.progress import Progress, Report, silent
from FewShotSegLib.training import estimate
from FewShotSegLib.training.fit import FitResult, Schedule, fit, step_rng
from FewShotSegLib.training.patches import Case, Patch, PatchRecipe, PatchSource, case_of, patch_loss

from .pool import Pool
from .schedulers import RandomArm, Scheduler
from .turns import TurnRecipe, Turns, spread

_PRETRAINING = "pretraining on all auxiliary data"


@dataclass(frozen=True)
class NetworkRecipe:
    """What to train and how long; see `methods.asap.Recipe` for the ranges."""

    network: str = "unet"
    size: str = "small"
    steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 1e-7
    warmup_steps: int = 20
    batch_size: int = 2
    validate_every: int = 40
    estimate_folds: int = 2
    weights: str | None = None
    pretraining_steps: int = 200
    checkpoint_seconds: float = 20.0
    patches: PatchRecipe = field(default_factory=PatchRecipe)
    turns: TurnRecipe = field(default_factory=TurnRecipe)


def adapt_networks(
    exemplars: Sequence[Exemplar],
    structures: dict[int, str],
    pool: Pool | None,
    scheduler_for: Callable[[int], Scheduler],
    recipe: NetworkRecipe,
    *,
    grid: Grid,
    intensity: IntensitySpec,
    method: str,
    recipe_of_method: Any,
    rng: np.random.Generator,
    report: Report,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
    device: torch.device,
) -> Adapter:
    """Trains a network per structure and returns them as one adapter. `scheduler_for` makes a scheduler from a seed.

    `max_seconds` is shared among structures; `checkpoint` is resumed from, structure by structure.
    """
    seed = int(rng.integers(2**31))
    networks: dict[int, nn.Module] = {}
    metrics: dict[str, Any] = {"estimated_dice": {}, "estimate": "not asked for", "structures": {}}
    share = max_seconds / len(structures) if max_seconds else None
    for number, (value, name) in enumerate(structures.items()):
        learner = _Learner(value, name, exemplars, pool, scheduler_for, recipe, grid, intensity, seed, device)
        part = _as_part(report, number, len(structures))
        saved = checkpoint.with_name(f"{checkpoint.stem}.{value}{checkpoint.suffix}") if checkpoint else None
        networks[value], found = learner.learn(part, share, saved)
        metrics["structures"][name] = found["training"]
        metrics["estimate"] = found["estimate"]
        if found["estimated_dice"] is not None:
            metrics["estimated_dice"][name] = found["estimated_dice"]
        if found["auxiliary"] is not None:
            metrics.setdefault("auxiliary", found["auxiliary"])
            metrics.setdefault("auxiliary_of", {})[name] = found["auxiliary"]
    metrics["estimated_dice"] = metrics["estimated_dice"] or None
    return Adapter(
        tensors=tensors_of(networks),
        method=method,
        recipe=to_dict(recipe_of_method),
        base_model="",
        base_sha256="",
        structures=structures,
        intensity=intensity,
        image_size=max(grid.patch),
        seed=seed,
        axis=exemplars[0].axis,
        provenance={"exemplars": [estimate.provenance(exemplar) for exemplar in exemplars]},
        metrics=metrics,
        architecture={
            "network": network_arguments(grid, recipe.network, recipe.size),
            "head": "binary",
            "grid": grid_to_dict(grid),
            "resample": "logits",
        },
    )


@dataclass(eq=False)
class _Learner:
    """One structure: its cases, its estimate, its network."""

    value: int
    name: str
    exemplars: Sequence[Exemplar]
    pool: Pool | None
    scheduler_for: Callable[[int], Scheduler]
    recipe: NetworkRecipe
    grid: Grid
    intensity: IntensitySpec
    seed: int
    device: torch.device

    def learn(
        self, report: Report, max_seconds: float | None, checkpoint: Path | None
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Returns the trained network, and what the adapter's card says of it."""
        shown = [exemplar for exemplar in self.exemplars if self.value in exemplar.structures]
        folds = estimate.leave_out(shown, self.recipe.estimate_folds)
        fold_seconds = max_seconds / 3 / len(folds) if max_seconds and folds else None
        start = self._start(report)
        total = (len(folds) + 1) * self.recipe.steps
        curves = []
        for number, (kept, held_out) in enumerate(folds):
            part = _counted(report, number * self.recipe.steps, total)
            message = f"estimating {number + 1}/{len(folds)}: {self.name}"
            curves.append(self._fold(kept, held_out, start, part, message, fold_seconds))
        best_step, estimated = _best(curves)
        rest = max_seconds - (fold_seconds or 0) * len(folds) if max_seconds else None
        network, fitted, turns = self._run(
            self._cases(shown), start, self._schedule(rest, 0, best_step), message="adapting", checkpoint=checkpoint,
            report=_counted(report, total - self.recipe.steps, total),
        )  # fmt: skip
        training = {"steps": fitted.steps, "stopped_by": fitted.stopped_by, "best_step": best_step}
        how = estimate.describe(folds) if folds else "not estimable with one annotated slice"
        auxiliary = turns.summary() if turns is not None and turns.has_arms else None
        return network, {
            "training": training, "estimated_dice": estimated, "auxiliary": auxiliary,
            "estimate": how if self.recipe.estimate_folds else "not asked for",
        }  # fmt: skip

    def _cases(self, exemplars: Sequence[Exemplar]) -> list[Case]:
        return [case_of(exemplar, self.value, self.grid, self.intensity) for exemplar in exemplars]

    def _schedule(self, max_seconds: float | None, validate_every: int, last_step: int | None) -> Schedule:
        recipe = self.recipe
        return Schedule(
            recipe.steps, recipe.learning_rate, recipe.weight_decay, recipe.warmup_steps, max_seconds=max_seconds,
            validate_every=validate_every, checkpoint_seconds=recipe.checkpoint_seconds, last_step=last_step,
        )  # fmt: skip

    def _fold(
        self, kept: Sequence[Exemplar], held_out: Exemplar, start: dict[str, Any], report: Report, message: str,
        max_seconds: float | None,
    ) -> list[tuple[int, float]]:  # fmt: skip
        """Dice on the exemplar left out, by step."""
        (case,) = self._cases([held_out])
        curve: list[tuple[int, float]] = []

        def told(progress: Progress) -> None:
            if "score" in progress.metrics:
                curve.append((progress.step, progress.metrics["score"]))
            report(progress)

        schedule = self._schedule(max_seconds, self.recipe.validate_every or self.recipe.steps, None)
        self._run(self._cases(kept), start, schedule, report=told, message=message, validation=case)
        return curve

    def _run(
        self,
        cases: Sequence[Case],
        start: dict[str, Any],
        schedule: Schedule,
        *,
        report: Report,
        message: str,
        validation: Case | None = None,
        checkpoint: Path | None = None,
    ) -> tuple[nn.Module, FitResult, Turns | None]:
        network = self._network()
        load_weights(network, start)
        network.train()
        source = PatchSource(cases, self.grid, self.recipe.patches, [self.name], self.device)
        parameters = dict(network.named_parameters())
        turns = Turns(
            self.scheduler_for(self.seed), self.pool.names if self.pool else (),
            lambda step: self._target_loss(network, source, step),
            lambda arms, rng: self._arms_loss(network, source, arms, rng),
            network, parameters, seed=self.seed + 1, recipe=self.recipe.turns,
            probe_scale=2.0**12 if self.device.type == "cuda" else 1.0,
        )  # fmt: skip
        amp = self._precision()
        with turns:
            fitted = fit(
                parameters, turns.loss_at, turns.schedule(schedule), report=report, message=message, amp=amp,
                validate=(lambda: _dice(network, validation, self.grid, self.device, amp)) if validation else None,
                checkpoint=checkpoint, identity=self._identity(cases), companion=turns,
            )  # fmt: skip
        # The norms of these networks keep no statistics, so a checkpoint of the parameters is all there is to them.
        return network.eval(), fitted, turns

    def _network(self) -> nn.Module:
        arguments = network_arguments(self.grid, self.recipe.network, self.recipe.size)
        return build(**arguments, seed=self.seed % 2**31).to(self.device)

    def _precision(self) -> torch.dtype | None:
        # On small patches little is won, and where a network ends at 2 x 2 voxels PyTorch's CPU gradients of bfloat16
        # convolutions were seen to be NaN.
        return torch.bfloat16 if bfloat16_pays(self.device) and min(self.grid.patch[1:]) >= 80 else None

    def _target_loss(self, network: nn.Module, source: PatchSource, step: int) -> Tensor:
        rng = step_rng(self.seed, step)
        return _loss_of(network, [source.draw(rng) for _ in range(self.recipe.batch_size)], self.device)

    def _arms_loss(
        self, network: nn.Module, source: PatchSource, arms: Sequence[int], rng: np.random.Generator
    ) -> Tensor:
        assert self.pool is not None  # there are arms
        chosen = spread(arms, self.recipe.batch_size, rng)
        patches = [source.changed(*self.pool.sample(arm, rng), rng) for arm in chosen]
        return _loss_of(network, patches, self.device)

    def _identity(self, cases: Sequence[Case]) -> str:
        digests = [hashlib.sha256(case.image.tobytes() + case.mask.tobytes()).hexdigest() for case in cases]
        arms = self.pool.names if self.pool else ()
        return repr(
            (self.recipe, self.grid, self.value, digests, self.seed, arms, type(self.scheduler_for(0)).__name__)
        )

    # ----------------------------------------------------------------------------------------------------------- start

    def _start(self, report: Report) -> dict[str, Any]:
        """The weights to start from: those of a file, of a short training on all arms, or fresh ones."""
        network = self._network()
        if self.recipe.weights:
            load_weights(network, self.recipe.weights, head=False)
        elif (
            self.pool is not None and self.recipe.pretraining_steps and len(self.pool.quarantined) < len(self.pool.arms)
        ):
            return self._pretrained(network, self.pool, report)
        return dict(weights_of(network))

    def _pretrained(self, network: nn.Module, pool: Pool, report: Report) -> dict[str, Any]:
        """Weights after some steps with arms drawn by lot; kept, as every structure and fold starts from them."""
        path = cache_folder() / "networks" / f"{self._pretraining_key(pool)}.safetensors"
        if path.is_file():
            load_weights(network, path)
            return dict(weights_of(network))
        source = PatchSource(self._cases(self.exemplars[:1]), self.grid, self.recipe.patches, [self.name], self.device)
        lots = RandomArm(pool.names, np.random.default_rng([self.seed, 4]))
        for arm, reason in pool.quarantined.items():
            lots.quarantine(arm, reason)
        turns = Turns(
            lots, pool.names, lambda step: torch.zeros((), requires_grad=True),
            lambda arms, rng: self._arms_loss(network, source, arms, rng), network, dict(network.named_parameters()),
            seed=self.seed + 2, recipe=TurnRecipe(1, 1, 1),
        )  # fmt: skip
        steps = self.recipe.pretraining_steps
        schedule = Schedule(steps, 2e-3, self.recipe.weight_decay, min(self.recipe.warmup_steps, steps))
        amp = self._precision()
        with turns:
            fit(
                dict(network.named_parameters()), turns.loss_at, turns.schedule(schedule), report=_unlearned(report),
                message=_PRETRAINING, amp=amp,
            )  # fmt: skip
        from safetensors.numpy import save

        weights = dict(weights_of(network))
        with written_whole(path) as part:
            part.write_bytes(save(weights))
        return weights

    def _pretraining_key(self, pool: Pool) -> str:
        network = network_arguments(self.grid, self.recipe.network, self.recipe.size)
        arms = [row for row in pool.describe() if not row["quarantined"]]
        given = (network, grid_to_dict(self.grid), arms, repr(self.recipe.patches), self.intensity.to_dict(), self.seed)
        steps = (self.recipe.pretraining_steps, self.recipe.batch_size)
        return hashlib.sha256(json.dumps([*given, steps], sort_keys=True, default=str).encode()).hexdigest()[:32]


def _loss_of(network: nn.Module, patches: Sequence[Patch], device: torch.device) -> Tensor:
    images, masks, known = (torch.stack([getattr(p, name) for p in patches]) for name in ("image", "mask", "known"))
    logits = network(images[:, None].to(device))
    return patch_loss(logits, masks.to(device), known.to(device)).mean()


def _dice(network: nn.Module, case: Case, grid: Grid, device: torch.device, amp: torch.dtype | None) -> float:
    """Dice over the known voxels of a case."""
    logits = predict(network, case.image, grid.patch, overlap=0.25, batch=2, device=device, amp=amp, report=silent)
    found = foreground_logit(torch.from_numpy(logits)[None])[0].numpy() > 0
    known = np.ones(case.mask.shape, bool) if case.known is None else case.known
    total = int((found & known).sum() + (case.mask & known).sum())
    return float(2 * (found & case.mask & known).sum() / total) if total else 1.0


def _best(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[int | None, float | None]:
    """The step at which the mean over folds is highest, and that mean; Nones without folds."""
    if not curves or not all(curves):
        return None, None
    shared = min(len(curve) for curve in curves)  # a fold that ran out of time has a shorter curve
    means = [float(np.mean([curve[at][1] for curve in curves])) for at in range(shared)]
    at = int(np.argmax(means))
    return curves[0][at][0], means[at]


def _as_part(report: Report, number: int, count: int) -> Report:
    """Reports that also say which share of all structures is `done`."""

    def told(progress: Progress) -> None:
        done = (number + progress.metrics["done"]) / count if "done" in progress.metrics else None
        report(progress if done is None else replace(progress, metrics={**progress.metrics, "done": done}))

    return told


def _counted(report: Report, before: int, total: int) -> Report:
    """Reports that say which share of all steps is `done`."""
    return lambda progress: report(
        replace(progress, metrics={**progress.metrics, "done": (before + progress.step) / total})
    )


def _unlearned(report: Report) -> Report:
    """Reports of work before the first step that counts."""
    return lambda progress: report(replace(progress, metrics={}))
