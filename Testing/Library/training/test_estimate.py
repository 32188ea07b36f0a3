"""Honest numbers: what is left out, what is compared, what is warned about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.sam.network import PADDING, Embedding, PromptBatch
from FewShotSegLib.training import estimate
from FewShotSegLib.training.estimate import (
    clicked_answers,
    compare_with_base,
    described,
    held_out_dice,
    leave_out,
    provenance,
)

SIZE = 32
UNIT = IntensitySpec("window", 0, 1)
STRUCTURES = {1: "left", 2: "right"}


def an_exemplar(
    slices: Sequence[int] = (0, 1, 2), name: str = "case", count: int = 8, empty: Sequence[int] = ()
) -> Exemplar:
    """Two squares side by side; the image shows their label values as 0.4 and 0.8, background as 0.2."""
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for index in slices:
        labels[index, 8:24, 2:14] = 1
        labels[index, 8:24, 18:30] = 2
    image = np.array([0.2, 0.4, 0.8], np.float32)[labels]
    return Exemplar(Volume(image, np.eye(4)), labels, STRUCTURES, 0, tuple(slices), tuple(empty), name)


# --- leaving out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 10])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_fold_tests_on_an_exemplar_it_trains_with(count: int, most: int) -> None:
    exemplars = [an_exemplar() for _ in range(count)]
    folds = leave_out(exemplars, most)
    assert len(folds) == min(most, count)
    for kept, held_out in folds:
        assert len(kept) == count - 1
        assert all(exemplar is not held_out for exemplar in kept)
    assert len({id(held_out) for _, held_out in folds}) == len(folds)


@pytest.mark.parametrize("most", [1, 2, 3, 10])
@pytest.mark.parametrize("slices", [(2, 5), (0, 1, 2, 3, 4), (1, 4, 6, 7)])
def test_no_fold_tests_on_a_slice_it_trains_with(slices: tuple[int, ...], most: int) -> None:
    folds = leave_out([an_exemplar(slices)], most)
    assert len(folds) == min(most, len(slices))
    tested: list[int] = []
    for (kept,), held_out in folds:
        assert kept.annotated_slices
        assert held_out.annotated_slices
        assert not set(kept.annotated_slices) & set(held_out.annotated_slices)
        assert sorted({*kept.annotated_slices, *held_out.annotated_slices}) == list(slices)
        tested += held_out.annotated_slices
    assert len(tested) == len(set(tested))
    if most >= 2:
        assert sorted(tested) == list(slices)


def test_slices_are_left_out_in_blocks_because_neighbours_look_alike() -> None:
    folds = leave_out([an_exemplar((0, 1, 2, 3, 4, 5))], 2)
    assert [held_out.annotated_slices for _, held_out in folds] == [(0, 1, 2), (3, 4, 5)]


def test_empty_slices_stay_with_training() -> None:
    ((kept,), held_out) = leave_out([an_exemplar((0, 1), empty=(5, 6))], 1)[0]
    assert kept.empty_slices == (5, 6)
    assert held_out.empty_slices == ()


def test_from_a_single_slice_nothing_can_be_left_out() -> None:
    assert leave_out([an_exemplar((3,))], 5) == []
    assert leave_out([an_exemplar(), an_exemplar()], 0) == []


def test_the_card_says_what_was_left_out() -> None:
    one_patient = leave_out([an_exemplar((0, 1, 2))], 2)
    shorter = "(2 folds), shorter training than the adapter itself"
    assert described(one_patient) == f"left-out slices of the same patient {shorter}; optimistic for other patients"
    twice = leave_out([an_exemplar((0, 1)), an_exemplar((3, 4))], 2)  # the image is the same
    assert described([([twice[0][1]], twice[0][1])]).startswith("left-out slices of the same patient (1 folds)")
    for names in ("ab", "aa"):  # files of two patients may both be called image.nrrd
        patients = [an_exemplar(name=name) for name in names]
        patients[1] = replace(patients[1], volume=Volume(patients[1].volume.array + 1, np.eye(4)))
        assert described(leave_out(patients, 2)).startswith("left-out exemplars (2 folds)")


# --- fakes ----------------------------------------------------------------------------------------------------------


class Network:
    """Its embedding is the image itself; while an adaptation is applied its answers come from there."""

    image_size, device = SIZE, torch.device("cpu")

    def __init__(self, answer: Any) -> None:
        self.answer, self.encoded = answer, 0

    def normalize(self, image: Tensor, scale: str) -> Tensor:
        return image

    def encode(self, image: Tensor) -> Embedding:
        self.encoded += 1
        return Embedding(image)

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        masks = self.answer(embedding.features[0].numpy(), prompts)
        target = 8.0 * torch.from_numpy(np.stack(masks)).float() - 4
        return torch.stack([0 * target, target], 1), torch.zeros(len(target), 2)


def where_clicked(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
    """The ideal: everything as bright as the pixel clicked on."""
    return [np.abs(image - image[int(y), int(x)]) < 0.1 for x, y in prompts.coords[:, 0].tolist()]


def whatever_clicked(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
    return [image > 0.3] * len(prompts)


def nothing(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
    return [np.zeros(image.shape, bool)] * len(prompts)


def the_upper_half_of(answer: Any) -> Any:
    def halved(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
        return [mask & (np.arange(SIZE) < 16)[:, None] for mask in answer(image, prompts)]

    return halved


class Learned:
    """An adaptation that swaps the network's answers."""

    structures = (1, 2)

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def applied(self, network: Network) -> Any:
        base, network.answer = network.answer, self.answer
        done = nullcontext()
        return _Restoring(done, network, base)

    def structure_prompts(self, network: Network, embedding: Embedding, prompts: PromptBatch, structures: Any) -> Any:
        assert (prompts.labels == PADDING).all()
        return replace(prompts, tokens=torch.tensor(structures))


