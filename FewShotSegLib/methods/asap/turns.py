"""Training in turns: the target in every step and, alongside it, the auxiliary data selected for the turn.

A step follows g_T + g_a, the sum of the gradients of one target batch and one auxiliary batch (Yang et al., ASAP,
Algorithm 1, line 11). Both backward passes are needed anyway, and the gradient similarity is measured during them, so
the cost of a turn is independent of the number of arms. Only the initial probing of all arms grows with it.

The gradients compared in eq. 2, those of whole data sets, are estimated in one of three ways (`TurnRecipe.gradients`):
- "running mean": the auxiliary batch against the running mean of the target's gradients. One more copy of the gradient
  in memory, no extra pass. The default.
- "batches": the mean over several batches of each, measured separately before the turn's first step, as in lines 9 and
  10. `2 reward_batches` extra passes per turn, and a copy of the gradient.
- "step": the two batches of the step itself. Free, but mostly noise.

`Turns` plugs into `training.fit`: `loss_at` returns the loss of one micro-batch, `schedule` sets their number per step,
and the state of scheduler and measurements is part of every checkpoint. It is agnostic of networks and images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.training.fit import Schedule, step_rng

from .gradients import Alignment, Probe, in_scope, probe, similarity
from .pool import UnusableArm
from .schedulers import Direct, Scheduler

TargetLoss = Callable[[int], Tensor]
"""Step index -> loss of the batch of that step."""
Gradients = Literal["running mean", "batches", "step"]
ArmLoss = Callable[[int, np.random.Generator], Tensor]
"""(arm, rng) -> loss of a batch drawn from it."""

FIRST_PROBE = 1 << 30  # step indices from here on are for probes, so that these do not consume training batches


def _nothing() -> Tensor:
    """A loss with zero gradient."""
    return torch.zeros((), requires_grad=True)


@dataclass(frozen=True)
class TurnRecipe:
    """The length of a turn, and what is measured in it.

    `lots_until`: before this step arms are random, and only then the scheduler does its initial probing. From step
    `alone_from` on, only the target is trained. Without `follow_target` the target's gradient is measured where needed
    but not applied: training on auxiliary data alone.
    """

    steps_per_turn: int = 1
    measured_steps: int = 1
    probe_batches: int = 2
    scope: tuple[str, ...] = ()
    alone_from: int | None = None
    gradients: Gradients = "running mean"
    decay: float = 0.9
    reward_batches: int = 4
    lots_until: int = 0
    follow_target: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.measured_steps <= self.steps_per_turn:
            raise InputError(
                f"A turn has at least 1 step, and from 1 to all of them are measured, got {self.measured_steps} of "
                f"{self.steps_per_turn}."
            )
        for name, count in (("probe_batches", self.probe_batches), ("reward_batches", self.reward_batches)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, got {count}.")


class Turns:
    """A micro-batch of the target and one of the arm per step; with schedulers that use all arms at once, one of each
    arm, and the mean of their gradients. Without arms, identical to plain training.

    `network` is used by the losses, `parameters` are trained; gradients are compared over those in the scope of the
    recipe (name prefixes). Use it as a context manager around `fit`. The first step of a turn records the reward of the
    previous turn, so a checkpoint may occur anywhere.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        arms: Sequence[str],
        target: TargetLoss,
        auxiliary: ArmLoss,
        network: nn.Module,
        parameters: Mapping[str, Tensor],
        *,
        seed: int,
        recipe: TurnRecipe | None = None,
        probe_scale: float = 1.0,
    ) -> None:
        self.scheduler, self.arms = scheduler, tuple(arms)
        self.target, self.auxiliary = target, auxiliary
        self.network, self.seed = network, seed
        self.recipe, self.probe_scale = recipe or TurnRecipe(), probe_scale
        self.compared = in_scope(parameters, self.recipe.scope)
        decay = self.recipe.decay if self.recipe.gradients == "running mean" else 0.0
        self.alignment = Alignment(self.compared, decay)
        self.has_arms = bool(self.arms) and not isinstance(scheduler, Direct)
        self.parts = 1 + (len(self.arms) if scheduler.all_at_once else 1)
        # Losses stay on the device until the turn ends: reading one waits for all that was launched.
        self._losses: list[Tensor] = []
        self._target_loss: float | Tensor = math.nan
        self._target_probe: tuple[int, Probe] | None = None

    def __enter__(self) -> Turns:
        self.alignment.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.alignment.__exit__(*error)

    def schedule(self, schedule: Schedule) -> Schedule:
        """The same schedule, with a step that sums a target and an auxiliary batch."""
        if not self.has_arms:
            return schedule
        if schedule.accumulate != 1:
            raise InputError(f"With auxiliary data a step has one batch of each, got accumulate={schedule.accumulate}.")
        return replace(schedule, accumulate=self.parts, summed=True)

    def loss_at(self, number: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Loss of a micro-batch: the first of a step is the target's, the others are auxiliary."""
        if not self.has_arms:
            return self.target(number), {}
        step, part = divmod(number, self.parts)
        if self.recipe.alone_from is not None and step >= self.recipe.alone_from:
            return self._alone(step, part)
        if step < self.recipe.lots_until:
            return self._by_lot(step, part)
        turn, within = divmod(step - self.recipe.lots_until, self.recipe.steps_per_turn)
        if not part:
            return self._of_target(step, turn + 1, within), {}
        return self._of_arms(step, turn + 1, within, part)

    def _of_target(self, step: int, turn: int, within: int) -> Tensor:
        if within == 0:
            self._begin(turn)
        if not self.recipe.follow_target:
            if self.scheduler.needs_probe and self.recipe.gradients != "batches":
                loss = self.target(step)
                self._target_loss = loss.detach()
                self.alignment.look_at_target(loss, self.probe_scale)
            return _nothing()
        loss = self.target(step)
        self._target_loss = loss.detach()
        self._expect("target", within)
        return loss

    def _of_arms(self, step: int, turn: int, within: int, part: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        arm, loss = self._auxiliary_loss(turn, step_rng(self.seed, step * (self.parts - 1) + part - 1), part)
        if arm is None:
            self._expect("nothing", within)
            return loss, {"loss": self._target_loss}
        self._expect("auxiliary", within)
        value = loss.detach()
        if within < self.recipe.measured_steps:
            self._losses.append(value)
        shown = self._target_loss if isinstance(self._target_loss, Tensor) else value
        return loss, {"loss": shown, "auxiliary_loss": value, "turn": float(turn), "arm": float(arm)}

    def _alone(self, step: int, part: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """A step with the target alone, without an auxiliary gradient."""
        self.alignment.expect("nothing")
        if part:
            return _nothing(), {"loss": self._target_loss}
        loss = self.target(step)
        self._target_loss = loss.detach()
        return loss, {}

    def _by_lot(self, step: int, part: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """A step before the initial probing: a random arm, regardless of the scheduler."""
        self.alignment.expect("nothing")
        if not part:
            return (self.target(step) if self.recipe.follow_target else _nothing()), {}
        rng = step_rng(self.seed, step * (self.parts - 1) + part - 1)
        while live := self.scheduler.live:
            try:
                loss = self.auxiliary(live[int(rng.integers(len(live)))], rng) / (self.parts - 1)
                return loss, {"loss": loss.detach()}
            except UnusableArm as error:
                self._leave_out(error)
        return _nothing(), {}

    def _expect(self, phase: str, within: int) -> None:
        reads_along = self.scheduler.needs_probe and self.recipe.gradients != "batches"
        # The running mean is updated with every step's target gradient, measured or not.
        measured = reads_along and (phase == "target" or within < self.recipe.measured_steps)
        self.alignment.expect(phase if measured else "nothing")  # type: ignore[arg-type]

    def _auxiliary_loss(self, turn: int, rng: np.random.Generator, part: int) -> tuple[int | None, Tensor]:
        """The arm of a micro-batch and its loss; an arm that turns out unusable is quarantined, and the turn selects
        again.
        """
        together = self.scheduler.all_at_once
        while arms := self.scheduler.choose(turn):
            if together and part - 1 not in arms:
                break  # this one is skipped
            arm = part - 1 if together else arms[0]
            try:
                return arm, self.auxiliary(arm, rng) / (len(arms) if together else 1)
            except UnusableArm as error:
                self._leave_out(error)
        return None, _nothing()  # no auxiliary gradient

    def _leave_out(self, error: UnusableArm) -> None:
        self.scheduler.quarantine(error.arm, str(error))
        self._losses.clear()
        self.alignment.take()

    # --------------------------------------------------------------------------------------------------- measurements

    def _begin(self, turn: int) -> None:
        """Record the reward of the previous turn, and probe the arms that the scheduler requests before selecting, or
        before training on the selected ones.
        """
        if turn > 1 and self.recipe.gradients != "batches":
            arms = self.scheduler.choose(turn - 1)
            if len(arms) == 1 and arms[0] in self.scheduler.probes(turn - 1) and self._losses:
                measured = getattr(self.alignment.take(), self.scheduler.similarity)
                self.scheduler.observe(turn - 1, arms[0], float(torch.stack(self._losses).double().mean()), measured)
        self._losses.clear()
        before = 0 if turn == 1 else turn
        for arm in self.scheduler.probes(before):
            self._look(before, arm, self.recipe.probe_batches)
        if self.recipe.gradients == "batches":
            self.scheduler.choose(turn)
            for arm in self.scheduler.probes(turn):
                self._look(turn, arm, self.recipe.reward_batches)
        self._target_probe = None

    def _look(self, turn: int, arm: int, batches: int) -> None:
        """Measure an arm with the current network, over several batches."""
        rngs = [np.random.default_rng([self.seed, FIRST_PROBE, turn, arm, batch]) for batch in range(batches)]
        try:
            seen = self._probed([functools.partial(self.auxiliary, arm, rng) for rng in rngs])
        except UnusableArm as error:
            self._leave_out(error)
            return
        if self._target_probe is None or self._target_probe[0] != turn:
            steps = range(FIRST_PROBE + turn * batches, FIRST_PROBE + (turn + 1) * batches)
            self._target_probe = turn, self._probed([functools.partial(self.target, step) for step in steps])
        alike = similarity(self._target_probe[1].gradient, seen.gradient)
        self.scheduler.observe(turn, arm, seen.loss, getattr(alike, self.scheduler.similarity))

    def _probed(self, losses: Sequence[Callable[[], Tensor]]) -> Probe:
        self.alignment.expect("nothing")
        return probe(self.network, self.compared, losses, scale=self.probe_scale)

    # --------------------------------------------------------------------------------------------------------- record

    def state(self) -> dict[str, Any]:
        """All that further steps depend on, as JSON types."""
        losses = [float(loss) for loss in self._losses]
        return {"scheduler": self.scheduler.state(), "alignment": self.alignment.state(), "losses": losses}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore this state."""
        self.scheduler.load_state(state["scheduler"])
        self.alignment.load_state(state["alignment"])
        device = next(iter(self.compared.values())).device
        self._losses = [torch.tensor(loss, device=device) for loss in state["losses"]]

    def tensors(self) -> dict[str, Tensor]:
        """The running mean of the target's gradients."""
        return self.alignment.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the running mean."""
        self.alignment.load_tensors(tensors)

    def summary(self) -> dict[str, Any]:
        """For the adapter's card: the arms, which were quarantined and why, and a row per turn."""
        arms = self.scheduler.state().get("arms", [])
        left_out = {arm["name"]: arm["quarantined"] for arm in arms if arm["quarantined"]}
        return {"arms": list(self.arms), "left_out": left_out, "turns": self.scheduler.history}
