"""Filtering pseudo-labels by their stability from one teacher to the next.

Eq. 7 of Zhu et al. (FLARE 2024), which is the filter of Huang et al. (FLARE 2022, "Revisiting nnU-Net for iterative
pseudo labeling and efficient sliding window inference"): the labels from K successive teachers for a case are each
compared with the previous ones. Those published results dropped 76 of 2000 cases, the most uncertain, without
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.recipe import check, option
from FewShotSegLib.data.volume import label_values
from FewShotSegLib.errors import InputError

Labels = NDArray[Any]


@dataclass(frozen=True)
class PseudoLabelRecipe:
    """Which cases are kept, and how the rounds of a case are merged into one labelmap."""

    drop_fraction: float = option(
        0.038, "Fraction of cases to leave out, the most uncertain ones (FLARE22: 76 of 2000)", min=0.0, max=1.0
    )
    uncertainty_limit: float | None = option(
        None, "Leave out cases above this uncertainty instead of a fraction; none: use the fraction", min=0.0
    )
    rank_by: str = option(
        "all",
        "Uncertainty of all structures together (eq. 7), or of the worst one",
        choices=("all", "worst structure"),
        advanced=True,
    )
    # The paper's union keeps everything found in any round, false positives too; conflicts are unspecified.
    vote: str = option(
        "union", "Foreground is what any round found, or what most rounds found", choices=("union", "majority")
    )
    keep_empty: bool = option(False, "Keep cases in which no round found anything", advanced=True)

    def __post_init__(self) -> None:
        check(self)


# ---------------------------------------------------------------------------------------------------------- uncertainty


@dataclass(frozen=True)
class Uncertainty:
    """How much the labels of one case changed: 0 not at all, 1 as many voxels as are labelled; unbounded above.

    `by_structure` is the same for each label separately. `empty`: no round found anything. `overall` is infinite if a
    round found something and the next one nothing. `missing` is the reason why there is no value.
    """

    overall: float
    by_structure: Mapping[int, float]
    empty: bool = False
    missing: str = ""

    @property
    def worst(self) -> float:
        """The largest of the structures' uncertainties; `overall` if there are none."""
        return max(self.by_structure.values(), default=self.overall)


def uncertainty(rounds: Sequence[Labels | None], structures: Sequence[int] | None = None) -> Uncertainty:
    """Return eq. 7 for the labels (K, J, I) of one case from two or more rounds, oldest first.

    u = mean over i = 2..K of #(y_i != y_(i-1)) / #(y_i > 0), so swapped structures count as much as lost foreground,
    normalization is by the later round, and the order matters. Two consecutive empty rounds differ by 0. A round that
    is None makes the case unusable, not an error. `structures`: the labels to list (default: all that occur).

    >>> first, second = np.array([[[1, 1, 0, 0]]]), np.array([[[1, 1, 1, 1]]])
    >>> uncertainty([first, second]).overall, uncertainty([second, first]).overall
    (0.5, 1.0)
    """
    if len(rounds) < 2:
        raise InputError(f"The filter of pseudo-labels compares at least 2 rounds, got {len(rounds)}; train another.")
    lost = [number for number, labels in enumerate(rounds, start=1) if labels is None]
    if lost:
        return Uncertainty(math.inf, {}, missing=f"round {lost[0]} of {len(rounds)} gave no labels")
    arrays = _same_shape([np.asarray(labels) for labels in rounds])
    if structures is None:
        structures = sorted({value for labels in arrays for value in label_values(labels)})
    overall = _mean_change([(y != before, y > 0) for before, y in pairwise(arrays)])
    each = {
        int(value): _mean_change([((y == value) != (before == value), y == value) for before, y in pairwise(arrays)])
        for value in structures
    }
    return Uncertainty(overall, each, empty=not any(labels.any() for labels in arrays))


