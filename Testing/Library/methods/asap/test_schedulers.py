"""One interface for ASAP and all it is compared with, and whether the choice of data pays."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.asap.bandit import READINGS, BanditRecipe
from FewShotSegLib.methods.asap.schedulers import SCHEDULERS, Asap, Direct, Gms, RandomArm, Scheduler, scheduler_of

NAMES = ("liver", "spleen", "kidney", "aorta")
BANDITS = ("asap", "dal_ucb1", "dal_exp3")


def a_scheduler(name: str, arms: tuple[str, ...] = NAMES, seed: int = 0, **options: Any) -> Scheduler:
    recipe = BanditRecipe(**options) if options else None
    return scheduler_of(name, arms, recipe, np.random.default_rng(seed))


def measured(turn: int, arm: int) -> tuple[float, float]:
    loss, cosine = np.random.default_rng([turn, arm]).uniform([0.2, 0.0], [1.5, 1.0])
    return float(loss), float(cosine)


def run(scheduler: Scheduler, turns: range) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
    """The loop of the module's docstring; returns the choices, and all (turn, arm) that were measured."""
    choices, looks = [], []
    for turn in turns:
        for choosing in (False, True):
            if choosing and turn:
                choices.append(scheduler.choose(turn))
            for arm in scheduler.probes(turn):
                looks.append((turn, arm))
                scheduler.observe(turn, arm, *measured(turn, arm))
            assert scheduler.probes(turn) == ()
    return choices, looks


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_fits_the_loop(name: str) -> None:
    scheduler = a_scheduler(name)
    choices, looks = run(scheduler, range(21))
    sizes = {"direct": 0, "mtl": len(NAMES)}
    assert {len(arms) for arms in choices} == {sizes.get(name, 1)}
    assert bool(looks) == scheduler.needs_probe
    assert scheduler.needs_probe == (name in (*BANDITS, "gms"))
    json.dumps(scheduler.state(), allow_nan=False)


def test_without_arms_all_are_fine_tuning_on_the_target_alone() -> None:
    direct = a_scheduler("direct")
    expected = run(direct, range(11))
    assert expected == ([()] * 10, [])
    for name in SCHEDULERS:
        alone = a_scheduler(name, ())
        assert not alone.needs_probe
        assert run(alone, range(11)) == expected
        assert alone.state()["rng"] == direct.state()["rng"]  # not one random number was drawn


def test_the_cost_of_a_turn_does_not_depend_on_the_number_of_arms() -> None:
    for count in (2, 5, 30):
        arms = tuple(f"arm {number}" for number in range(count))
        looks = run(a_scheduler("asap", arms), range(11))[1]
        assert [turn for turn, _ in looks] == [0] * count + list(range(1, 11))
        looks = run(a_scheduler("asap", arms, refresh="all"), range(11))[1]
        assert [turn for turn, _ in looks] == sorted([turn for turn in range(11) if turn != 1] * count)


def test_gms_chooses_once_by_the_size_of_the_gradients() -> None:
    scheduler = a_scheduler("gms")
    assert scheduler.similarity == "magnitude"
    assert all(a_scheduler(name).similarity == "cosine" for name in SCHEDULERS if name != "gms")
    for arm, similarity in zip(scheduler.probes(0), [0.3, 0.8, 0.95, 0.1], strict=True):
        scheduler.observe(0, arm, 1.0, similarity)
    choices, looks = run(scheduler, range(1, 51))
    assert (set(choices), looks) == ({(2,)}, [])
    scheduler.quarantine(2, "file lost")
    assert scheduler.choose(51) == (1,)


def test_a_random_arm_is_any_arm_and_a_single_one_is_a_fixed_set() -> None:
    choices = run(a_scheduler("random"), range(1, 401))[0]
    assert all(70 < choices.count((arm,)) < 130 for arm in range(4))
    fixed = RandomArm(["liver"], np.random.default_rng(0))
    assert run(fixed, range(6)) == ([(0,)] * 5, [])


def test_asap_follows_its_recipe() -> None:
    greedy = Asap(NAMES, BanditRecipe(exploration=0.0, reward="cosine"), np.random.default_rng(0))
    for arm, cosine in enumerate([0.1, 0.2, 0.9, 0.3]):
        greedy.observe(0, arm, 1.0, cosine)
    for turn in range(1, 20):
        assert greedy.choose(turn) == (2,)
        greedy.observe(turn, 2, 1.0, 0.9)
    assert a_scheduler("asap").state() == Asap(NAMES, READINGS["default"], np.random.default_rng(0)).state()


@pytest.mark.parametrize("name", ["asap", "gms", "mtl", "dal_ucb1", "dal_exp3", "random"])
def test_a_quarantined_arm_is_out_and_the_last_one_leaves_the_target(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = a_scheduler(name)
    run(scheduler, range(3))
    with caplog.at_level(logging.WARNING):
        for number, arm in enumerate((1, 3, 0, 2, 2)):
            scheduler.quarantine(arm, "file lost")
            choices = run(scheduler, range(10 * (number + 1), 10 * (number + 1) + 9))[0]
            left = {0, 1, 2, 3} - {1, 3, 0, 2}.intersection((1, 3, 0, 2)[: number + 1])
            assert {arm for arms in choices for arm in arms} <= left
    assert set(choices) == {()}
    assert not scheduler.needs_probe
    assert len(caplog.records) == 4  # each is said once


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_scheduler_makes_the_same_next_50_choices(name: str) -> None:
    going_on = a_scheduler(name)
    run(going_on, range(31))
    saved = json.loads(json.dumps(going_on.state()))
    resumed = a_scheduler(name, seed=5)
    resumed.load_state(saved)
    assert run(resumed, range(31, 81)) == run(going_on, range(31, 81))
    assert resumed.history == going_on.history


def test_an_unknown_scheduler_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r'one of asap, direct, gms, .* got "best"'):
        a_scheduler("best")


