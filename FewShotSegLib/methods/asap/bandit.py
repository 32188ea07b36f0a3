"""Selecting the auxiliary data set to train with next: a multi-armed bandit whose arms are the data sets.

In each turn one arm is pulled, i.e. trained with together with the target. Its reward reuses quantities that training
computes anyway: its loss, and the cosine between its gradient and the target's. The policies are those of ASAP (Yang
et al., "Adapting foundation models for few-shot medical image segmentation tasks: actively and sequentially") and of
FLAD (Albalak et al., "Improving few-shot generalization by exploring and exploiting auxiliary data", NeurIPS 2023).

Turns count from 1, as in Algorithm 1 of ASAP; turn 0 is the initial probing of all arms before the first turn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from FewShotSegLib.data.recipe import check, option
from FewShotSegLib.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BanditRecipe:
    """How ASAP scores an arm. The defaults are ours; `READINGS` has the variants of the paper and its authors' code.

    Four departures; the first three were measured on synthetic arms (the tests have two of them), the last on real
    cases (Testing/BENCHMARKS.md):
    - The published bonus (exploration 1) outweighs all differences between rewards: over 400 turns, 30 arms are pulled
      evenly, at 0.83 of the regret of random selection. With 0.1, as in the authors' own run, and our averages: 0.18.
    - Eq. 4 averages rewards mixed with the alpha of their turn, so an arm seen once while alpha was 1 is judged by its
      early loss forever: of 20 arms only 8 are ever pulled, and those reach 0.72 of the best cosine. Averaging loss and
      cosine separately and mixing them with the alpha of the deciding turn gives 0.97 at the same cost; measuring all
      arms in every turn, as in the authors' run, 0.93.
    - The averages start as plain means and only later become exponential, with weight 0.1 on the newest observation:
      one noisy observation of a small batch should not decide.
    - Arms whose gradients oppose the target's, so that average cosine and bonus are together below 0, are not pulled;
      none at all is in a turn in which all of them do. Eq. 5 pulls the least bad one.
    """

    exploration: float = option(0.1, "Weight of the exploration bonus (ASAP eq. 5: 1)", min=0.0, max=100.0)
    smoothing: float = option(0.1, "Weight of the newest observation (beta of ASAP eq. 4)", min=0.0, max=1.0)
    alpha_start: float = option(1.0, "Weight of the loss against the cosine in turn 1", min=0.0, max=1.0, advanced=True)
    alpha_decay: float = option(0.1, "Decay of that weight: exp(-decay * (turn - 1))", min=0.0, max=10.0, advanced=True)
    memory: str = option(
        "separate",
        "Average loss and cosine separately, or combined as in ASAP eq. 4",
        choices=("separate", "mixed"),
        advanced=True,
    )
    reward: str = option(
        "both",
        "Reward of an arm: loss and cosine (ASAP eq. 3), or the cosine alone",
        choices=("both", "cosine"),
        advanced=True,
    )
    refresh: str = option(
        "selected",
        "Arms measured each turn; all of them costs a backward pass per arm",
        choices=("selected", "all"),
        advanced=True,
    )
    clock: str = option(
        "turn + arms", "Argument of the logarithm in the bonus", choices=("turn + arms", "turn"), advanced=True
    )
    first_estimate: str = option(
        "mean",
        "Initial value of an average: the mean of all, the first observation, or zero",
        choices=("mean", "probe", "zero"),
        advanced=True,
    )
    loss_scale: float = option(1.0, "Factor on the loss before it is mixed", min=0.0, max=1000.0, advanced=True)
    loss_limit: float | None = option(2.0, "Upper limit of the losses; none: no limit", min=0.0, advanced=True)
    abstain: bool = option(
        True,
        "Leave out arms whose gradients oppose the target's; if all do, train on the target alone",
        advanced=True,
    )
    tie_break: str = option("first", "Tie-breaking between equal arms", choices=("first", "random"), advanced=True)

    def __post_init__(self) -> None:
        check(self)

    def alpha(self, turn: int) -> float:
        """Weight of the loss in a turn; 0.5 for the initial probing (ASAP, Algorithm 1, line 3).

        >>> BanditRecipe().alpha(0), BanditRecipe().alpha(1)
        (0.5, 1.0)
        """
        return self.alpha_start * math.exp(-self.alpha_decay * (turn - 1)) if turn > 0 else 0.5


_LITERAL = BanditRecipe(
    exploration=1.0, smoothing=0.9, memory="mixed", first_estimate="probe", loss_limit=None, abstain=False
)
READINGS: dict[str, BanditRecipe] = {
    "default": BanditRecipe(),
    # Algorithm 1 and eqs. 1-5 verbatim. The paper gives neither alpha nor beta: those are from the authors' code and
    # run.
    "paper": replace(_LITERAL, clock="turn"),
    # Reproduces the authors' published run to all digits: every arm measured in every turn, bonus of 0.1.
    "log": replace(_LITERAL, exploration=0.1, refresh="all", first_estimate="zero"),
    # The authors' published code: the loss is computed but not used.
    "released": replace(_LITERAL, reward="cosine", first_estimate="zero"),
    # FLAD's UCB1.
    "ucb1": replace(_LITERAL, reward="cosine", smoothing=0.1),
}


@dataclass
class Arm:
    """The statistics of one arm.

    `n` counts pulls, including the initial probe; `observations` counts measurements. `loss` and `cosine` are averages,
    `reward` is the average of the mix (for EXP3 the sum of rewards over probabilities); None before the first
    observation. `last` is the newest measurement (loss, cosine), made in `last_turn`. `score` is the value of its last
    selection. `quarantined` is the reason why it is excluded.
    """

    name: str
    n: int = 0
    observations: int = 0
    loss: float | None = None
    cosine: float | None = None
    reward: float | None = None
    score: float | None = None
    last: tuple[float | None, float | None] = (None, None)
    last_turn: int = -1
    quarantined: str = ""


class Policy(Protocol):
    """Selects arms and updates from their rewards."""

    first_look: bool  # whether all arms are to be measured before turn 1
    refresh: str  # arms measured in a turn: "selected", "all", "none"

    def scores(self, arms: Sequence[Arm], turn: int) -> list[float]:
        """The value of each arm for this turn."""

    def may_help(self, arm: Arm, turn: int, count: int) -> bool:
        """Whether an arm, one of `count`, is worth pulling in this turn."""

    def pick(self, scores: Sequence[float], rng: np.random.Generator) -> int:
        """The index of the arm to play."""

    def learn(self, arm: Arm, turn: int, loss: float, cosine: float) -> None:
        """Update with one finite observation."""


class Ucb:
    """Upper confidence bounds: ASAP in all its variants, and FLAD's UCB1 (`READINGS["ucb1"]`)."""

    first_look = True

    def __init__(self, recipe: BanditRecipe) -> None:
        self.recipe = recipe
        self.refresh = recipe.refresh

    def value(self, arm: Arm, turn: int) -> float:
        """Estimated reward: the average of eq. 4, or both averages mixed with the alpha of this turn (eq. 3)."""
        recipe = self.recipe
        if recipe.memory == "mixed" or recipe.reward == "cosine":
            return math.inf if arm.reward is None else arm.reward
        if arm.loss is None or arm.cosine is None:
            return math.inf
        alpha = recipe.alpha(turn)
        return -alpha * arm.loss + (1 - alpha) * arm.cosine

    def bonus(self, n: int, turn: int, count: int) -> float:
        """c sqrt(2 ln t / n) with t = turn (+ number of arms), infinite for an arm never pulled (ASAP eq. 5)."""
        if n == 0:
            return math.inf
        clock = turn + count if self.recipe.clock == "turn + arms" else turn
        return self.recipe.exploration * math.sqrt(2 * math.log(clock) / n)

    def scores(self, arms: Sequence[Arm], turn: int) -> list[float]:
        return [self.value(arm, turn) + self.bonus(arm.n, turn, len(arms)) for arm in arms]

    def may_help(self, arm: Arm, turn: int, count: int) -> bool:
        """Whether its gradient is not known to oppose the target's."""
        return not self.recipe.abstain or arm.cosine is None or arm.cosine + self.bonus(arm.n, turn, count) > 0

    def pick(self, scores: Sequence[float], rng: np.random.Generator) -> int:
        highest = max(scores)
        best = [index for index, score in enumerate(scores) if score == highest]
        return best[int(rng.integers(len(best)))] if self.recipe.tie_break == "random" else best[0]

    def learn(self, arm: Arm, turn: int, loss: float, cosine: float) -> None:
        recipe = self.recipe
        cost = loss * recipe.loss_scale
        if recipe.loss_limit is not None:
            cost = min(cost, recipe.loss_limit)
        alpha = recipe.alpha(turn) if recipe.reward == "both" else 0.0
        arm.loss = self._averaged(arm, arm.loss, cost)
        arm.cosine = self._averaged(arm, arm.cosine, cosine)
        arm.reward = self._averaged(arm, arm.reward, -alpha * cost + (1 - alpha) * cosine)

    def _averaged(self, arm: Arm, before: float | None, new: float) -> float:
        start, weight = self.recipe.first_estimate, self.recipe.smoothing
        if before is None:
            if start != "zero":
                return new
            before = 0.0
        if start == "mean":
            weight = max(weight, 1 / arm.observations)
        return (1 - weight) * before + weight * new


