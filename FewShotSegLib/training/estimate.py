"""Honest performance estimates of an adapter from few exemplars, and a check for degradation against its base model.

Dice on the training slices says nothing about the next patient, so it is never reported as accuracy. With two or more
exemplars, each is held out in turn; with one, only other slices of the same patient can be held out, and the estimate
says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec, looks_like_hounsfield
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.imaging.slices import LabelledSlice, labelled_slices
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.lora.heads import target_of
from FewShotSegLib.sam.clicks import FIRST_PROMPT, centre_click, random_click
from FewShotSegLib.sam.network import PADDING, POSITIVE, Embedding, PromptableNetwork, PromptBatch

Fold = tuple[list[Exemplar], Exemplar]

WORSE_BY = 0.05  # drop in Dice against the base model, on the exemplars themselves, that triggers a warning
SAME_MASK = 0.8  # IoU of masks for clicks on different objects above which clicks count as ignored
MOST_SLICES = 12


def leave_out(exemplars: Sequence[Exemplar], most: int) -> list[Fold]:
    """Pairs of (training exemplars, test exemplar), at most `most`; empty if nothing can be held out."""
    if most < 1:
        return []
    if len(exemplars) > 1:
        chosen = np.linspace(0, len(exemplars) - 1, min(most, len(exemplars))).round().astype(int)
        return [([*exemplars[:i], *exemplars[i + 1 :]], exemplars[i]) for i in chosen]
    only = exemplars[0]
    slices = only.annotated_slices
    if len(slices) < 2:
        return []
    # Neighbouring slices are similar: holding out blocks is less optimistic than holding out every other slice.
    blocks = np.array_split(np.array(slices), min(max(most, 2), len(slices)))[:most]
    return [([_with_slices(only, set(slices) - set(b.tolist()))], _one(only, set(b.tolist()))) for b in blocks]


def estimated(
    folds: Sequence[Fold], scores: Sequence[Mapping[int, float]], structures: Mapping[int, str]
) -> tuple[dict[str, float] | None, str]:
    """Mean Dice per structure over the folds that trained on it, None if there are none, and how it was made.

    A structure of one exemplar only, or of the slices of one fold only, is absent from the training part of the fold
    that tests it; its Dice there says nothing about the adapter.
    """
    counted: dict[int, list[float]] = {value: [] for value in structures}
    for (kept, _), found in zip(folds, scores, strict=True):
        for value in trained_on(kept) & set(found) & set(counted):
            counted[value].append(found[value])
    means = {structures[value]: float(np.mean(values)) for value, values in counted.items() if values}
    missing = [structures[value] for value, values in counted.items() if not values]
    if not missing:
        return means, described(folds)
    names = ", ".join(missing)
    several = len({id(exemplar.volume) for exemplar in (*folds[0][0], folds[0][1])}) > 1
    without = f"not estimable for {names}: annotated {'in too few exemplars' if several else 'on too few slices'}"
    return (means, f"{described(folds)}; {without}") if means else (None, without)


def trained_on(exemplars: Sequence[Exemplar]) -> set[int]:
    """Values of the structures that the annotated slices of some exemplars show."""
    return set().union(*(exemplar.annotated_structures() for exemplar in exemplars))


def described(folds: Sequence[Fold]) -> str:
    """Description of how an estimate was made, for the adapter's card."""
    kept, held_out = folds[0]
    how = f"({len(folds)} folds), shorter training than the adapter itself"
    # Names repeat: every folder has its image.nrrd. And one volume may occur twice, with different structures.
    if any(_is_same(exemplar.volume, held_out.volume) for exemplar in kept):
        return f"left-out slices of the same patient {how}; optimistic for other patients"
    return f"left-out exemplars {how}"


Answer = Callable[[LabelledSlice], NDArray[np.bool_]]
"""A slice -> masks (K, h, w) of all structures, without clicks."""
ClickedAnswer = Callable[[LabelledSlice, PromptBatch, Sequence[int]], NDArray[np.bool_]]
"""A slice, N clicks and the label under each (-1: background) -> masks (N, h, w)."""


