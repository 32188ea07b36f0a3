"""Training in turns: the target in every step and, beside it, the auxiliary data that a scheduler chose for the turn.

A step follows g_T + g_a, the sum of the gradients of one target batch and one auxiliary batch (Yang et al., ASAP,
Algorithm 1, line 11). Both backward passes are needed anyway, and the similarity of the two gradients is read off them,
so a turn costs the same however many arms there are. Only the look at all arms before turn 1 grows with their number.

`Turns` fits into `training.fit`: `loss_at` gives the loss of one micro-batch, `schedule` says how many there are to a
step, and the state of scheduler and measurements goes into every checkpoint. It knows nothing of networks or images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.training.fit import Schedule, step_rng

from .gradients import Alignment, Probe, in_scope, probe, similarity
from .pool import UnusableArm
from .schedulers import Direct, Scheduler

TargetLoss = Callable[[int], Tensor]
"""Step number -> loss of the batch of that step."""
ArmsLoss = Callable[[Sequence[int], np.random.Generator], Tensor]
"""(arms, rng) -> loss of a batch drawn from them, in equal parts where there are several."""

_PROBE = 1 << 30  # step numbers from here on belong to looks, so that these use up no batch of training


def alternating(arms: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """The arm of each of `count` samples: one after the other, in an order drawn anew for each batch.

    >>> sorted(alternating((0, 1), 4, np.random.default_rng(0)))
    [0, 0, 1, 1]
    """
    order = [int(arm) for arm in rng.permutation(arms)] if len(arms) > 1 else list(arms)
    return [order[at % len(order)] for at in range(count)]


@dataclass(frozen=True)
class TurnRecipe:
    """How long a turn is, and how much is measured in it. From step `alone_from` on the target is trained alone."""

    steps_per_turn: int = 1
    measured_steps: int = 1
    probe_batches: int = 2
    scope: tuple[str, ...] = ()
    alone_from: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.measured_steps <= self.steps_per_turn:
            raise InputError(
                f"A turn has at least 1 step, and from 1 to all of them are measured, got {self.measured_steps} of "
                f"{self.steps_per_turn}."
            )
        if self.probe_batches < 1:
            raise InputError(f"A look at an arm takes at least 1 batch, got {self.probe_batches}.")


class Turns:
    """Two micro-batches a step, target and auxiliary; without arms one, and then nothing differs from plain training.

    `network` is what the losses run, `parameters` what is trained; gradients are compared over those in the scope of
    the recipe (prefixes of names). Use it as a context manager around `fit`. The first step of a turn takes in what the
    turn before has paid, so a checkpoint may fall anywhere.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        arms: Sequence[str],
        target: TargetLoss,
        auxiliary: ArmsLoss,
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
        self.alignment = Alignment(self.compared)
        self.has_arms = bool(self.arms) and not isinstance(scheduler, Direct)
        self._losses: list[float] = []
        self._target_loss = math.nan
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
        return replace(schedule, accumulate=2, summed=True)

    def loss_at(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of a micro-batch: even numbers are the target's, odd ones the auxiliary data's."""
        if not self.has_arms:
            return self.target(number), {}
        step, is_auxiliary = divmod(number, 2)
        if self.recipe.alone_from is not None and step >= self.recipe.alone_from:
            return self._alone(step, bool(is_auxiliary))
        turn, within = step // self.recipe.steps_per_turn + 1, step % self.recipe.steps_per_turn
        if not is_auxiliary:
            if within == 0:
                self._begin(turn)
            loss = self.target(step)
            self._target_loss = float(loss.detach())
            self._expect("target", within)
            return loss, {}
        arms, loss = self._auxiliary_loss(turn, step_rng(self.seed, step))
        if not arms:
            self._expect("nothing", within)
            return loss, {"loss": self._target_loss}
        self._expect("auxiliary", within)
        value = float(loss.detach())
        if within < self.recipe.measured_steps:
            self._losses.append(value)
        chosen = {"arm": float(arms[0])} if len(arms) == 1 else {}
        return loss, {"loss": self._target_loss, "auxiliary_loss": value, "turn": float(turn), **chosen}

    def _alone(self, step: int, is_auxiliary: bool) -> tuple[Tensor, dict[str, float]]:
        """A step with the target alone: to its gradient nothing is added."""
        self.alignment.expect("nothing")
        if is_auxiliary:
            return torch.zeros((), requires_grad=True), {"loss": self._target_loss}
        loss = self.target(step)
        self._target_loss = float(loss.detach())
        return loss, {}

    def _expect(self, phase: str, within: int) -> None:
        measured = self.scheduler.needs_probe and within < self.recipe.measured_steps
        self.alignment.expect(phase if measured else "nothing")  # type: ignore[arg-type]

    def _auxiliary_loss(self, turn: int, rng: np.random.Generator) -> tuple[tuple[int, ...], Tensor]:
        """The turn's arms and their loss; an arm that turns out unusable is left out and the turn chooses again."""
        while arms := self.scheduler.choose(turn):
            try:
                return arms, self.auxiliary(arms, rng)
            except UnusableArm as error:
                self._leave_out(error)
        return (), torch.zeros((), requires_grad=True)  # nothing is added to the target's gradient

    def _leave_out(self, error: UnusableArm) -> None:
        self.scheduler.quarantine(error.arm, str(error))
        self._losses.clear()
        self.alignment.take()

    # --------------------------------------------------------------------------------------------------- measurements

    def _begin(self, turn: int) -> None:
        """Take in the turn before, and look at the arms that the scheduler wants to see before it chooses."""
        if turn > 1:
            arms = self.scheduler.choose(turn - 1)
            if len(arms) == 1 and arms[0] in self.scheduler.probes(turn - 1) and self._losses:
                measured = getattr(self.alignment.take(), self.scheduler.similarity)
                self.scheduler.observe(turn - 1, arms[0], float(np.mean(self._losses)), measured)
        self._losses.clear()
        before = 0 if turn == 1 else turn
        for arm in self.scheduler.probes(before):
            self._look(before, arm)
        self._target_probe = None

    def _look(self, turn: int, arm: int) -> None:
        """Measure an arm with the network as it is."""
        try:
            seen = self._probed([functools.partial(self.auxiliary, (arm,), rng) for rng in self._rngs(turn, arm)])
        except UnusableArm as error:
            self._leave_out(error)
            return
        if self._target_probe is None or self._target_probe[0] != turn:
            steps = range(_PROBE + turn * self.recipe.probe_batches, _PROBE + (turn + 1) * self.recipe.probe_batches)
            self._target_probe = turn, self._probed([functools.partial(self.target, step) for step in steps])
        alike = similarity(self._target_probe[1].gradient, seen.gradient)
        self.scheduler.observe(turn, arm, seen.loss, getattr(alike, self.scheduler.similarity))

    def _rngs(self, turn: int, arm: int) -> list[np.random.Generator]:
        count = self.recipe.probe_batches
        return [np.random.default_rng([self.seed, _PROBE, turn, arm, batch]) for batch in range(count)]

    def _probed(self, losses: Sequence[Callable[[], Tensor]]) -> Probe:
        self.alignment.expect("nothing")
        return probe(self.network, self.compared, losses, scale=self.probe_scale)

    # --------------------------------------------------------------------------------------------------------- record

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, as JSON types."""
        return {"scheduler": self.scheduler.state(), "alignment": self.alignment.state(), "losses": self._losses}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.scheduler.load_state(state["scheduler"])
        self.alignment.load_state(state["alignment"])
        self._losses = list(state["losses"])

    def summary(self) -> dict[str, Any]:
        """For the adapter's card: the arms, which were left out and why, and a row per turn."""
        arms = self.scheduler.state().get("arms", [])
        left_out = {arm["name"]: arm["quarantined"] for arm in arms if arm["quarantined"]}
        return {"arms": list(self.arms), "left_out": left_out, "turns": self.scheduler.history}