class _Always:
    """A policy that pulls an arm in every turn."""

    def may_help(self, arm: Arm, turn: int, count: int) -> bool:
        return True


class Exp3(_Always):
    """EXP3 by FLAD's equations: arms are drawn with probabilities exponential in their cumulative reward.

    p_a = (1 - K e_t) exp(e_(t-1) R_a) / sum + e_t, with e_t = min(1/K, sqrt(ln K / (K t))), e_0 = 1/K; R_a sums the
    cosines of arm a, each divided by the probability it was drawn with. Scores are the probabilities.
    """

    first_look = False
    refresh = "selected"

    def scores(self, arms: Sequence[Arm], turn: int) -> list[float]:
        count = len(arms)
        now, before = self._floor(count, turn), self._floor(count, turn - 1)
        exponents = before * np.array([arm.reward or 0.0 for arm in arms])
        weights = np.exp(exponents - exponents.max())
        return [float(p) for p in (1 - count * now) * weights / weights.sum() + now]

    @staticmethod
    def _floor(count: int, turn: int) -> float:
        return min(1 / count, math.sqrt(math.log(count) / (count * turn))) if turn > 0 else 1 / count

    def pick(self, scores: Sequence[float], rng: np.random.Generator) -> int:
        probabilities = np.array(scores)
        return int(rng.choice(len(scores), p=probabilities / probabilities.sum()))

    def learn(self, arm: Arm, turn: int, loss: float, cosine: float) -> None:
        arm.loss, arm.cosine = loss, cosine
        arm.reward = (arm.reward or 0.0) + cosine / (arm.score or 1.0)