def held_out_dice(
    network: PromptableNetwork, adaptation: Adaptation, exemplar: Exemplar, intensity: IntensitySpec
) -> dict[int, float]:
    """Dice per structure, without clicks, over the annotated slices of a held-out exemplar."""
    structures = adaptation.structures
    coords = torch.zeros(len(structures), FIRST_PROMPT, 2, device=network.device)
    labels = torch.full((len(structures), FIRST_PROMPT), PADDING, device=network.device)

    def answer(piece: LabelledSlice) -> NDArray[np.bool_]:
        embedding = _encoded(network, piece, intensity)
        asked = adaptation.structure_prompts(network, embedding, PromptBatch(coords, labels), structures)
        return _answers(network, embedding, asked)

    with adaptation.applied(network), torch.inference_mode():
        return dice_of_slices(labelled_slices(exemplar, intensity, network.image_size), structures, answer)


def dice_of_slices(
    pieces: Sequence[LabelledSlice], structures: Sequence[int], answer: Answer, most: int = MOST_SLICES
) -> dict[int, float]:
    """Dice per structure pooled over up to `most` slices; omits structures in neither ground truth nor prediction."""
    overlap, total = np.zeros(len(structures)), np.zeros(len(structures))
    for piece in _spread(pieces, most):
        answers = answer(piece)
        truth = np.stack([_at(piece.labels == v, answers.shape[-1]) for v in structures])
        overlap += (answers & truth).sum((1, 2))
        total += answers.sum((1, 2)) + truth.sum((1, 2))
    return {v: float(2 * o / t) for v, o, t in zip(structures, overlap, total, strict=True) if t > 0}


def compare_with_base(
    network: PromptableNetwork,
    adapted: ClickedAnswer,
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    *,
    rng: np.random.Generator,
    most: int = MOST_SLICES,
) -> dict[str, Any]:
    """Compare base and adapted model on up to `most` of the exemplars' own slices, with centre and random clicks.

    Returns Dice of both, `click_sensitivity` (1 - IoU of the adapted model's masks for clicks on different objects),
    and `warnings`: sentences, none if all is well. These are checks for degradation, not estimates of accuracy.
    """
    pieces = [p for e in exemplars for p in labelled_slices(e, intensity, network.image_size) if p.labels.any()]
    pieces = _spread(pieces, most)
    asked = [_clicks(piece, rng) for piece in pieces]
    plain = clicked_answers(network, intensity)
    bases = [plain(p, *a) for p, a in zip(pieces, asked, strict=True)]
    answers = [adapted(p, *a) for p, a in zip(pieces, asked, strict=True)]
    truths = [
        np.stack([_at(p.labels == v, b.shape[-1]) for v in a[1]]) for p, a, b in zip(pieces, asked, bases, strict=True)
    ]
    base_dice = float(np.mean([_dice(b, t) for b, t in zip(bases, truths, strict=True)]))
    adapted_dice = float(np.mean([_dice(b, t) for b, t in zip(answers, truths, strict=True)]))
    sensitivity = float(np.mean([_sensitivity(found, a[1]) for found, a in zip(answers, asked, strict=True)]))
    verdict = {"base_dice": base_dice, "adapted_dice": adapted_dice, "click_sensitivity": sensitivity}
    return {**verdict, "warnings": _warnings(base_dice, adapted_dice, sensitivity)}


def clicked_answers(
    network: PromptableNetwork, intensity: IntensitySpec, adaptation: Adaptation | None = None
) -> ClickedAnswer:
    """Masks of a network for clicks alone, with or without an adaptation."""

    def answer(piece: LabelledSlice, prompts: PromptBatch, values: Sequence[int]) -> NDArray[np.bool_]:
        with adaptation.applied(network) if adaptation else contextlib.nullcontext():
            return _clicked(network, piece, intensity, prompts)

    return answer


def provenance(exemplar: Exemplar) -> dict[str, Any]:
    """Provenance of an adapter's training data; the digest covers image, labels and geometry."""
    parts = (exemplar.volume.array, exemplar.labelmap, exemplar.volume.affine)
    chosen = {} if exemplar.channel is None else {"channel": exemplar.channel}
    return {
        "name": exemplar.name,
        **chosen,
        "axis": exemplar.axis,
        "annotated_slices": list(exemplar.annotated_slices),
        "empty_slices": len(exemplar.empty_slices),
        "is_ct": looks_like_hounsfield(exemplar.volume.array),
        "sha256": "-".join(sha256_of_array(np.asarray(part))[:16] for part in parts),
    }


