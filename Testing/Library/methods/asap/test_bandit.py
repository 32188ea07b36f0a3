"""The bandit against closed forms, published bounds, and what the authors' own run is known to have done."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.asap.bandit import READINGS, Arm, Bandit, BanditRecipe, Exp3, Greedy, Policy, Ucb, Uniform

# Reward = cosine, as in the stationary bandits of the literature.
COSINE = BanditRecipe(reward="cosine")
POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: lambda recipe=recipe: Ucb(recipe) for name, recipe in READINGS.items()},
    "random ties": lambda: Ucb(replace(READINGS["default"], tie_break="random")),
    "exp3": Exp3,
    "uniform": Uniform,
    "greedy": Greedy,
}


def bandit_of(policy: Policy, count: int, seed: int = 0) -> Bandit:
    return Bandit([f"arm {index}" for index in range(count)], policy, np.random.default_rng(seed))


Payment = Callable[[int, int], tuple[float, float]]  # turn, arm -> loss, cosine


def play(bandit: Bandit, turns: Sequence[int], pay: Payment) -> list[int | None]:
    """Play turns of a run (turn 0: the first look) in the order of the schedulers; returns the picks."""
    picks = []
    for turn in turns:
        for arm in bandit.probes(turn):
            bandit.observe(turn, arm, *pay(turn, arm))
        if turn > 0:
            picks.append(bandit.pick(turn))
            for arm in bandit.probes(turn):
                bandit.observe(turn, arm, *pay(turn, arm))
    return picks


def noise_of(turn: int, arm: int) -> tuple[float, float]:
    """Payments that belong to turn and arm, whoever asks and however often."""
    loss, cosine = np.random.default_rng([turn, arm]).uniform([0.2, -0.5], [1.5, 1.0])
    return float(loss), float(cosine)


def value_of(bandit: Bandit, arm: int, turn: int) -> float:
    assert isinstance(bandit.policy, Ucb)
    return bandit.policy.value(bandit.arms[arm], turn)


# --- the bonus, eq. 5 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turn", "n", "expected"), [(1, 1, 0.246760), (5, 2, 0.179412)])
def test_the_bonus_is_that_of_the_published_run(turn: int, n: int, expected: float) -> None:
    for name in ("default", "log"):
        assert Ucb(READINGS[name]).bonus(n, turn, count=20) == pytest.approx(expected, abs=5e-7)
    assert Ucb(READINGS["released"]).bonus(n, turn, count=20) == pytest.approx(10 * expected, abs=5e-6)


def test_the_paper_has_no_bonus_in_turn_1_and_plays_the_best_first_estimate() -> None:
    policy = Ucb(READINGS["paper"])
    assert policy.bonus(1, 1, count=20) == 0.0
    assert policy.bonus(2, 5, count=20) == pytest.approx(math.sqrt(2 * math.log(5) / 2))
    bandit = bandit_of(policy, 3)
    for arm, (loss, cosine) in enumerate([(1.0, 0.9), (0.2, 0.4), (0.5, 0.5)]):
        bandit.observe(0, arm, loss, cosine)
    assert bandit.pick(1) == 1  # half the cosine minus half the loss: -0.05, 0.1, 0.0


@pytest.mark.parametrize("name", READINGS)
def test_an_arm_that_was_never_played_comes_before_all_others(name: str) -> None:
    bandit = bandit_of(Ucb(READINGS[name]), 3)
    for arm in (0, 2):
        bandit.observe(0, arm, 0.0, 1.0)
    assert Ucb(READINGS[name]).bonus(0, 7, count=3) == math.inf
    assert bandit.pick(1) == 1


def test_the_first_look_is_the_first_play_of_every_arm() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 4)
    play(bandit, range(31), noise_of)
    assert sum(arm.n for arm in bandit.arms) == 4 + 30
    assert all(arm.n >= 1 for arm in bandit.arms)


# --- the reward, eqs. 1 to 4 ----------------------------------------------------------------------------------------


def test_the_weight_of_the_loss_falls_from_one_by_e_in_ten_turns() -> None:
    recipe = READINGS["default"]
    assert (recipe.alpha(0), recipe.alpha(1)) == (0.5, 1.0)
    assert recipe.alpha(11) == pytest.approx(math.exp(-1))
    assert all(READINGS[name].alpha(11) == recipe.alpha(11) for name in ("paper", "log"))


@pytest.mark.parametrize("beta", [0.9, 0.3])
def test_eq_4_has_its_closed_form(beta: float) -> None:
    """R_t = (1-b)^t R_0 + b sum (1-b)^(t-i) r_i, with r_i mixed by the alpha of turn i."""
    recipe = replace(READINGS["paper"], smoothing=beta)
    bandit = bandit_of(Ucb(recipe), 1)
    play(bandit, range(26), noise_of)
    rewards = [-recipe.alpha(t) * loss + (1 - recipe.alpha(t)) * cosine for t, (loss, cosine) in payments(26)]
    expected = (1 - beta) ** 25 * rewards[0] + beta * sum((1 - beta) ** (25 - i) * rewards[i] for i in range(1, 26))
    assert value_of(bandit, 0, 26) == pytest.approx(expected, rel=1e-12)


def test_loss_and_cosine_averaged_apart_are_mixed_by_the_turn_that_decides() -> None:
    recipe = BanditRecipe(smoothing=0.3, first_estimate="probe")
    bandit = bandit_of(Ucb(recipe), 1)
    play(bandit, range(26), noise_of)
    seen = [payment for _, payment in payments(26)]
    loss, cosine = (
        0.7**25 * s[0] + 0.3 * sum(0.7 ** (25 - i) * s[i] for i in range(1, 26)) for s in zip(*seen, strict=True)
    )
    for turn in (26, 40, 4000):
        alpha = math.exp(-0.1 * (turn - 1))
        assert value_of(bandit, 0, turn) == pytest.approx(-alpha * loss + (1 - alpha) * cosine, rel=1e-12)


def test_our_averages_are_means_at_first_and_forget_later() -> None:
    bandit = bandit_of(Ucb(replace(COSINE, smoothing=0.25)), 1)
    seen = [0.8, 0.1, 0.5, -0.2]
    for turn, cosine in enumerate(seen):
        bandit.observe(turn, 0, 1.0, cosine)
    assert value_of(bandit, 0, 4) == pytest.approx(np.mean(seen))
    bandit.observe(4, 0, 1.0, 0.9)
    assert value_of(bandit, 0, 5) == pytest.approx(0.75 * np.mean(seen) + 0.25 * 0.9)


def payments(turns: int) -> list[tuple[int, tuple[float, float]]]:
    return [(turn, noise_of(turn, 0)) for turn in range(turns)]


def test_with_a_constant_alpha_both_memories_are_the_same_to_the_bit() -> None:
    """In halves and 64ths, which binary numbers hold exactly."""
    recipe = BanditRecipe(smoothing=0.5, first_estimate="probe", alpha_start=0.5, alpha_decay=0.0)
    apart, mixed = (bandit_of(Ucb(replace(recipe, memory=memory)), 5) for memory in ("separate", "mixed"))

    def pay(turn: int, arm: int) -> tuple[float, float]:
        loss, cosine = np.random.default_rng([turn, arm]).integers(0, 65, 2)
        return loss / 64, cosine / 64

    assert play(apart, range(31), pay) == play(mixed, range(31), pay)
    assert all(value_of(apart, arm, 31) == value_of(mixed, arm, 31) for arm in range(5))


def test_the_published_run_is_reproduced_from_its_recursion() -> None:
    """R_0 = 0.9 (cos - loss) / 2, then R_t = 0.1 R_(t-1) + 0.9 [(1-a_t) cos - a_t loss] for every arm in every turn."""
    bandit, expected = bandit_of(Ucb(READINGS["log"]), 4), np.zeros(4)
    assert bandit.probes(0) == (0, 1, 2, 3)
    for turn in range(8):
        assert bandit.probes(turn) == (() if turn == 1 else (0, 1, 2, 3))  # nothing has changed before turn 1
        for arm in bandit.probes(turn):
            loss, cosine = noise_of(turn, arm)
            alpha = math.exp(-0.1 * (turn - 1)) if turn else 0.5
            expected[arm] = 0.1 * expected[arm] + 0.9 * ((1 - alpha) * cosine - alpha * loss)
            bandit.observe(turn, arm, loss, cosine)
        if turn:
            n = np.array([arm.n for arm in bandit.arms])
            bound = expected + 0.1 * np.sqrt(2 * np.log(turn + 4) / n)
            assert bandit.pick(turn) == int(bound.argmax())
            assert bandit.arms[int(bound.argmax())].score == pytest.approx(bound.max(), abs=1e-12)
            assert bandit.probes(turn) == ()


@pytest.mark.parametrize(("name", "beta", "start"), [("released", 0.9, 0.0), ("ucb1", 0.1, None)])
def test_the_released_code_and_flad_reward_the_cosine_alone(name: str, beta: float, start: float | None) -> None:
    calm, wild = (bandit_of(Ucb(READINGS[name]), 3) for _ in range(2))
    picks = play(calm, range(30), lambda turn, arm: (0.0, noise_of(turn, arm)[1]))
    assert picks == play(wild, range(30), lambda turn, arm: (50.0 * arm, noise_of(turn, arm)[1]))
    first = noise_of(0, 0)[1]
    expected = first if start is None else beta * first
    fresh = bandit_of(Ucb(READINGS[name]), 1)
    play(fresh, range(2), noise_of)
    assert value_of(fresh, 0, 2) == pytest.approx((1 - beta) * expected + beta * noise_of(1, 0)[1])


def test_a_higher_loss_never_helps_and_counts_at_most_two() -> None:
    def value(loss: float) -> float:
        bandit = bandit_of(Ucb(READINGS["default"]), 1)
        bandit.observe(0, 0, loss, 0.5)
        return value_of(bandit, 0, 5)

    values = [value(loss) for loss in (0.0, 0.5, 1.9, 2.0, 2.1, 1e9)]
    assert values[:4] == sorted(values[:4], reverse=True)
    assert len(set(values[:4])) == 4
    assert values[3] == values[4] == values[5]


# --- regret ---------------------------------------------------------------------------------------------------------


def regret(
    recipe: BanditRecipe, means: Sequence[float], turns: int, pay: Callable[[float, Any], float], runs: int
) -> float:
    """Mean over runs of what was lost against always playing the best arm."""
    lost = []
    for seed in range(runs):
        bandit, rng = bandit_of(Ucb(recipe), len(means)), np.random.default_rng(seed)
        picks = play(bandit, range(turns + 1), lambda turn, arm: (0.0, pay(means[arm], rng)))  # noqa: B023
        lost.append(sum(max(means) - means[arm] for arm in picks if arm is not None))
    return float(np.mean(lost))


def test_the_regret_of_two_coins_is_below_auers_bound() -> None:
    """Theorem 1 of Auer et al. 2002: 8 ln n / D + (1 + pi^2 / 3) D, here 112.7."""
    recipe = replace(COSINE, exploration=1.0, smoothing=0.0)  # plain means
    found = regret(recipe, [0.9, 0.4], 998, lambda mean, rng: float(rng.random() < mean), runs=30)
    assert found < 8 * math.log(1000) / 0.5 + (1 + math.pi**2 / 3) * 0.5
    assert found == pytest.approx(17.8, abs=2.5)


def test_exploring_as_published_is_drawing_lots_and_a_tenth_of_it_is_not() -> None:
    means = np.linspace(0.4, 0.9, 30).tolist()
    lots = 400 * (max(means) - np.mean(means))

    def share(recipe: BanditRecipe) -> float:
        return regret(recipe, means, 400, lambda mean, rng: mean + 0.1 * rng.standard_normal(), runs=5) / lots

    assert share(replace(READINGS["paper"], reward="cosine", clock="turn + arms")) == pytest.approx(0.83, abs=0.02)
    assert share(COSINE) < 0.2


def test_arms_seen_once_early_are_not_lost_for_ever() -> None:
    """Losses fall while training; with eq. 4 the arms that were not played keep the loss of the first look."""

    def gained(recipe: BanditRecipe) -> tuple[float, float]:
        """Mean cosine of the arms played as a share of the best, and how many arms were ever played, of 20."""
        shares, arms = [], []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            losses, cosines = rng.uniform(0.5, 1.5, 20), rng.uniform(0.1, 0.95, 20)

            def pay(turn: int, arm: int) -> tuple[float, float]:
                fallen = 0.3 + (losses[arm] - 0.3) * math.exp(-turn / 80)  # noqa: B023
                return tuple(np.array([fallen, cosines[arm]]) + rng.normal(0, [0.05, 0.1]))  # noqa: B023

            picks = play(bandit_of(Ucb(recipe), 20), range(401), pay)
            shares.append(np.mean([cosines[arm] for arm in picks]) / cosines.max())
            arms.append(len(set(picks)))
        return float(np.mean(shares)), float(np.mean(arms))

    ours, theirs = gained(READINGS["default"]), gained(replace(READINGS["paper"], exploration=0.1, clock="turn + arms"))
    assert ours[0] > 0.95
    assert theirs[0] < 0.8
    assert theirs[1] < 10


# --- EXP3 -----------------------------------------------------------------------------------------------------------


def test_exp3_draws_with_the_probabilities_of_flads_equations() -> None:
    """Worked out by hand: with 3 arms in turn 50 the floor is .08558, and the exponents are .51870, -.17290 and 0."""
    policy, arms = Exp3(), [Arm("a", reward=6.0), Arm("b", reward=-2.0), Arm("c")]
    assert policy.scores(arms, 1) == pytest.approx([1 / 3, 1 / 3, 1 / 3])  # the floor leaves no room yet
    assert policy.scores(arms, 50) == pytest.approx([0.44018, 0.26315, 0.29667], abs=2e-5)


def test_exp3_sums_rewards_over_the_probability_they_were_drawn_with() -> None:
    bandit = bandit_of(Exp3(), 4)
    assert bandit.probes(0) == ()
    sums, drawn = np.zeros(4), play(bandit, range(1, 41), noise_of)
    for row, arm in zip(bandit.history, drawn, strict=True):
        sums[arm] += row["cosine"] / row["score"]
    assert [arm.reward or 0.0 for arm in bandit.arms] == pytest.approx(sums.tolist())


def test_exp3_finds_the_best_arm_and_bears_any_sum() -> None:
    bandit = bandit_of(Exp3(), 5)
    picks = play(bandit, range(1, 2001), lambda turn, arm: (1.0, [0.0, 0.1, 0.9, 0.2, 0.0][arm]))
    assert picks[1000:].count(2) > 600
    scores = Exp3().scores([Arm("a", reward=1e9), Arm("b", reward=-1e9)], 5000)
    assert scores == pytest.approx([1.0, 0.0], abs=0.01)
    assert Exp3().scores([Arm("only")], 7) == [1.0]


def test_lots_are_drawn_evenly() -> None:
    picks = play(bandit_of(Uniform(), 4), range(1, 2001), noise_of)
    assert all(440 < picks.count(arm) < 560 for arm in range(4))


# --- choosing -------------------------------------------------------------------------------------------------------


def test_of_equal_arms_the_first_is_played_or_one_by_lot() -> None:
    def picks(tie_break: str, seed: int) -> list[int | None]:
        return [first_pick(replace(COSINE, tie_break=tie_break), seed * 100 + number) for number in range(20)]

    def first_pick(recipe: BanditRecipe, seed: int) -> int | None:
        bandit = bandit_of(Ucb(recipe), 3, seed)
        for arm, cosine in enumerate([0.5, 0.7, 0.7]):
            bandit.observe(0, arm, 0.0, cosine)
        return bandit.pick(1)

    assert set(picks("first", 0)) == {1}
    assert set(picks("random", 0)) == {1, 2}
    assert picks("random", 1) == picks("random", 1)


def test_a_turn_has_one_choice_however_often_it_is_asked_for() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 3)
    play(bandit, range(4), noise_of)
    first = bandit.pick(4)
    assert [bandit.pick(4) for _ in range(5)] == [first] * 5
    assert sum(arm.n for arm in bandit.arms) == 3 + 4
    with pytest.raises(ValueError, match="count from 1"):
        bandit.pick(0)


@pytest.mark.parametrize("name", POLICIES)
def test_one_arm_is_always_played(name: str) -> None:
    assert play(bandit_of(POLICIES[name](), 1), range(20), noise_of) == [0] * 19


@pytest.mark.parametrize("count", [2, 30])
def test_a_turn_measures_one_arm_however_many_there_are(count: int) -> None:
    bandit, measured = bandit_of(Ucb(READINGS["default"]), count), []
    play(bandit, range(1), noise_of)
    for turn in range(1, 11):
        assert bandit.probes(turn) == ()
        arm = bandit.pick(turn)
        assert bandit.probes(turn) == (arm,)
        bandit.observe(turn, arm or 0, *noise_of(turn, arm or 0))
        assert bandit.probes(turn) == ()
        measured.append(arm)
    assert len(measured) == 10


def test_the_history_says_what_was_played_why_and_what_it_paid() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 2)
    picks = play(bandit, range(4), noise_of)
    looks, turns = bandit.history[:2], bandit.history[2:]
    assert [(row["turn"], row["arm"], row["score"]) for row in looks] == [(0, 0, None), (0, 1, None)]
    assert [(row["turn"], row["arm"]) for row in turns] == [(1, picks[0]), (2, picks[1]), (3, picks[2])]
    for row in bandit.history:
        assert (row["loss"], row["cosine"]) == pytest.approx(noise_of(row["turn"], row["arm"]))
        assert row["name"] == f"arm {row['arm']}"
    assert turns[-1]["n"] == bandit.arms[picks[2] or 0].n


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_an_arm_whose_loss_is_no_number_is_played_no_more(loss: float, caplog: pytest.LogCaptureFixture) -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 3)
    play(bandit, range(1), noise_of)
    first = bandit.pick(1)
    assert first is not None
    with caplog.at_level(logging.WARNING):
        bandit.observe(1, first, loss, 0.5)
    assert f'"arm {first}" is left out from now on' in caplog.text
    assert bandit.arms[first].quarantined
    assert first not in play(bandit, range(2, 60), noise_of)
    json.dumps(bandit.state(), allow_nan=False)


def test_without_any_arm_left_nothing_is_played() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 2)
    play(bandit, range(3), noise_of)
    for arm in range(2):
        bandit.quarantine(arm, "file lost")
    assert (bandit.live, bandit.pick(3), bandit.probes(3)) == ((), None, ())
    assert bandit_of(Exp3(), 0).pick(1) is None


def test_a_turn_whose_arm_fails_has_another_one() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 3)
    play(bandit, range(1), noise_of)
    first = bandit.pick(1)
    assert first is not None
    bandit.quarantine(first, "file lost")
    assert bandit.pick(1) not in (first, None)


def test_a_gradient_that_overflowed_changes_no_average() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 1)
    bandit.observe(0, 0, 1.0, math.nan)
    assert (bandit.arms[0].loss, bandit.arms[0].cosine) == (1.0, 0.0)  # the best guess there is
    bandit.observe(1, 0, 0.5, 0.8)
    before = (bandit.arms[0].loss, bandit.arms[0].cosine)
    bandit.observe(2, 0, 0.1, math.nan)
    assert (bandit.arms[0].loss, bandit.arms[0].cosine) == before
    assert not bandit.arms[0].quarantined


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("inside_a_turn", [False, True])
def test_a_resumed_run_makes_the_same_next_50_choices(name: str, inside_a_turn: bool) -> None:
    going_on = bandit_of(POLICIES[name](), 6, seed=3)
    play(going_on, range(31), noise_of)
    if inside_a_turn:
        going_on.pick(31)
    saved = json.dumps(going_on.state(), allow_nan=False)
    resumed = bandit_of(POLICIES[name](), 6, seed=99)
    resumed.load_state(json.loads(saved))
    assert json.dumps(resumed.state()) == saved
    assert play(resumed, range(31, 81), noise_of) == play(going_on, range(31, 81), noise_of)
    assert resumed.history == going_on.history


def opposed_from(turn: int, arms: set[int]) -> Payment:
    """Arms whose gradients oppose the target's from a turn on."""
    return lambda now, arm: (0.5, -0.3 if now >= turn and arm in arms else 0.4)


