"""`fit`: the single optimization loop. It is agnostic of images and networks; it knows parameters and a loss per step.

Randomness is seeded by the step index (`step_rng`), so a run that is killed and resumed from its checkpoint takes the
same steps as an uninterrupted one, bit for bit on a CPU.

In distributed training (`data_parallel`), `loss_at` is the loss of the global batch in each process, and its gradient
that of the process's own shard; gradients are averaged. Rank 0 saves checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from FewShotSegLib.errors import InputError, StopAndKeepBest
from FewShotSegLib.progress import Progress, Report

from . import data_parallel
from .checkpoint import read_checkpoint, write_checkpoint

MOST_SPOILED = 20
_CALM = (
    "Choose a lower learning_rate in the recipe, and check the exemplars for values far outside the usual range, "
    "such as metal artefacts or padding."
)
LossAt = Callable[[int], tuple[Tensor, Mapping[str, "float | Tensor"]]]
"""Micro-batch index -> its loss and metrics; tensors are copied to the host together with the loss."""


@dataclass(frozen=True)
class Schedule:
    """Length of training and learning rate schedule.

    The learning rate warms up linearly over `warmup_steps` to `learning_rate`, then decays as (1 - done)^power, where
    `done` is the elapsed fraction of the steps or of `max_seconds`, whichever is larger.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    power: float = 0.9
    max_seconds: float | None = None
    validate_every: int = 0
    patience: int = 0
    accumulate: int = 1
    summed: bool = False  # gradients of micro-batches are summed instead of averaged
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    checkpoint_seconds: float = 60.0
    last_step: int | None = None  # stop after this step, with the schedule of `steps`
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: Nesterov momentum 0.99, as nnU-Net

    def learning_rate_at(self, step: int, elapsed_seconds: float = 0.0) -> float:
        """Learning rate of a 0-based step index."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        if self.max_seconds:
            done = max(done, elapsed_seconds / self.max_seconds)
        return self.learning_rate * max(1.0 - done, 0.0) ** self.power


@dataclass
class FitResult:
    """`best` holds the parameters to keep: those with the best validation score, or the last ones without validation.

    `left_out` counts skipped steps with non-finite gradients, `unscored` validations with a non-finite score; the
    latter are never the best.
    """

    best: dict[str, Tensor]
    best_score: float | None
    best_step: int | None  # None without validation
    steps: int
    seconds: float
    stopped_by: str  # "steps", "time", "plateau", "user"
    history: list[dict[str, float]] = field(default_factory=list)
    left_out: int = 0
    unscored: int = 0

    @property
    def oddities(self) -> dict[str, int]:
        """Anomalies, for the card: steps with non-finite gradients, validations with a non-finite score."""
        found = {"steps_left_out": self.left_out, "validations_not_finite": self.unscored}
        return {name: count for name, count in found.items() if count}


class Companion(Protocol):
    """State trained alongside the parameters, such as a data selector; it is part of every checkpoint."""

    def state(self) -> dict[str, Any]:
        """All JSON-serializable state that its next steps depend on."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore this state."""

    def tensors(self) -> dict[str, Tensor]:
        """The remaining state: tensors by name, possibly none."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore these tensors."""