def _mean_change(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float:
    """Mean of (voxels that changed) / (voxels found) over pairs of masks."""
    return float(np.mean([_share(int(np.count_nonzero(c)), int(np.count_nonzero(f))) for c, f in pairs]))


def _share(changed: int, found: int) -> float:
    if found:
        return changed / found
    return math.inf if changed else 0.0


# --------------------------------------------------------------------------------------------------------------- filter


@dataclass(frozen=True)
class Verdict:
    """Whether a case is kept, and why not; `rank` 1 is the most uncertain, 0 if not ranked."""

    name: str
    kept: bool
    reason: str
    rank: int
    uncertainty: Uncertainty

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; an infinite uncertainty becomes None, since JSON has no infinity."""
        found = self.uncertainty
        return {
            "name": self.name,
            "kept": self.kept,
            "reason": self.reason,
            "rank": self.rank,
            "uncertainty": _finite(found.overall),
            "by_structure": {str(value): _finite(number) for value, number in found.by_structure.items()},
            "empty": found.empty,
        }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def filter_cases(cases: Mapping[str, Uncertainty], recipe: PseudoLabelRecipe) -> list[Verdict]:
    """Return a verdict for each case, the most uncertain first, followed by unranked cases.

    A case is dropped if a round is missing, if it is empty, if a later round lost all that the previous one had found
    (these three regardless of the recipe's numbers), and if it is among the `drop_fraction` of the ranked cases or
    above the limit. The number to drop is rounded to the nearest integer, so that with few cases all may be kept. Ties
    are ordered by name.
    """
    ranked = [name for name, found in cases.items() if not found.missing]
    ranked.sort(key=lambda name: (-_score(cases[name], recipe), name))
    count = 0 if recipe.uncertainty_limit is not None else math.floor(recipe.drop_fraction * len(ranked) + 0.5)
    verdicts = []
    for rank, name in enumerate(ranked, start=1):
        reason = _reason(cases[name], recipe)
        if not reason and rank <= count:
            reason = f"number {rank} of {len(ranked)} in uncertainty, {count} are left out"
        verdicts.append(Verdict(name, not reason, reason, rank, cases[name]))
    unranked = [name for name in sorted(cases) if cases[name].missing]
    return verdicts + [Verdict(name, False, cases[name].missing, 0, cases[name]) for name in unranked]


def _score(found: Uncertainty, recipe: PseudoLabelRecipe) -> float:
    return found.worst if recipe.rank_by == "worst structure" else found.overall


def _reason(found: Uncertainty, recipe: PseudoLabelRecipe) -> str:
    """Why this case is dropped regardless of its rank, or ""."""
    if found.empty:
        return "" if recipe.keep_empty else "no round found anything"
    score, limit = _score(found, recipe), recipe.uncertainty_limit
    if math.isinf(score):
        return "a round found nothing where the one before had found something"
    return f"uncertainty {score:.4g} is above the limit of {limit:g}" if limit is not None and score > limit else ""


# --------------------------------------------------------------------------------------------------------------- voting


def ensemble(rounds: Sequence[Labels], vote: str = "union") -> Labels:
    """Merge the labelmaps (K, J, I) of all rounds, oldest first, into one, with the dtype of the last.

    `union`: foreground is what any round labels as foreground, with the structure that most rounds assign. `majority`:
    the label that most rounds assign, background included. Ties go to the latest round among the tied labels.

    >>> ensemble([np.array([[[1, 1, 0]]]), np.array([[[2, 1, 0]]]), np.array([[[0, 2, 2]]])]).tolist()
    [[[2, 1, 2]]]
    """
    if vote not in ("union", "majority"):
        raise InputError(f'The vote must be one of union, majority, got "{vote}".')
    if not rounds:
        raise InputError("A vote needs the labels of at least one round, got none.")
    arrays = _same_shape([np.asarray(labels) for labels in rounds])
    candidates = sorted({value for labels in arrays for value in label_values(labels)})
    result = np.zeros_like(arrays[-1])
    best = np.zeros(result.shape, dtype=np.uint32)
    for value in [0, *candidates] if vote == "majority" else candidates:
        score = _votes(arrays, value)
        wins = score > best
        result[wins], best[wins] = value, score[wins]
    return result


def _votes(arrays: Sequence[Labels], value: int) -> NDArray[np.uint32]:
    """Number of rounds that assigned the label, with the latest of them as tie-breaking digit."""
    count, latest = np.zeros((2, *arrays[0].shape), dtype=np.uint32)
    for number, labels in enumerate(arrays, start=1):
        given = labels == value
        count[given] += 1
        latest[given] = number
    return count * np.uint32(len(arrays) + 1) + latest


def _same_shape(arrays: Sequence[Labels]) -> Sequence[Labels]:
    for labels in arrays:
        if labels.ndim != 3 or labels.shape != arrays[0].shape:
            shapes = ", ".join(str(other.shape) for other in arrays)
            raise InputError(f"The rounds of a case must be labels (K, J, I) of one shape, got {shapes}.")
        if labels.dtype.kind not in "ui":
            raise InputError(f"The labels of a round must be integers, got {labels.dtype}.")
    return arrays


# -------------------------------------------------------------------------------------------------------------- domains


@dataclass(frozen=True)
class DomainSplit:
    """Lenders of pseudo-labels, and cases that should borrow (D_t1 and D_t2 of section 2.2).

    `mean` has the mean uncertainty of each domain; `rule` describes the criterion.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    mean: Mapping[str, float]
    rule: str


def split_domains(cases: Mapping[str, Uncertainty], domains: Mapping[str, str] | None = None) -> DomainSplit:
    """Split the cases, sorted by name, into lenders and borrowers.

    With `domains` {case: domain, such as its MR sequence}, the domain with the lowest mean uncertainty lends. Without,
    or with a single one, the cases up to the mean uncertainty lend. Cases that are empty, lack a round, or lost
    everything from one round to the next always borrow and are excluded from the means.
    """
    sound = {name: case.overall for name, case in sorted(cases.items()) if _is_sound(case)}
    if domains is not None:
        unknown = sorted(set(cases) - set(domains))
        if unknown:
            raise InputError(f'The case "{unknown[0]}" has no domain; give one to every case or to none.')
    of = domains if domains is not None and len({domains[name] for name in cases}) > 1 else dict.fromkeys(cases, "all")
    means = {
        domain: float(np.mean([sound[name] for name in sound if of[name] == domain]))
        for domain in sorted({of[name] for name in sound})
    }
    better: list[str]
    if len(set(of.values())) > 1 and means:
        best = min(means, key=lambda domain: (means[domain], domain))
        better = [name for name in sound if of[name] == best]
        rule = f"domain {best} has the lowest mean uncertainty, {means[best]:.4g}"
    else:
        mean = means.get("all", 0.0)
        # Rounding must not put equal cases above their own mean.
        better = [name for name in sound if sound[name] <= mean * (1 + 1e-9)]
        rule = f"uncertainty up to the mean, {mean:.4g}"
    return DomainSplit(tuple(better), tuple(sorted(set(cases) - set(better))), means, rule)


def _is_sound(case: Uncertainty) -> bool:
    return not case.empty and not case.missing and math.isfinite(case.overall)