def test_an_arm_that_opposes_the_target_is_left_out_and_without_others_none_is_pulled() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 3)
    assert play(bandit, range(20), opposed_from(0, {1, 2})) == [0] * 19  # first they were looked at
    assert None not in play(bandit, range(20, 30), opposed_from(20, {0}))  # one observation is not enough
    picks = play(bandit, range(30, 100), opposed_from(20, {0, 1, 2}))
    assert None in picks
    assert picks.count(None) > 0.8 * len(picks)


def test_the_paper_pulls_the_least_bad_arm() -> None:
    bandit = bandit_of(Ucb(READINGS["paper"]), 3)
    assert None not in play(bandit, range(50), opposed_from(0, {0, 1, 2}))


def test_the_best_arm_is_that_of_the_highest_mean_cosine_among_those_left() -> None:
    bandit = bandit_of(Ucb(READINGS["default"]), 4)
    for arm, cosine in enumerate((0.1, 0.6, 0.9, -0.2)):
        bandit.observe(0, arm, 1.0, cosine)
    for arm, reason in ((2, "file lost"), (1, "also"), (0, "that, too")):
        assert bandit.best() == arm
        bandit.quarantine(arm, reason)
    assert bandit.best() == 3  # the least bad one, since signs say little before the target was trained on
    assert bandit_of(Ucb(READINGS["default"]), 2).best() is None  # nothing is known


