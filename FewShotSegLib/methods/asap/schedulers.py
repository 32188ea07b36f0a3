"""What to train on in each turn, alongside the target: one interface for ASAP and its baselines.

    for arm in scheduler.probes(0):
        scheduler.observe(0, arm, *measured(arm))       # loss, and cosine with the target's gradient
    for turn in range(1, turns + 1):
        for arm in scheduler.probes(turn): ...          # before selection: only if every arm is refreshed
        arms = scheduler.choose(turn)                   # constant throughout the turn
        ...                                             # train with the target and these arms
        for arm in scheduler.probes(turn): ...          # the selected arm, already measured during training

`FewShotSegLib.methods.asap.gradients` has both measurements: separate from training, and during training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from FewShotSegLib.errors import InputError

from .bandit import READINGS, Bandit, BanditRecipe, Exp3, Greedy, Ucb, Uniform

SCHEDULERS = ("asap", "direct", "gms", "mtl", "dal_ucb1", "dal_exp3", "random")


class Scheduler(Protocol):
    """Selects, turn by turn, the arms to train on. Turns count from 1; turn 0 is before training."""

    similarity: Literal["cosine", "magnitude"]
    """Which of the two gradient similarities `observe` expects."""

    all_at_once: bool
    """Whether every step trains on a batch of each selected arm, instead of one batch of all."""

    @property
    def needs_probe(self) -> bool:
        """Whether it ever requests a measurement."""

    @property
    def live(self) -> tuple[int, ...]:
        """Arms that are not quarantined."""

    def described(self) -> str:
        """Its strategy with all options: equal descriptions imply equal selections."""

    def probes(self, turn: int) -> tuple[int, ...]:
        """Arms whose loss and gradient similarity are requested now; empty once observed."""

    def choose(self, turn: int) -> tuple[int, ...]:
        """Arms of this turn; none means target only. Constant until the turn is over."""

    def observe(self, turn: int, arm: int, loss: float, cosine: float) -> None:
        """Record a measurement of the network in its state before this turn."""

    def quarantine(self, arm: int, reason: str) -> None:
        """Exclude an arm from now on; if none is left, only the target is trained. `choose` may be called again."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per measurement: turn, arm, name, loss, cosine, and score and n of the selected arm."""

    def state(self) -> dict[str, Any]:
        """All that further selections depend on, as JSON types."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore this state."""


class _BanditScheduler(Bandit):
    """Follows a bandit: one arm per turn, none if there are no arms."""

    similarity: Literal["cosine", "magnitude"] = "cosine"
    all_at_once = False

    @property
    def needs_probe(self) -> bool:
        return bool(self.live) and (self.policy.first_look or self.policy.refresh != "none")

    def described(self) -> str:
        return f"{type(self).__name__} {getattr(self.policy, 'recipe', '')}"

    def choose(self, turn: int) -> tuple[int, ...]:
        arm = self.pick(turn)
        return () if arm is None else (arm,)


class Asap(_BanditScheduler):
    """Active and sequential: the arm with the highest upper confidence bound, or none if none promises to help."""

    def __init__(self, names: Sequence[str], recipe: BanditRecipe, rng: np.random.Generator) -> None:
        super().__init__(names, Ucb(recipe), rng)


class Direct(_BanditScheduler):
    """Fine-tuning on the target alone."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__((), Uniform(), rng)


class Gms(_BanditScheduler):
    """The arm whose gradient magnitude is closest to the target's before training, for the whole run.

    `observe` is given the gradient magnitude similarity 2 |g1| |g2| / (|g1|^2 + |g2|^2) (Yu et al. 2020, PCGrad)
    instead of the cosine.
    """

    similarity: Literal["cosine", "magnitude"] = "magnitude"

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(names, Greedy(), rng)


class Mtl(_BanditScheduler):
    """Multi-task learning: a batch of every arm in every step, at the cost of a backward pass for each."""

    all_at_once = True

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(names, Uniform(), rng)

    def choose(self, turn: int) -> tuple[int, ...]:
        return self.live


class Dal(_BanditScheduler):
    """Dynamic auxiliary learning as in FLAD, with the cosine as reward: its UCB1, or EXP3 by its equations.

    FLAD's code departs from its equations for EXP3 (its time index is 10 t + 1, and it smooths the similarity); `Exp3`
    follows the equations. FLAD takes the target's gradient over all target data, of part of the parameters; here it is
    the running mean over batches, of all parameters, as for ASAP.
    """

    def __init__(self, names: Sequence[str], kind: Literal["ucb1", "exp3"], rng: np.random.Generator) -> None:
        super().__init__(names, Ucb(READINGS["ucb1"]) if kind == "ucb1" else Exp3(), rng)


class RandomArm(_BanditScheduler):
    """A random arm in every turn. With a single arm, training on that one, without measurements."""

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(names, Uniform(), rng)


def scheduler_of(name: str, arms: Sequence[str], options: BanditRecipe | None, rng: np.random.Generator) -> Scheduler:
    """Return the scheduler called `name` (one of `SCHEDULERS`) for arms with these names.

    `options` are those of ASAP (None: ours); the others have none. Without arms all of them are `Direct`.

    >>> scheduler_of("mtl", ["liver", "spleen"], None, np.random.default_rng(0)).choose(1)
    (0, 1)
    """
    makers: dict[str, Callable[[], Scheduler]] = {
        "asap": lambda: Asap(arms, options or BanditRecipe(), rng),
        "direct": lambda: Direct(rng),
        "gms": lambda: Gms(arms, rng),
        "mtl": lambda: Mtl(arms, rng),
        "dal_ucb1": lambda: Dal(arms, "ucb1", rng),
        "dal_exp3": lambda: Dal(arms, "exp3", rng),
        "random": lambda: RandomArm(arms, rng),
    }
    if name not in makers:
        raise InputError(f'The choice of auxiliary data is one of {", ".join(SCHEDULERS)}, got "{name}".')
    return makers[name]()