class JointTraining(Companion, Protocol):
    """A loss over several data sources, such as target and auxiliary data. Used as a context manager around `fit`."""

    def __enter__(self) -> JointTraining:
        """Start hooking the gradients."""

    def __exit__(self, *error: object) -> None:
        """Remove the gradient hooks."""

    def schedule(self, schedule: Schedule) -> Schedule:
        """The schedule, with as many micro-batches per step as sources."""

    def loss_at(self, number: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Loss and metrics of one micro-batch."""

    def summary(self) -> dict[str, Any]:
        """Summary as JSON types for the adapter's card."""


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random generator of one step, independent of earlier interruptions."""
    return np.random.default_rng([seed, step])


def fit(
    parameters: Mapping[str, Tensor],
    loss_at: LossAt,
    schedule: Schedule,
    *,
    report: Report,
    validate: Callable[[], float] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    amp: torch.dtype | None = None,
    message: str = "training",
    can_stop: bool = False,
    companion: Companion | None = None,
) -> FitResult:
    """Minimizes `loss_at(step)` over `parameters` in place and returns the best state.

    validate() scores the current parameters, higher is better. `checkpoint` is read if it exists and belongs to the
    same `identity` (a digest of everything that determines the run); the caller removes it once the result is saved.
    `companion` is saved and restored with it. `report` is called once per step and may raise `Cancelled` (propagates)
    or `StopAndKeepBest` (ends training early, keeping the best state); `can_stop` tells it that there is something
    worth keeping.
    """
    if schedule.steps < 1:
        raise InputError(f"Training needs at least 1 step, got {schedule.steps}.")
    run = _started(dict(parameters), schedule, identity, companion, amp, checkpoint)
    started = time.monotonic() - run.seconds
    last_saved = time.monotonic()
    stopped_by, looked_at = "steps", -1
    last_step = min(schedule.steps, schedule.last_step or schedule.steps)
    while run.step < last_step:
        run.seconds = time.monotonic() - started
        if schedule.max_seconds:
            run.seconds = data_parallel.of_first(run.seconds)  # the learning rate depends on it, too
        if schedule.max_seconds and run.seconds >= schedule.max_seconds:
            stopped_by = "time"
            break
        metrics = run.advance(loss_at)
        if validate and schedule.validate_every and run.step % schedule.validate_every == 0:
            with run.averaged():
                metrics["score"] = run.note_score(data_parallel.of_first(validate()))
            looked_at = run.step
            if schedule.patience and run.stale >= schedule.patience:
                stopped_by = "plateau"
                run.history.append({"step": run.step, **metrics})
                break
        run.history.append({"step": run.step, **metrics})
        if checkpoint is not None and time.monotonic() - last_saved >= schedule.checkpoint_seconds:
            run.seconds = time.monotonic() - started
            if data_parallel.is_first():
                run.save(checkpoint)
            last_saved = time.monotonic()
        progress = Progress(run.step, schedule.steps, message, metrics, can_stop=can_stop)
        try:
            data_parallel.in_agreement(functools.partial(report, progress))
        except StopAndKeepBest:
            stopped_by = "user"
            break
    if validate and looked_at != run.step:
        with run.averaged():
            run.note_score(data_parallel.of_first(validate()))
    run.seconds = time.monotonic() - started
    return run.result(stopped_by)


def _started(
    parameters: dict[str, Tensor],
    schedule: Schedule,
    identity: str,
    companion: Companion | None,
    amp: torch.dtype | None,
    checkpoint: Path | None,
) -> _TrainingState:
    """The state of a run at step 0 or from its checkpoint, identical in all processes."""
    if data_parallel.count() > 1:
        identity += f" in {data_parallel.count()} processes"  # the global batch depends on their number
    data_parallel.copy_of_first_(parameters.values())
    run = _TrainingState(parameters, schedule, identity, companion, amp)
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint)
    data_parallel.check_same(repr((identity, run.step)))
    return run


class _TrainingState:
    """Everything a checkpoint must hold, and nothing else."""

    def __init__(
        self,
        parameters: dict[str, Tensor],
        schedule: Schedule,
        identity: str,
        companion: Companion | None,
        amp: torch.dtype | None,
    ) -> None:
        self.parameters = parameters
        self.schedule = schedule
        self.identity = identity
        self.companion = companion
        self.amp = amp
        decayed = [p for p in parameters.values() if p.ndim > 1]
        others = [p for p in parameters.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        on_gpu = any(p.is_cuda for p in parameters.values())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=on_gpu or None)
            if schedule.optimizer == "adamw"
            else torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.99, nesterov=True, fused=on_gpu or None)
        )
        # bfloat16 has the range of float32, and a scaler would synchronize with the device in every step.
        self.scaler = torch.amp.GradScaler("cuda", enabled=on_gpu and amp is torch.float16)
        self.ema = {k: p.detach().clone() for k, p in parameters.items()} if schedule.ema_decay else {}
        self.best: dict[str, Tensor] = {}
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.stale = 0
        self.spoiled = 0  # consecutive steps with non-finite gradients
        self.left_out = 0  # total of such steps
        self.unscored = 0  # validations with a non-finite score
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def advance(self, loss_at: LossAt) -> dict[str, float]:
        """One optimizer step over `accumulate` micro-batches. It synchronizes with the device once, after everything is
        launched.
        """
        schedule = self.schedule
        rate = schedule.learning_rate_at(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float | Tensor] = {}
        device = next(iter(self.parameters.values())).device.type
        for micro in range(schedule.accumulate):
            with torch.autocast(device, self.amp, enabled=self.amp is not None):
                loss, told = loss_at(self.step * schedule.accumulate + micro)
            self.scaler.scale(loss if schedule.summed else loss / schedule.accumulate).backward()
            metrics = {"loss": loss.detach(), **told}
            del loss  # frees the rest of the autograd graph, see sam/cuda_graphs.py
        # A non-finite value in one process becomes non-finite in all, so that all skip the step.
        data_parallel.average_gradients(self.parameters.values())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), schedule.clip_norm or math.inf)
        read = read_metrics({"norm": norm, **metrics})
        if math.isfinite(read.pop("norm")):
            self.scaler.step(self.optimizer)
            self.spoiled = 0
        else:  # the scaler detected it too, and lowers its scale
            self._leave_out_step()
        self.scaler.update()
        self.step += 1
        self._follow()
        return {**read, "learning_rate": rate}

    def _leave_out_step(self) -> None:
        """Skip a step with non-finite gradients, occasional in half precision; many in a row mean divergence."""
        self.spoiled += 1
        self.left_out += 1
        if self.spoiled >= MOST_SPOILED:
            raise InputError(
                f"Training broke down: for {MOST_SPOILED} steps in a row the gradient was not finite. {_CALM}"
            )

    def _follow(self) -> None:
        # The averaging window starts short, so that the average is not biased by the initialization.
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        if self.ema:
            current = [self.parameters[name].detach() for name in self.ema]
            torch._foreach_lerp_(list(self.ema.values()), current, 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Swaps in the averaged (EMA) parameters, if enabled."""
        if not self.ema:
            yield
            return
        current = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._load(self.ema)
        try:
            yield
        finally:
            self._load(current)

    def _load(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)

    def note_score(self, score: float) -> float:
        if not math.isfinite(score):
            self.unscored += 1
            self.stale += 1
        elif self.best_score is None or score > self.best_score:
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.best_score, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1
        return score

    def result(self, stopped_by: str) -> FitResult:
        if self.step and self.left_out == self.step:
            raise InputError(f"Training has learned nothing: no step of {self.step} had a finite gradient. {_CALM}")
        best = self.best or {n: v.clone() for n, v in (self.ema or self.parameters).items()}
        best = {name: value.detach() for name, value in best.items()}
        if best and not bool(torch.stack([torch.isfinite(value).all() for value in best.values()]).all()):
            raise InputError(f"Training broke down: its weights are not finite numbers any more. {_CALM}")
        return FitResult(
            best,
            self.best_score,
            self.best_step,
            self.step,
            self.seconds,
            stopped_by,
            self.history,
            left_out=self.left_out,
            unscored=self.unscored,
        )

    def save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
            "best": self.best,
            "best_score": self.best_score,
            "counters": [self.best_step, self.stale, self.step, self.spoiled, self.left_out, self.unscored],
            "seconds": self.seconds,
            "history": self.history,
            "companion": json.dumps(self.companion.state()) if self.companion else "",
            "companion_tensors": self.companion.tensors() if self.companion else {},
        }
        write_checkpoint(state, path)

    def restore(self, path: Path) -> None:
        state = read_checkpoint(path, self.identity)
        self._load(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        device = next(iter(self.parameters.values())).device
        self.ema = {k: v.to(device) for k, v in state["ema"].items()}
        self.best = {k: v.to(device) for k, v in state["best"].items()}
        self.best_score = state["best_score"]
        self.best_step, self.stale, self.step, self.spoiled, self.left_out, self.unscored = state["counters"]
        self.seconds = state["seconds"]
        self.history = state["history"]
        if self.companion:
            self.companion.load_state(json.loads(state["companion"]))
            self.companion.load_tensors(state["companion_tensors"])


def read_metrics(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The values as Python numbers; tensors are copied from the device in one transfer."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    device = next((value.device for value in tensors.values() if value.is_cuda), None)
    numbers = torch.stack([value.double().to(device) for value in tensors.values()]).tolist() if tensors else []
    found = dict(zip(tensors, numbers, strict=True))
    return {name: float(found.get(name, value)) for name, value in values.items()}