# --- does it pay? ---------------------------------------------------------------------------------------------------
# Logistic regression in 30 dimensions with 12 shots of the target. One arm has nearly the target's direction, nine have
# opposed ones: training with them costs more than it gives (negative transfer).

DIMENSIONS, SHOTS, ARMS, TURNS, SEEDS = 30, 12, 10, 60, 60
Data = tuple[NDArray[np.float64], NDArray[np.float64]]


def direction(towards: NDArray[np.float64], cosine: float, rng: np.random.Generator) -> NDArray[np.float64]:
    across = rng.standard_normal(DIMENSIONS)
    across -= (across @ towards) * towards
    return cosine * towards + math.sqrt(1 - cosine**2) * across / np.linalg.norm(across)


def labelled(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> Data:
    points = rng.standard_normal((count, DIMENSIONS))
    return points, (points @ weights > 0).astype(float)


def loss_and_gradient(weights: NDArray[np.float64], data: Data) -> tuple[float, NDArray[np.float64]]:
    points, labels = data
    margin = points @ weights
    loss = np.mean(np.logaddexp(0.0, margin) - labels * margin)
    return float(loss), points.T @ (1 / (1 + np.exp(-margin)) - labels) / len(labels)


def similarity(kind: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if kind == "cosine" else 2 * norms / float(a @ a + b @ b)


def accuracy_of(name: str, seed: int, **options: Any) -> tuple[float, float]:
    """Test accuracy on the target after 60 turns of one step each, and the share of turns with the helpful arm.

    Gradients are those of small batches, and the reward is read off their running mean, as in `turns`.
    """
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(DIMENSIONS)
    truth /= np.linalg.norm(truth)
    helpful = int(rng.integers(ARMS))
    arms = [labelled(direction(truth, 0.9 if arm == helpful else -0.5, rng), 100, rng) for arm in range(ARMS)]
    target, unseen = labelled(truth, SHOTS, rng), labelled(truth, 1000, rng)
    scheduler = a_scheduler(name, tuple(str(arm) for arm in range(ARMS)), seed, **options)
    weights, batches, helped = np.zeros(DIMENSIONS), np.random.default_rng([seed, 1]), 0

    def batch(arm: int) -> Data:
        points, labels = arms[arm]
        drawn = batches.choice(len(labels), 16, replace=False)
        return points[drawn], labels[drawn]

    def shot() -> NDArray[np.float64]:
        """The target's gradient of one small batch, as training has it."""
        some = batches.choice(SHOTS, 4, replace=False)
        return loss_and_gradient(weights, (target[0][some], target[1][some]))[1]

    first = np.mean([shot() for _ in range(2)], axis=0)
    mean = first
    for arm in scheduler.probes(0):
        loss, gradient = loss_and_gradient(weights, arms[arm])
        scheduler.observe(0, arm, loss, similarity(scheduler.similarity, gradient, first))
    for turn in range(1, TURNS + 1):
        chosen, step = scheduler.choose(turn), shot()
        mean = 0.9 * mean + 0.1 * step
        pulls = {arm: loss_and_gradient(weights, batch(arm)) for arm in chosen}
        for arm in scheduler.probes(turn):
            scheduler.observe(turn, arm, pulls[arm][0], similarity("cosine", pulls[arm][1], mean))
        if pulls:
            step = step + np.mean([gradient for _, gradient in pulls.values()], axis=0)
        weights -= 0.1 * step
        helped += chosen == (helpful,)
    return float(np.mean((unseen[0] @ weights > 0) == (unseen[1] > 0))), helped / TURNS


def test_asap_gains_where_other_ways_to_use_auxiliary_data_lose() -> None:
    """ASAP > direct > ASAP with the published bonus > MTL, each by more than three standard errors of the pairs."""
    found = {
        "asap": [accuracy_of("asap", seed) for seed in range(SEEDS)],
        "direct": [accuracy_of("direct", seed) for seed in range(SEEDS)],
        "published": [accuracy_of("asap", seed, exploration=1.0) for seed in range(SEEDS)],
        "mtl": [accuracy_of("mtl", seed) for seed in range(SEEDS)],
    }
    accuracy = {name: np.array(pairs)[:, 0] for name, pairs in found.items()}
    shares = {name: float(np.mean(np.array(pairs)[:, 1])) for name, pairs in found.items()}
    for better, worse in (("asap", "direct"), ("direct", "published"), ("published", "mtl")):
        gains = accuracy[better] - accuracy[worse]
        assert gains.mean() > 3 * gains.std(ddof=1) / math.sqrt(SEEDS), f"{better} over {worse}: {gains.mean():.3f}"
    assert shares["published"] < 0.2 < 0.5 < shares["asap"]


def test_direct_takes_no_arms() -> None:
    assert Direct(np.random.default_rng(0)).choose(1) == ()
    assert Gms(["a"], np.random.default_rng(0)).needs_probe