def test_a_quarantine_outlives_a_restart() -> None:
    bandit = bandit_of(Uniform(), 2)
    bandit.quarantine(0, "file lost")
    resumed = bandit_of(Uniform(), 2)
    resumed.load_state(bandit.state())
    assert resumed.arms[0].quarantined == "file lost"
    assert set(play(resumed, range(1, 20), noise_of)) == {1}


def test_the_state_of_other_arms_is_refused() -> None:
    with pytest.raises(InputError, match=r'between "arm 0", now there are "arm 0", "arm 1"; use the same'):
        bandit_of(Uniform(), 2).load_state(bandit_of(Uniform(), 1).state())


def test_only_a_generator_whose_state_is_json_is_saved() -> None:
    bandit = Bandit(["a"], Uniform(), np.random.Generator(np.random.MT19937(0)))
    with pytest.raises(ValueError, match="MT19937"):
        bandit.state()


# --- the recipe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READINGS)
def test_presets_survive_json(name: str) -> None:
    assert from_dict(BanditRecipe, json.loads(json.dumps(to_dict(READINGS[name])))) == READINGS[name]


@pytest.mark.parametrize("wrong", [{"exploration": -1}, {"smoothing": 1.5}, {"memory": "both"}, {"clock": "t"}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        BanditRecipe(**wrong)