class _Restoring:
    def __init__(self, inner: Any, network: Network, base: Any) -> None:
        self.inner, self.network, self.base = inner, network, base

    def __enter__(self) -> None:
        self.inner.__enter__()

    def __exit__(self, *error: object) -> None:
        self.network.answer = self.base


def verdict(base: Any, adapted: Any, *exemplars: Exemplar, seed: int = 0) -> dict[str, Any]:
    chosen = exemplars or (an_exemplar(),)
    return compared(Network(base), adapted, chosen, seed)


def compared(network: Network, adapted: Any, chosen: Sequence[Exemplar], seed: int = 0) -> dict[str, Any]:
    answers = clicked_answers(network, UNIT, Learned(adapted))  # type: ignore[arg-type]
    return compare_with_base(network, answers, chosen, UNIT, rng=np.random.default_rng(seed))  # type: ignore[arg-type]


# --- comparing ------------------------------------------------------------------------------------------------------


def test_an_adapter_as_good_as_the_base_gives_no_warning() -> None:
    found = verdict(where_clicked, where_clicked)
    assert (found["base_dice"], found["adapted_dice"]) == (1, 1)
    assert found["click_sensitivity"] == pytest.approx(1)
    assert found["warnings"] == []


def test_an_adapter_worse_than_the_base_is_reported_with_both_numbers() -> None:
    found = verdict(where_clicked, the_upper_half_of(where_clicked))
    assert found["adapted_dice"] == pytest.approx(2 / 3)  # half of the mask: 2 * 8 / (8 + 16)
    assert len(found["warnings"]) == 1
    assert "Dice 0.67 against 1.00" in found["warnings"][0]


def test_an_adapter_better_than_the_base_gives_no_warning() -> None:
    assert verdict(the_upper_half_of(where_clicked), where_clicked)["warnings"] == []


def test_an_adapter_that_ignores_clicks_is_reported() -> None:
    found = verdict(whatever_clicked, whatever_clicked)
    assert found["click_sensitivity"] == pytest.approx(0)
    assert len(found["warnings"]) == 1
    assert "clicks at different positions" in found["warnings"][0]


def test_answering_nothing_at_all_is_ignoring_clicks_as_well() -> None:
    assert verdict(where_clicked, nothing)["click_sensitivity"] == pytest.approx(0)


def test_only_answers_to_clicks_on_different_things_are_compared() -> None:
    masks = np.zeros((3, 4, 4), bool)
    masks[:2, :2] = True
    masks[2, 1:3] = True
    assert estimate._sensitivity(masks, (1, 1, 2)) == pytest.approx(1 - 4 / 12)
    assert estimate._sensitivity(masks[:2], (1, 1)) == 1  # one thing only: nothing to tell apart


def test_the_base_is_compared_before_and_the_network_given_back_after() -> None:
    network = Network(where_clicked)
    compared(network, nothing, [an_exemplar()])
    assert network.answer is where_clicked


def test_many_slices_are_sampled_from_first_to_last() -> None:
    network, exemplar = Network(where_clicked), an_exemplar(range(40), count=40)
    compared(network, where_clicked, [exemplar])
    assert network.encoded == 2 * estimate.MOST_SLICES


def test_the_same_generator_gives_the_same_verdict() -> None:
    noisy = the_upper_half_of(where_clicked)
    assert verdict(where_clicked, noisy, seed=3) == verdict(where_clicked, noisy, seed=3)


# --- estimating -----------------------------------------------------------------------------------------------------


