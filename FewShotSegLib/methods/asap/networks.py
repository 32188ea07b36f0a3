"""Training 3-D networks on a few exemplars, with auxiliary data if available: one network per structure.

The task is binary, structure versus rest, like the arms of auxiliary data (1-way segmentation of the ASAP paper). The
number of steps is chosen by leave-one-out cross-validation over the exemplars; the final run trains on all of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.devices import patch_precision
from FewShotSegLib.errors import StopAndKeepBest
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference.sliding_window import foreground_logit, predict
from FewShotSegLib.inference.volume_network import grid_to_dict, network_arguments, tensors_of
from FewShotSegLib.io.cache import is_sealed, sealed
from FewShotSegLib.io.files import sha256_of_file
from FewShotSegLib.io.places import cache_folder
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import load_weights, weights_of
from FewShotSegLib.progress import Progress, Report, note, silent, warning, with_share_done
from FewShotSegLib.training import data_parallel, estimate
from FewShotSegLib.training.ahead import DrawnByThreads
from FewShotSegLib.training.context import RunContext
from FewShotSegLib.training.fit import FitResult, Schedule, fit, step_rng
from FewShotSegLib.training.patches import Case, Patch, PatchRecipe, PatchSource, case_of, patch_loss

from .pool import Pool
from .schedulers import Asap, Direct, RandomArm, Scheduler
from .turns import FIRST_PROBE, TurnRecipe, Turns

_PRETRAINING = "pretraining on auxiliary data"
_PRETRAINING_RATE = 2e-3
_CHOSEN = "fewshotseg_chosen"  # key in the header of cached weights
_LOTS = 4  # 1 / fraction of pre-training steps with random arms, before the initial probing


@dataclass(frozen=True)
class NetworkRecipe:
    """Network and training options; see `methods.asap.Recipe` for the ranges."""

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
    pretraining: str = "chosen"
    pretraining_steps: int = 200
    keep_to_best: bool = True
    checkpoint_seconds: float = 20.0
    patches: PatchRecipe = field(default_factory=PatchRecipe)
    turns: TurnRecipe = field(default_factory=TurnRecipe)


class SchedulerMaker(Protocol):
    """Makes a scheduler from a seed."""

    def __call__(self, seed: int, *, explores: bool = False) -> Scheduler: ...


@dataclass(frozen=True, eq=False)
class NetworkLesson:
    """The training task: the structures of the exemplars on a grid, with the arms of a pool.

    `scheduler_for` makes a scheduler from a seed; one that `explores` pulls an arm in every turn.
    """

    exemplars: Sequence[Exemplar]
    structures: dict[int, str]
    grid: Grid
    intensity: IntensitySpec
    pool: Pool | None
    scheduler_for: SchedulerMaker


@dataclass(frozen=True, eq=False)
class TrainedNetworks:
    """The contents of an adapter: tensors of all networks, their structures, and training metrics."""

    tensors: dict[str, NDArray[np.float32]]
    structures: dict[int, str]
    seed: int
    metrics: dict[str, Any]
    architecture: dict[str, Any]


def adapt_networks(lesson: NetworkLesson, recipe: NetworkRecipe, run: RunContext) -> TrainedNetworks:
    """Train a network per structure, one after the other.

    The time budget is divided among structures, and each has its own checkpoint. Once the first network is trained, the
    run may be stopped at any step; structures without a network are then left out, with a warning.
    """
    seed = run.new_seed()
    networks: dict[int, nn.Module] = {}
    metrics: dict[str, Any] = {"estimated_dice": {}, "estimate": "not asked for", "structures": {}}
    count = len(lesson.structures)
    for number, (value, name) in enumerate(lesson.structures.items()):
        part = replace(
            run,
            report=with_share_done(run.report, number / count, (number + 1) / count),
            max_seconds=run.max_seconds / count if run.max_seconds else None,
            checkpoint=run.checkpoint
            and run.checkpoint.with_name(f"{run.checkpoint.stem}.{value}{run.checkpoint.suffix}"),
        )
        learner = _Learner(value, name, lesson, recipe, seed, run.device, can_stop=bool(networks))
        try:
            networks[value], found = learner.learn(part)
        except StopAndKeepBest:
            break
        metrics["structures"][name] = found["training"]
        metrics["estimate"] = found["estimate"]
        if found["estimated_dice"] is not None:
            metrics["estimated_dice"][name] = found["estimated_dice"]
        if found["auxiliary"] is not None:
            metrics.setdefault("auxiliary", found["auxiliary"])
            metrics.setdefault("auxiliary_of", {})[name] = found["auxiliary"]
        if found["pretraining"] is not None:
            metrics.setdefault("pretraining_of", {})[name] = found["pretraining"]
        if found["training"]["stopped_by"] == "user":
            break
    metrics["estimated_dice"] = metrics["estimated_dice"] or None
    left_out = [name for value, name in lesson.structures.items() if value not in networks]
    if left_out:
        run.report(
            warning(f"Stopped before {', '.join(left_out)} had been learned: the adapter will not segment them.")
        )
    return TrainedNetworks(
        tensors=tensors_of(networks),
        structures={value: name for value, name in lesson.structures.items() if value in networks},
        seed=seed,
        metrics=metrics,
        architecture={
            "network": network_arguments(lesson.grid, recipe.network, recipe.size),
            "head": "binary",
            "grid": grid_to_dict(lesson.grid),
            "resample": "logits",
        },
    )


@dataclass(frozen=True, eq=False)
class _Start:
    """The initialization of a network: its weights, and the selections in pre-training."""

    weights: dict[str, Any]
    chosen: dict[str, Any] | None = None


@dataclass(eq=False)
class _Learner:
    """One structure: its cases, its estimate, its network. `can_stop`: there is another network worth keeping."""

    value: int
    name: str
    lesson: NetworkLesson
    recipe: NetworkRecipe
    seed: int
    device: torch.device
    can_stop: bool

    @property
    def grid(self) -> Grid:
        return self.lesson.grid

    @property
    def pool(self) -> Pool | None:
        return self.lesson.pool

    def learn(self, run: RunContext) -> tuple[nn.Module, dict[str, Any]]:
        """Return the trained network, and its entry in the adapter's card.

        `StopAndKeepBest` is raised if the run is stopped before training of the network itself.
        """
        shown = [exemplar for exemplar in self.lesson.exemplars if self.value in exemplar.structures]
        folds = estimate.leave_out(shown, self.recipe.estimate_folds)
        folds = [fold for fold in folds if self.value in estimate.trained_on(fold[0])]
        fold_seconds = run.max_seconds / 3 / len(folds) if run.max_seconds and folds else None
        parts = len(folds) + 1
        curves = []
        for number, (kept, held_out) in enumerate(folds):
            part = replace(
                run,
                report=with_share_done(run.report, number / parts, (number + 1) / parts),
                max_seconds=fold_seconds,
                checkpoint=None,
            )
            message = f"estimating {number + 1}/{len(folds)}: {self.name}"
            # The held-out exemplar must not influence the initialization of the fold, either.
            cases = self._cases(kept)
            curves.append(self._fold(cases, held_out, self._start(cases, run.report), part, message))
        best_step, estimated = _best(curves)
        rest = run.max_seconds - (fold_seconds or 0) * len(folds) if run.max_seconds else None
        final = replace(run, report=with_share_done(run.report, len(folds) / parts, 1.0), max_seconds=rest)
        schedule = self._schedule(rest, 0, best_step)
        cases = self._cases(shown)
        start = self._start(cases, run.report)
        network, fitted, turns = self._run(cases, start, schedule, final, "adapting", can_stop=True)
        training = {"steps": fitted.steps, "stopped_by": fitted.stopped_by, "best_step": best_step}
        how = estimate.described(folds) if folds else "not estimable: annotated on too few slices"
        return network, {
            "training": training,
            "estimated_dice": estimated,
            "auxiliary": turns.summary() if turns.has_arms else None,
            "pretraining": start.chosen,
            "estimate": how if self.recipe.estimate_folds else "not asked for",
        }

    def _cases(self, exemplars: Sequence[Exemplar]) -> list[Case]:
        return [case_of(exemplar, self.value, self.grid, self.lesson.intensity) for exemplar in exemplars]

    def _schedule(self, max_seconds: float | None, validate_every: int, last_step: int | None) -> Schedule:
        recipe = self.recipe
        return Schedule(
            recipe.steps,
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.warmup_steps,
            max_seconds=max_seconds,
            validate_every=validate_every,
            checkpoint_seconds=recipe.checkpoint_seconds,
            last_step=last_step,
        )

    def _fold(
        self, kept: Sequence[Case], held_out: Exemplar, start: _Start, run: RunContext, stage: str
    ) -> list[tuple[int, float]]:
        """Dice on the held-out exemplar, by step."""
        (case,) = self._cases([held_out])
        curve: list[tuple[int, float]] = []

        def told(progress: Progress) -> None:
            if "score" in progress.metrics:
                curve.append((progress.step, progress.metrics["score"]))
            run.report(progress)

        schedule = self._schedule(run.max_seconds, self.recipe.validate_every or self.recipe.steps, None)
        part = replace(run, report=told)
        _, fitted, _ = self._run(kept, start, schedule, part, stage, self.can_stop, validation=case)
        if fitted.stopped_by == "user":
            raise StopAndKeepBest
        return curve

    def _run(
        self,
        cases: Sequence[Case],
        start: _Start,
        schedule: Schedule,
        run: RunContext,
        stage: str,
        can_stop: bool,
        validation: Case | None = None,
    ) -> tuple[nn.Module, FitResult, Turns]:
        network = self._network()
        load_weights(network, start.weights)
        network.train()
        source = PatchSource(cases, self.grid, self.recipe.patches, [self.name], self.device)
        parameters = dict(network.named_parameters())
        amp = patch_precision(self.device, self.grid.patch)
        with DrawnByThreads(functools.partial(self._batch, source), self.device) as ahead:

            def batch(step: int) -> list[Patch]:
                return ahead(step) if step < FIRST_PROBE else self._batch(source, step)

            scheduler, seed = self._scheduler_after(start), self.seed + 1
            with self._turns(network, source, batch, scheduler, seed, self.recipe.turns) as turns:
                fitted = fit(
                    parameters,
                    turns.loss_at,
                    turns.schedule(schedule),
                    report=run.report,
                    message=stage,
                    can_stop=can_stop,
                    amp=amp,
                    validate=(lambda: _dice(network, validation, self.grid, self.device, amp)) if validation else None,
                    checkpoint=run.checkpoint,
                    identity=self._identity(cases),
                    companion=turns,
                )
        # The normalization layers have no running statistics, so the parameters are the complete state.
        return network.eval(), fitted, turns

    def _scheduler_after(self, start: _Start) -> Scheduler:
        """The scheduler of the run. After a start from the best arm it pulls that one or none, unless the recipe has
        all arms compete, as in the paper: by the cosines of their gradients others seem to help the half-trained
        network, but the result is worse.
        """
        scheduler = self.lesson.scheduler_for(self.seed)
        best = (start.chosen or {}).get("best") if self.recipe.keep_to_best else None
        if best is not None and self.pool is not None and isinstance(scheduler, Asap):
            scheduler.keep_to(self.pool.names.index(best))
        return scheduler

    def _turns(
        self,
        network: nn.Module,
        source: PatchSource,
        batch: Callable[[int], list[Patch]],
        scheduler: Scheduler,
        seed: int,
        recipe: TurnRecipe,
    ) -> Turns:
        return Turns(
            scheduler,
            self.pool.names if self.pool else (),
            lambda step: _loss_of(network, batch(step), self.device),
            lambda arm, rng: self._arm_loss(network, source, arm, rng),
            network,
            dict(network.named_parameters()),
            seed=seed,
            recipe=recipe,
            probe_scale=2.0**12 if self.device.type == "cuda" else 1.0,
        )

    def _network(self) -> nn.Module:
        arguments = network_arguments(self.grid, self.recipe.network, self.recipe.size)
        return build(**arguments, seed=self.seed % 2**31).to(self.device)

    def _batch(self, source: PatchSource, step: int) -> list[Patch]:
        return source.draw_batch(step_rng(self.seed, step), self.recipe.batch_size)

    def _arm_loss(self, network: nn.Module, source: PatchSource, arm: int, rng: np.random.Generator) -> Tensor:
        assert self.pool is not None  # there are arms
        count = self.recipe.batch_size * data_parallel.count()
        planned = [(source.change(rng), *self.pool.place(arm, rng)) for _ in range(count)]
        patches = [
            self.pool.cut(arm, case, centre, change, self.device) for change, case, centre in data_parallel.own(planned)
        ]
        return _loss_of(network, patches, self.device)

    def _identity(self, cases: Sequence[Case]) -> str:
        digests = [_digest(case) for case in cases]
        files = (self.pool.digest() if self.pool else "", _digest_of(self.recipe.weights))
        scheduler = type(self.lesson.scheduler_for(0)).__name__
        return repr((self.recipe, self.grid, self.value, digests, self.seed, files, scheduler))

    # ----------------------------------------------------------------------------------------------------------- start

    def _start(self, cases: Sequence[Case], report: Report) -> _Start:
        """The weights from a file, from a short pre-training on auxiliary data, or random ones."""
        network = self._network()
        scheduler = self._pretrainer()
        if self.recipe.weights:
            load_weights(network, self.recipe.weights, head=False)
        elif scheduler is not None:
            return self._pretrained(network, scheduler, cases, report)
        return _Start(dict(weights_of(network)))

    def _pretrainer(self) -> Scheduler | None:
        """The scheduler of pre-training: random, or that of the run; None if that trains on the target alone."""
        pool, recipe = self.pool, self.recipe
        if pool is None or not recipe.pretraining_steps or len(pool.quarantined) == len(pool.arms):
            return None
        if recipe.pretraining == "chosen":
            scheduler = self.lesson.scheduler_for(self.seed, explores=True)
            return None if isinstance(scheduler, Direct) else scheduler
        if recipe.pretraining == "none":
            return None
        lots = RandomArm(pool.names, np.random.default_rng([self.seed, 4]))
        for arm, reason in pool.quarantined.items():
            lots.quarantine(arm, reason)
        return lots

    def _pretrained(self, network: nn.Module, scheduler: Scheduler, cases: Sequence[Case], report: Report) -> _Start:
        """Pre-train on auxiliary data alone; the result is cached.

        A scheduler that measures sees the target's gradient, which is not applied. The initial probing comes after a
        quarter of the steps with random arms: with random weights all gradients are alike. ASAP spends another quarter
        on comparing the arms, and then trains fresh weights on the best one alone: what several arms teach in turns
        contradicts each other, since the same image shows the structures of many.
        """
        path = cache_folder() / "networks" / f"{self._pretraining_key(scheduler, cases)}.safetensors"
        assert self.pool is not None  # there are arms
        if data_parallel.everywhere(is_sealed(path, self.pool.digest())):
            return _read_start(network, path)
        source = PatchSource(cases, self.grid, self.recipe.patches, [self.name], self.device)
        steps = self.recipe.pretraining_steps
        if isinstance(scheduler, Asap):
            chosen = self._pretrain(self._network(), scheduler, source, max(steps // 2, 1), report)
            best = scheduler.best()
            chosen["best"] = None if best is None else self.pool.names[best]
            if best is not None:
                report(
                    note(
                        f"{self.name}: pretraining on {self.pool.names[best]}, the auxiliary data most likely to help "
                        "(their anatomy may differ)."
                    )
                )
                alone = RandomArm(self.pool.names, np.random.default_rng([self.seed, 4]))
                alone.keep_to(best)
                self._pretrain(network, alone, source, steps, report)
        else:
            chosen = self._pretrain(network, scheduler, source, steps, report)
        from safetensors.numpy import save

        start = _Start(dict(weights_of(network)), chosen)
        if data_parallel.is_first():
            with sealed(path, self.pool.digest()) as part:
                part.write_bytes(save(start.weights, metadata={_CHOSEN: json.dumps(chosen)}))
        return start

    def _pretrain(
        self, network: nn.Module, scheduler: Scheduler, source: PatchSource, steps: int, report: Report
    ) -> dict[str, Any]:
        """Train a network on auxiliary data alone; return the selections."""
        recipe = replace(self.recipe.turns, alone_from=None, follow_target=False)
        if scheduler.needs_probe:
            recipe = replace(recipe, lots_until=self.recipe.pretraining_steps // _LOTS)
        batch = functools.partial(self._batch, source)
        turns = self._turns(network, source, batch, scheduler, self.seed + 2, recipe)
        schedule = Schedule(steps, _PRETRAINING_RATE, self.recipe.weight_decay, min(self.recipe.warmup_steps, steps))
        with turns:
            fitted = fit(
                dict(network.named_parameters()),
                turns.loss_at,
                turns.schedule(schedule),
                report=_unlearned(report),
                message=_PRETRAINING,
                can_stop=self.can_stop,
                amp=patch_precision(self.device, self.grid.patch),
            )
        if fitted.stopped_by == "user":
            raise StopAndKeepBest
        return turns.summary()

    def _pretraining_key(self, scheduler: Scheduler, cases: Sequence[Case]) -> str:
        assert self.pool is not None  # there are arms
        network = network_arguments(self.grid, self.recipe.network, self.recipe.size)
        arms = [row for row in self.pool.describe() if not row["quarantined"]]
        given = (
            network,
            grid_to_dict(self.grid),
            arms,
            repr(self.recipe.patches),
            self.lesson.intensity.to_dict(),
            self.seed,
        )
        steps = (self.recipe.pretraining_steps, self.recipe.batch_size * data_parallel.count())
        target = [_digest(case) for case in cases] if scheduler.needs_probe else []
        turns = repr(replace(self.recipe.turns, alone_from=None))
        chooser = (scheduler.described(), self.recipe.pretraining, turns)
        return sha256_of_json([*given, steps, chooser, target])[:32]


def _read_start(network: nn.Module, path: Path) -> _Start:
    """The result of an earlier pre-training."""
    from safetensors import safe_open

    load_weights(network, path)
    with safe_open(path, "numpy") as file:
        chosen = json.loads(file.metadata()[_CHOSEN])
    return _Start(dict(weights_of(network)), chosen)


def _digest(case: Case) -> str:
    parts = (case.image, case.mask, case.known)
    return "".join(sha256_of_array(part) for part in parts if part is not None)


def _digest_of(file: str | None) -> str:
    return sha256_of_file(file) if file else ""


def _loss_of(network: nn.Module, patches: Sequence[Patch], device: torch.device) -> Tensor:
    images, masks, known = (torch.stack([getattr(p, name) for p in patches]) for name in ("image", "mask", "known"))
    logits = network(images[:, None].to(device))
    return data_parallel.averaged(patch_loss(logits, masks.to(device), known.to(device)).mean())


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


def _unlearned(report: Report) -> Report:
    """Progress reports of work before the first training step."""
    return lambda progress: report(replace(progress, metrics={}))
