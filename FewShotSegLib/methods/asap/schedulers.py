"""What to train with at each turn, beside the target: one interface for ASAP and for what it is compared with.

    for arm in scheduler.probes(0):
        scheduler.observe(0, arm, *measured(arm))       # loss, and cosine with the target's gradient
    for turn in range(1, turns + 1):
        for arm in scheduler.probes(turn): ...          # before the choice: only where every arm is refreshed
        arms = scheduler.choose(turn)                   # the same all through the turn
        ...                                             # train with the target and these arms
        for arm in scheduler.probes(turn): ...          # the chosen arm, which training has measured already

`FewShotSegLib.methods.asap.gradients` has both measurements: apart from training, and read off while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from FewShotSegLib.errors import InputError

from .bandit import READINGS, Bandit, BanditRecipe, Exp3, Greedy, Ucb, Uniform

SCHEDULERS = ("asap", "direct", "gms", "mtl", "dal_ucb1", "dal_exp3", "random")


class Scheduler(Protocol):
    """Decides, turn by turn, which arms are trained with. Turns count from 1; turn 0 is before training."""

    similarity: Literal["cosine", "magnitude"]
    """Which of the two similarities of gradients `observe` is to be given."""

    all_at_once: bool
    """Whether every step trains with every chosen arm, a batch of each, instead of one batch of all."""

    @property
    def needs_probe(self) -> bool:
        """Whether it ever wants a measurement."""

    @property
    def live(self) -> tuple[int, ...]:
        """Arms that are not left out."""

    def described(self) -> str:
        """How it chooses, with all its options: equal texts, equal choices."""

    def probes(self, turn: int) -> tuple[int, ...]:
        """Arms whose loss and gradient similarity are wanted now; empty once they were observed."""

    def choose(self, turn: int) -> tuple[int, ...]:
        """Arms of this turn: none = target only. The same until the turn is over."""

    def observe(self, turn: int, arm: int, loss: float, cosine: float) -> None:
        """Take in a measurement of the network as it was before this turn changed it."""

    def quarantine(self, arm: int, reason: str) -> None:
        """Leave an arm out from now on; when none is left the target is trained alone. `choose` may be asked again."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per measurement: turn, arm, name, loss, cosine, and score and n of the arm that was played."""

    def state(self) -> dict[str, Any]:
        """All that the next choices depend on, as JSON types."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""

    def go_on(self, state: Mapping[str, Any]) -> int:
        """Go on from the state of an earlier run, with a history of its own; return the number of its last turn."""


class _BanditScheduler(Bandit):
    """Does what a bandit says: one arm per turn, none where there are no arms."""

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
    """Active and sequential: the arm with the highest upper confidence bound."""

    def __init__(self, names: Sequence[str], recipe: BanditRecipe, rng: np.random.Generator) -> None:
        super().__init__(names, Ucb(recipe), rng)


class Direct(_BanditScheduler):
    """Fine-tuning on the target alone."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__((), Uniform(), rng)


class Gms(_BanditScheduler):
    """The one arm whose gradient is closest in size to the target's before training, for the whole run.

    `observe` is given the gradient magnitude similarity 2 |g1| |g2| / (|g1|^2 + |g2|^2) (Yu et al. 2020, PCGrad) in
    place of the cosine.
    """

    similarity: Literal["cosine", "magnitude"] = "magnitude"

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(names, Greedy(), rng)


class Mtl(_BanditScheduler):
    """Multi-task learning: a batch of every arm in every step, which costs a backward pass for each."""

    all_at_once = True

    def __init__(self, names: Sequence[str], rng: np.random.Generator) -> None:
        super().__init__(names, Uniform(), rng)

    def choose(self, turn: int) -> tuple[int, ...]:
        return self.live


class Dal(_BanditScheduler):
    """Dynamic auxiliary learning after FLAD, rewarded by the cosine alone: its UCB1, or EXP3 by its equations.

    FLAD's code departs from its equations for EXP3 (its clock is 10 t + 1, and it smooths the similarity); `Exp3`
    follows the equations.
    """

    def __init__(self, names: Sequence[str], kind: Literal["ucb1", "exp3"], rng: np.random.Generator) -> None:
        super().__init__(names, Ucb(READINGS["ucb1"]) if kind == "ucb1" else Exp3(), rng)


class RandomArm(_BanditScheduler):
    """An arm drawn by lot, every turn anew. Of a single arm it is training with that one, unmeasured."""

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