class Greedy(_Always):
    """Always the arm with the best score before training, while it is available."""

    first_look = True
    refresh = "none"

    def scores(self, arms: Sequence[Arm], turn: int) -> list[float]:
        return [-math.inf if arm.cosine is None else arm.cosine for arm in arms]

    def pick(self, scores: Sequence[float], rng: np.random.Generator) -> int:
        return scores.index(max(scores))

    def learn(self, arm: Arm, turn: int, loss: float, cosine: float) -> None:
        if turn == 0:
            arm.loss, arm.cosine = loss, cosine


class Uniform(_Always):
    """Uniform random selection."""

    first_look = False
    refresh = "none"

    def scores(self, arms: Sequence[Arm], turn: int) -> list[float]:
        return [1 / len(arms)] * len(arms)

    def pick(self, scores: Sequence[float], rng: np.random.Generator) -> int:
        return int(rng.integers(len(scores)))

    def learn(self, arm: Arm, turn: int, loss: float, cosine: float) -> None:
        arm.loss, arm.cosine = loss, cosine


class Bandit:
    """Arms, a policy, and their state; `state` is JSON, and determines all further selections.

    `history` has a row per selection, after one per arm for the initial probing (turn 0): turn, arm, name, score, n,
    and the loss and cosine measured in that turn; None for what was not measured.
    """

    def __init__(self, names: Sequence[str], policy: Policy, rng: np.random.Generator) -> None:
        self.arms = [Arm(name) for name in names]
        self.policy = policy
        self.rng = rng
        self.turn = 0
        self.chosen: int | None = None
        self.history: list[dict[str, Any]] = []
        self._kept_to: int | None = None

    @property
    def live(self) -> tuple[int, ...]:
        """Arms that can be pulled: not quarantined, and the one to keep to if there is one."""
        kept = range(len(self.arms)) if self._kept_to is None else (self._kept_to,)
        return tuple(index for index in kept if not self.arms[index].quarantined)

    def keep_to(self, index: int) -> None:
        """Pull this arm or none."""
        self._kept_to = index

    def pick(self, turn: int) -> int | None:
        """The arm to pull in a turn, idempotent within the turn; None if no arm is left, or none worth pulling.

        The bonus uses n before this pull, as in Algorithm 1 (line 6 before line 8).
        """
        if turn < 1:
            raise ValueError(f"turns count from 1, got {turn}")
        if turn == self.turn and self.chosen is not None:
            return self.chosen
        self.turn, self.chosen = turn, None
        live = self.live
        if live:
            arms = [self.arms[index] for index in live]
            scores = self.policy.scores(arms, turn)
            helpful = [at for at, arm in enumerate(arms) if self.policy.may_help(arm, turn, len(arms))]
            if not helpful:
                return None
            at = helpful[self.policy.pick([scores[at] for at in helpful], self.rng)]
            arms[at].score = scores[at]
            arms[at].n += 1
            self.chosen = live[at]
            self._note(turn, live[at])
        return self.chosen

    def best(self) -> int | None:
        """The arm with the highest average cosine; None if none was measured."""
        cosines = {index: cosine for index in self.live if (cosine := self.arms[index].cosine) is not None}
        return max(cosines, key=lambda index: cosines[index], default=None)

    def probes(self, turn: int) -> tuple[int, ...]:
        """Arms whose loss and cosine are to be measured now, with the network in its state before further training.

        In turn 0 those not seen yet. Later, before `pick`, all arms if the policy refreshes all; after it the selected
        one. Arms observed in this turn are not requested again.
        """
        if turn == 0:
            asked = self.live if self.policy.first_look else ()
        elif self.policy.refresh == "all":
            asked = self.live if turn > 1 else ()  # in turn 1 the network is unchanged since the initial probing
        elif self.policy.refresh == "selected" and turn == self.turn and self.chosen is not None:
            asked = (self.chosen,)
        else:
            asked = ()
        return tuple(index for index in asked if self.arms[index].last_turn < turn)

    def observe(self, turn: int, index: int, loss: float, cosine: float) -> None:
        """Record the reward of an arm. A non-finite loss quarantines the arm.

        A non-finite cosine with a finite loss (half precision overflows occasionally) leaves the averages unchanged; an
        arm without any uses 0.
        """
        arm = self.arms[index]
        arm.last, arm.last_turn = (_finite(loss), _finite(cosine)), turn
        if turn == 0:
            arm.n = max(arm.n, 1)  # the initial probe is the first pull (Algorithm 1, line 2)
        self._note(turn, index)
        if not math.isfinite(loss):
            self.quarantine(index, f"its loss became {loss}")
            return
        if not math.isfinite(cosine):
            if arm.observations:
                return
            cosine = 0.0
        arm.observations += 1
        self.policy.learn(arm, turn, loss, cosine)

    def _note(self, turn: int, index: int) -> None:
        """Write or complete the history row of a selection, or of an initial probe."""
        arm = self.arms[index]
        played = turn == self.turn and index == self.chosen
        if not played and turn > 0:
            return
        loss, cosine = arm.last if arm.last_turn == turn else (None, None)
        row = {
            "turn": turn,
            "arm": index,
            "name": arm.name,
            "score": _finite(arm.score),
            "n": arm.n,
            "loss": loss,
            "cosine": cosine,
        }
        if self.history and (self.history[-1]["turn"], self.history[-1]["arm"]) == (turn, index):
            self.history.pop()
        self.history.append(row)

    def quarantine(self, index: int, reason: str) -> None:
        """Exclude an arm; a turn that had selected it may select again."""
        arm = self.arms[index]
        if arm.quarantined:
            return
        arm.quarantined = reason
        log.warning('Auxiliary data "%s" is left out from now on: %s.', arm.name, reason.rstrip("."))
        if self.chosen == index:
            self.chosen = None

    def state(self) -> dict[str, Any]:
        """All that further selections depend on, as JSON types."""
        return {
            "arms": [asdict(arm) | {"score": _finite(arm.score), "last": list(arm.last)} for arm in self.arms],
            "turn": self.turn,
            "chosen": self.chosen,
            "history": [dict(row) for row in self.history],
            "rng": _rng_state(self.rng),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state; one of other arms is rejected."""
        names, saved = [arm.name for arm in self.arms], [values["name"] for values in state["arms"]]
        if names != saved:
            raise InputError(
                f"The saved choice of auxiliary data is between {_listed(saved)}, now there are {_listed(names)}; "
                "use the same auxiliary data or start from scratch."
            )
        self.arms = [Arm(**values | {"last": tuple(values["last"])}) for values in state["arms"]]
        self.turn, self.chosen = state["turn"], state["chosen"]
        self.history = [dict(row) for row in state["history"]]
        self.rng.bit_generator.state = state["rng"]


def _finite(number: float | None) -> float | None:
    """The number, or None if JSON cannot represent it."""
    return float(number) if number is not None and math.isfinite(number) else None


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    state = dict(rng.bit_generator.state)
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"the state of default_rng's PCG64 is JSON, that of {state['bit_generator']} is not")
    return state


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "no arms"