def _is_same(first: Volume, second: Volume) -> bool:
    return first is second or (first.same_geometry(second) and np.array_equal(first.array, second.array))


def _warnings(base_dice: float, adapted_dice: float, sensitivity: float) -> list[str]:
    warnings = []
    if adapted_dice < base_dice - WORSE_BY:
        warnings.append(
            f"With clicks the adapter is worse than the base model on its own exemplars (Dice {adapted_dice:.2f} "
            f"against {base_dice:.2f}); train with more exemplars or a lower learning rate."
        )
    if sensitivity < 1 - SAME_MASK:
        warnings.append(
            "The adapter returns nearly the same mask for clicks at different positions; "
            "train for fewer steps or with more click prompts."
        )
    return warnings


def _spread(pieces: Sequence[LabelledSlice], most: int) -> list[LabelledSlice]:
    """At most `most` of them, evenly spread."""
    keep = np.linspace(0, len(pieces) - 1, min(most, len(pieces))).round().astype(int)
    return [pieces[i] for i in keep]


def _with_slices(exemplar: Exemplar, slices: set[int]) -> Exemplar:
    return replace(exemplar, annotated_slices=tuple(sorted(slices)))


def _one(exemplar: Exemplar, slices: set[int]) -> Exemplar:
    return replace(exemplar, annotated_slices=tuple(sorted(slices)), empty_slices=())


def _clicks(piece: LabelledSlice, rng: np.random.Generator) -> tuple[PromptBatch, tuple[int, ...]]:
    """A centre click and a random click on every structure, and one click on the background (value -1)."""
    coords, values = [], []
    for value in (int(v) for v in np.unique(piece.labels) if v):
        mask = piece.labels == value
        coords += [centre_click(mask), random_click(mask, rng)]
        values += [value, value]
    outside = (piece.labels == 0) & (piece.image > 0.02)
    if outside.any():
        coords.append(random_click(outside, rng))
        values.append(-1)
    points = torch.zeros(len(coords), FIRST_PROMPT, 2)
    points[:, 0] = torch.tensor(coords, dtype=torch.float32)
    labels = torch.full((len(coords), FIRST_PROMPT), PADDING)
    labels[:, 0] = POSITIVE
    return PromptBatch(points, labels), tuple(values)


def _clicked(
    network: PromptableNetwork, piece: LabelledSlice, intensity: IntensitySpec, prompts: PromptBatch
) -> NDArray[np.bool_]:
    prompts = PromptBatch(prompts.coords.to(network.device), prompts.labels.to(network.device))
    with torch.inference_mode():
        return _answers(network, _encoded(network, piece, intensity), prompts)


def _encoded(network: PromptableNetwork, piece: LabelledSlice, intensity: IntensitySpec) -> Embedding:
    image = torch.from_numpy(piece.image)[None].to(network.device)
    return network.encode(network.normalize(image, intensity.scale))


def _answers(network: PromptableNetwork, embedding: Embedding, prompts: PromptBatch) -> NDArray[np.bool_]:
    logits, _ = target_of(*network.decode(embedding, prompts))
    return np.asarray((logits > 0).cpu().numpy())


def _at(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    stride = mask.shape[0] // side
    return np.asarray(mask.reshape(side, stride, side, stride).mean((1, 3)) >= 0.5)


def _dice(answers: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Mean over the clicks on structures; the background click, with its empty ground truth, is excluded."""
    asked = truth.any((1, 2))
    overlap = (answers & truth).sum((1, 2))[asked]
    total = (answers.sum((1, 2)) + truth.sum((1, 2)))[asked]
    return float(np.mean(2 * overlap / np.maximum(total, 1))) if asked.any() else 1.0


def _sensitivity(answers: NDArray[np.bool_], values: Sequence[int]) -> float:
    """1 - mean IoU of masks for clicks on different objects; 1 if there is only one."""
    ious = []
    for i, first in enumerate(values):
        for j in range(i):
            if values[j] != first:
                union = (answers[i] | answers[j]).sum()
                ious.append((answers[i] & answers[j]).sum() / union if union else 1.0)
    return 1.0 - float(np.mean(ious)) if ious else 1.0
