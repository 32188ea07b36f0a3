"""Pseudo-labels that change from round to round are left out; the others are put to the vote."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.uda.pseudo_labels import (
    PseudoLabelRecipe,
    Uncertainty,
    ensemble,
    filter_cases,
    split_domains,
    uncertainty,
)


def labels(counts, size=400, dtype=np.uint8):
    """An array (1, 1, size) that starts with so many voxels of each label."""
    flat = np.zeros(size, dtype)
    at = 0
    for value, count in counts:
        flat[at : at + count] = value
        at += count
    return flat.reshape(1, 1, size)


def case(u, **options):
    return Uncertainty(u, options.pop("by_structure", {1: u}), **options)


NOTHING = labels([])


def test_a_growing_structure_is_as_uncertain_as_equation_7_says():
    grown = labels([(1, 110)])
    assert uncertainty([labels([(1, 100)]), grown, grown]).overall == pytest.approx(0.0454545, abs=1e-7)


def test_exchanged_structures_count_in_full():
    found = uncertainty([labels([(1, 50), (2, 50)]), labels([(2, 50), (1, 50)])])
    assert found.overall == 1.0
    assert found.by_structure == {1: 2.0, 2: 2.0}  # each is lost where it was, and new where it is


def test_the_later_round_is_the_measure_so_the_order_matters():
    small, large = labels([(1, 50)]), labels([(1, 100)])
    assert uncertainty([small, large]).overall == 0.5
    assert uncertainty([large, small]).overall == 1.0
    assert uncertainty([small, large, small]).overall == 0.75
    assert uncertainty([small, small, large]).overall == 0.25


def test_rounds_that_agree_are_certain():
    same = labels([(1, 20), (3, 5)])
    assert uncertainty([same] * 4) == Uncertainty(0.0, {1: 0.0, 3: 0.0})


def test_the_structures_are_judged_one_by_one():
    found = uncertainty([labels([(1, 100), (2, 10)]), labels([(1, 100), (2, 20)])], structures=(1, 2, 7))
    assert found.by_structure == {1: 0.0, 2: 0.5, 7: 0.0}
    assert found.overall == 10 / 120
    assert found.worst == 0.5


def test_integer_types_may_differ_between_rounds():
    found = uncertainty([labels([(300, 10)], dtype=np.uint16), labels([(44, 10)])])  # 300 is 44 in eight bits
    assert found.overall == 1.0


def test_empty_rounds_are_defined():
    some = labels([(1, 10)])
    assert uncertainty([NOTHING, NOTHING]) == Uncertainty(0.0, {}, empty=True)
    assert uncertainty([some, NOTHING]).overall == math.inf
    assert uncertainty([NOTHING, some]).overall == 1.0
    assert uncertainty([NOTHING, NOTHING, some]).overall == 0.5
    assert not uncertainty([some, NOTHING, NOTHING]).empty


def test_one_round_says_nothing():
    with pytest.raises(InputError, match="at least 2 rounds, got 1"):
        uncertainty([NOTHING])


def test_a_round_without_labels_makes_the_case_unusable_and_no_error():
    found = uncertainty([NOTHING, None, NOTHING])
    verdict = filter_cases({"a": found}, PseudoLabelRecipe())[0]
    assert (verdict.kept, verdict.reason, verdict.rank) == (False, "round 2 of 3 gave no labels", 0)


def test_rounds_of_different_shape_or_type_are_refused():
    with pytest.raises(InputError, match="one shape"):
        uncertainty([labels([], 4), labels([], 5)])
    with pytest.raises(InputError, match="must be integers, got float64"):
        uncertainty([np.zeros((1, 1, 4)), np.zeros((1, 1, 4))])


def test_the_published_share_drops_76_of_2000():
    cases = {f"case_{number:04}": case(number / 1000) for number in range(2000)}
    verdicts = filter_cases(cases, PseudoLabelRecipe())
    assert [verdict.name for verdict in verdicts[:2]] == ["case_1999", "case_1998"]
    assert [verdict.kept for verdict in verdicts] == [False] * 76 + [True] * 1924
    assert verdicts[0].reason == "number 1 of 2000 in uncertainty, 76 are left out"


def test_of_few_cases_all_may_stay():
    cases = {name: case(u) for name, u in zip("abcdefg", (0.9, 0.1, 0.5, 0.2, 0.3, 0.4, 0.6), strict=True)}
    assert all(verdict.kept for verdict in filter_cases(cases, PseudoLabelRecipe()))
    dropped = [v.name for v in filter_cases(cases, PseudoLabelRecipe(drop_fraction=0.3)) if not v.kept]
    assert dropped == ["a", "g"]


def test_a_limit_takes_the_place_of_the_share():
    cases = {name: case(u) for name, u in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True)}
    verdicts = filter_cases(cases, PseudoLabelRecipe(drop_fraction=1.0, uncertainty_limit=0.3))
    assert {verdict.name: verdict.kept for verdict in verdicts} == {"a": True, "b": True, "c": True, "d": False}
    assert verdicts[0].reason == "uncertainty 0.4 is above the limit of 0.3"


def test_cases_that_are_equally_uncertain_are_ordered_by_name():
    cases = {name: case(0.2) for name in ("b", "c", "a")}
    verdicts = filter_cases(cases, PseudoLabelRecipe(drop_fraction=0.34))
    assert [(verdict.name, verdict.kept) for verdict in verdicts] == [("a", False), ("b", True), ("c", True)]


def test_empty_and_lost_cases_are_dropped_whatever_the_share():
    cases = {"empty": case(0.0, empty=True, by_structure={}), "lost": case(math.inf), "good": case(0.1)}
    kept = {v.name: v.reason for v in filter_cases(cases, PseudoLabelRecipe(drop_fraction=0.0))}
    assert kept == {
        "lost": "a round found nothing where the one before had found something",
        "good": "",
        "empty": "no round found anything",
    }
    verdicts = filter_cases(cases, PseudoLabelRecipe(drop_fraction=0.0, keep_empty=True))
    assert [verdict.name for verdict in verdicts if verdict.kept] == ["good", "empty"]


def test_cases_can_be_ranked_by_their_worst_structure():
    cases = {"even": case(0.3, by_structure={1: 0.3, 2: 0.3}), "uneven": case(0.1, by_structure={1: 0.0, 2: 0.9})}
    for rank_by, first in (("all", "even"), ("worst structure", "uneven")):
        assert filter_cases(cases, PseudoLabelRecipe(rank_by=rank_by))[0].name == first


def test_reasons_are_plain_json():
    verdicts = filter_cases({"lost": case(math.inf), "good": case(0.1)}, PseudoLabelRecipe())
    rows = json.loads(json.dumps([verdict.to_dict() for verdict in verdicts], allow_nan=False))
    assert rows[0]["uncertainty"] is None
    assert rows[1] == {
        "name": "good",
        "kept": True,
        "reason": "",
        "rank": 2,
        "uncertainty": 0.1,
        "by_structure": {"1": 0.1},
        "empty": False,
    }


def test_a_recipe_without_sense_is_refused():
    with pytest.raises(InputError, match="drop_fraction"):
        PseudoLabelRecipe(drop_fraction=1.1)
    with pytest.raises(InputError, match="vote"):
        PseudoLabelRecipe(vote="intersection")


# --------------------------------------------------------------------------------------------------------------- voting

TRIPLES = list(itertools.product((0, 1, 2), repeat=3))
# By hand, in the order of TRIPLES: oldest round first.
UNION = [0, 1, 2, 1, 1, 2, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2, 1, 2, 2, 1, 2, 1, 1, 2, 2, 2, 2]
MAJORITY = [0, 0, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 1, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 2, 2]


def by_the_rule(triple, vote):
    given = [value for value in triple if value or vote == "majority"]
    counts = Counter(given)
    tied = {value for value, count in counts.items() if count == max(counts.values())}
    return next((value for value in reversed(triple) if value in tied), 0)


@pytest.mark.parametrize(("vote", "expected"), [("union", UNION), ("majority", MAJORITY)])
def test_every_triple_of_labels_has_one_answer(vote, expected):
    rounds = [np.array([[column]], dtype=np.uint8) for column in zip(*TRIPLES, strict=True)]
    assert ensemble(rounds, vote).ravel().tolist() == expected
    assert [by_the_rule(triple, vote) for triple in TRIPLES] == expected


def test_three_structures_in_three_rounds_go_to_the_latest():
    rounds = [np.full((1, 1, 1), value, np.uint16) for value in (7, 300, 9)]
    assert ensemble(rounds).tolist() == [[[9]]]
    assert ensemble(rounds[:2]).tolist() == [[[300]]]
    assert ensemble(rounds).dtype == np.uint16


def test_two_rounds_are_united_and_the_majority_of_two_is_the_later():
    first, second = np.array([[[1, 1, 0, 0]]]), np.array([[[2, 0, 2, 0]]])
    assert ensemble([first, second]).tolist() == [[[2, 1, 2, 0]]]
    assert ensemble([first, second], "majority").tolist() == second.tolist()


def test_a_vote_without_rounds_or_of_another_kind_is_refused():
    with pytest.raises(InputError, match="at least one round"):
        ensemble([])
    with pytest.raises(InputError, match="union, majority"):
        ensemble([NOTHING], "mean")


# -------------------------------------------------------------------------------------------------------------- domains


def test_the_domain_with_the_surest_labels_lends():
    cases = {"a": case(0.1), "b": case(0.3), "c": case(0.5), "d": case(0.05)}
    split = split_domains(cases, {"a": "T1", "b": "T1", "c": "T2", "d": "T2"})
    assert (split.better, split.worse) == (("a", "b"), ("c", "d"))
    assert split.mean == pytest.approx({"T1": 0.2, "T2": 0.275})
    assert split.rule == "domain T1 has the lowest mean uncertainty, 0.2"


@pytest.mark.parametrize("domains", [None, dict.fromkeys("abcd", "T2")])
def test_without_domains_the_mean_uncertainty_divides(domains):
    split = split_domains({"a": case(0.1), "b": case(0.3), "c": case(0.5), "d": case(0.1)}, domains)
    assert (split.better, split.worse) == (("a", "d"), ("b", "c"))  # the mean is 0.25


def test_cases_that_are_equally_sure_all_lend():
    split = split_domains({name: case(0.1) for name in "abc"})
    assert (split.better, split.worse) == (("a", "b", "c"), ())


def test_cases_without_a_usable_label_borrow_and_count_in_no_mean():
    cases = {
        "empty": case(0.0, empty=True),
        "lost": case(math.inf),
        "late": case(math.inf, missing="no labels in round 1"),
        "a": case(0.1),
        "b": case(0.2),
    }
    split = split_domains(cases)
    assert (split.better, split.worse) == (("a",), ("b", "empty", "late", "lost"))
    assert split.mean == pytest.approx({"all": 0.15})
    nobody = split_domains({"empty": cases["empty"]}, {"empty": "T1"})
    assert (nobody.better, nobody.worse) == ((), ("empty",))


def test_a_case_without_a_domain_is_named():
    with pytest.raises(InputError, match='"b" has no domain'):
        split_domains({"a": case(0.1), "b": case(0.1)}, {"a": "T1"})