def by_name(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
    """Structure 1 right, of structure 2 the upper half."""
    assert prompts.tokens is not None
    brightness = {1: 0.4, 2: 0.8}
    masks = [np.abs(image - brightness[int(value)]) < 0.1 for value in prompts.tokens]
    masks[1] &= (np.arange(SIZE) < 16)[:, None]
    return masks


def test_the_dice_of_held_out_slices_is_that_of_all_pixels_per_structure() -> None:
    found = held_out_dice(Network(nothing), Learned(by_name), an_exemplar((1, 4)), UNIT)  # type: ignore[arg-type]
    assert found == {1: pytest.approx(1), 2: pytest.approx(2 / 3)}


def test_a_structure_neither_there_nor_answered_has_no_dice() -> None:
    exemplar = an_exemplar((1,))
    only_left = replace(exemplar, labelmap=np.where(exemplar.labelmap == 1, 1, 0))

    def one(image: np.ndarray, prompts: PromptBatch) -> list[np.ndarray]:
        masks = by_name(image, prompts)
        return [masks[0], np.zeros_like(masks[0])]

    assert set(held_out_dice(Network(nothing), Learned(one), only_left, UNIT)) == {1}  # type: ignore[arg-type]


def test_the_estimate_looks_at_slices_from_first_to_last() -> None:
    """Were only the first ones looked at, what fails at the far end would be missed."""
    exemplar = an_exemplar(range(40), count=40)
    exemplar.volume.array[30:] = 0  # where nothing can be seen
    found = held_out_dice(Network(nothing), Learned(by_name), exemplar, UNIT)  # type: ignore[arg-type]
    assert found[1] < 0.9


# --- provenance -----------------------------------------------------------------------------------------------------


def test_provenance_names_the_exemplar_and_its_slices() -> None:
    found = provenance(an_exemplar((1, 2), name="case7", empty=(5,)))
    assert (found["name"], found["axis"], found["annotated_slices"], found["empty_slices"]) == ("case7", 0, [1, 2], 1)
    assert "channel" not in found
    assert provenance(replace(an_exemplar(), channel=2))["channel"] == 2


def test_the_digest_changes_with_a_voxel_a_label_and_the_place() -> None:
    exemplar = an_exemplar()
    image, labels = exemplar.volume.array.copy(), exemplar.labelmap.copy()
    image[7, 3, 3] += 1e-3
    labels[0, 0, 0] = 1
    moved = exemplar.volume.affine.copy()
    moved[0, 3] += 1
    others = [
        exemplar,
        replace(exemplar, volume=exemplar.volume.like(image)),
        replace(exemplar, labelmap=labels),
        replace(exemplar, volume=Volume(exemplar.volume.array, moved)),
    ]
    assert len({provenance(other)["sha256"] for other in others}) == 4
    assert provenance(an_exemplar())["sha256"] == provenance(exemplar)["sha256"]


def test_a_click_on_a_structure_and_the_background_is_asked_for_on_every_slice() -> None:
    exemplar = an_exemplar((1,))
    (piece,) = estimate.labelled_slices(exemplar, UNIT, SIZE)
    prompts, values = estimate._clicks(piece, np.random.default_rng(0))
    assert values == (1, 1, 2, 2, -1)
    for (x, y), value in zip(prompts.coords[:, 0].tolist(), values, strict=True):
        assert piece.labels[int(y), int(x)] == max(value, 0)
    assert SimpleNamespace(labels=prompts.labels).labels[:, 1:].eq(PADDING).all()


# --- the estimate ---------------------------------------------------------------------------------------------------


def on_one_slice(slices: Sequence[int] = (0, 1, 2), only: int = 1) -> Exemplar:
    """An exemplar that shows "right" on slice `only` alone."""
    exemplar = an_exemplar(slices)
    labels = exemplar.labelmap.copy()
    for index in set(slices) - {only}:
        labels[index][labels[index] == 2] = 0
    return replace(exemplar, labelmap=labels)


def test_a_structure_on_one_slice_has_no_estimate_where_that_slice_was_left_out() -> None:
    folds = leave_out([on_one_slice()], 3)
    scores = [{1: 0.9, 2: 0.0} if 1 in held_out.annotated_slices else {1: 0.7} for _, held_out in folds]
    means, how = estimate.estimated(folds, scores, STRUCTURES)
    assert means == {"left": pytest.approx((0.9 + 0.7 + 0.7) / 3)}
    assert how.endswith("optimistic for other patients; not estimable for right: annotated on too few slices")


def test_a_structure_of_one_exemplar_has_no_estimate_either() -> None:
    exemplars = [an_exemplar(), on_one_slice((0, 2), only=1), on_one_slice((0, 2), only=1)]
    folds = leave_out(exemplars, 3)
    means, how = estimate.estimated(folds, [{1: 0.5, 2: 0.1}, {1: 0.6}, {1: 0.7}], STRUCTURES)
    assert means == {"left": pytest.approx(0.6)}
    assert how.endswith("; not estimable for right: annotated in too few exemplars")


def test_where_nothing_can_be_estimated_there_is_no_number() -> None:
    exemplar = on_one_slice((0, 1), only=1)
    labels = exemplar.labelmap.copy()
    labels[1][labels[1] == 1] = 0
    folds = leave_out([replace(exemplar, labelmap=labels)], 2)
    means, how = estimate.estimated(folds, [{1: 0.0}, {2: 0.0}], STRUCTURES)
    assert means is None
    assert how == "not estimable for left, right: annotated on too few slices"
