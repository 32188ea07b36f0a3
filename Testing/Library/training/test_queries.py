"""Synthesized slices -> prompts and targets, and the loss of their answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.network import PADDING, POSITIVE, Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training import queries as module
from FewShotSegLib.training.losses import cross_entropy, soft_dice_loss
from FewShotSegLib.training.queries import (
    LossWeights,
    Pointing,
    Query,
    batch_dice,
    click_query,
    images_of,
    locator_loss,
    query_loss,
    token_query,
)

SIZE = 64
STRUCTURES = (1, 2, 3)
WEIGHTS = LossWeights()


def a_sample(present: tuple[int, ...] = (1, 2, 3), known: NDArray[np.bool_] | None = None) -> Sample:
    labels = np.zeros((SIZE, SIZE), np.int32)
    for value in present:
        labels[8:24, 16 * value : 16 * value + 12] = value
    image = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    return Sample(image, labels, known, {})


def pointed_at(query: Query, row: int, labels: NDArray[np.int32]) -> int:
    """The structure under the click or the middle of the box of a prompt."""
    coords, kinds = query.prompts.coords[row].numpy(), query.prompts.labels[row].tolist()
    x, y = coords[0] if kinds[0] != PADDING else coords[1:].mean(0).round()
    return int(labels[int(y), int(x)])


# --- queries --------------------------------------------------------------------------------------------------------


def test_each_click_points_at_its_own_target() -> None:
    rng, samples = np.random.default_rng(0), [a_sample((1, 3)), a_sample((2,)), a_sample()]
    query = click_query(samples, 4, rng)
    assert query.structures is None
    assert len(query.prompts) == 12
    for row in range(12):
        labels = samples[row // 4].labels  # grouped by image
        value = pointed_at(query, row, labels)
        assert value > 0
        np.testing.assert_array_equal(query.targets[row], labels == value)
    assert query.weight.tolist() == [1] * 12
    assert query.known.all()


def test_a_slice_without_structures_gives_clicks_that_count_nothing() -> None:
    query = click_query([a_sample(()), a_sample((2,))], 2, np.random.default_rng(0))
    assert query.weight.tolist() == [0, 0, 1, 1]
    assert not query.targets[:2].any()
    assert (query.prompts.labels[:2] == PADDING).all()


def test_all_structures_of_a_slice_are_clicked_equally_often() -> None:
    rng, sample = np.random.default_rng(1), a_sample()
    counts = np.zeros(3)
    for _ in range(300):
        query = click_query([sample], 1, rng)
        counts[pointed_at(query, 0, sample.labels) - 1] += 1
    assert stats.chisquare(counts).pvalue > 0.01


def test_no_structure_is_clicked_twice_before_each_was_clicked_once() -> None:
    rng, sample = np.random.default_rng(2), a_sample()
    for _ in range(20):
        query = click_query([sample], 3, rng)
        assert sorted(pointed_at(query, row, sample.labels) for row in range(3)) == [1, 2, 3]


def test_clicks_boxes_and_both_come_in_their_shares() -> None:
    rng, sample = np.random.default_rng(3), a_sample()
    labels = np.concatenate([click_query([sample], 20, rng).prompts.labels.numpy() for _ in range(30)])
    has_click, has_box = labels[:, 0] != PADDING, labels[:, 1] != PADDING
    counts = [(has_click & ~has_box).sum(), (has_box & ~has_click).sum(), (has_box & has_click).sum()]
    assert stats.chisquare(counts, 600 * np.array([0.7, 0.2, 0.1])).pvalue > 0.01


def test_points_alone_anywhere_in_the_structure_as_in_the_paper() -> None:
    """Without boxes and central clicks each pixel of the structure is as likely as any other."""
    sample, rng = a_sample((2,)), np.random.default_rng(5)
    how = Pointing(box_share=0.0, central_share=0.0)
    batches = [click_query([sample], 32, rng, how).prompts for _ in range(20)]
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    assert (labels[:, 0] != PADDING).all()
    assert (labels[:, 1:] == PADDING).all()
    x, y = np.concatenate([batch.coords.numpy()[:, 0] for batch in batches]).T
    for values, low, high in ((x, 32, 44), (y, 8, 24)):  # the square of structure 2
        counts, _ = np.histogram(values, bins=4, range=(low - 0.5, high - 0.5))
        assert stats.chisquare(counts).pvalue > 0.01


def test_a_share_of_clicks_lies_deep_inside() -> None:
    sample, rng = a_sample((2,)), np.random.default_rng(6)
    deep = []
    for central in (0.0, 1.0):
        prompts = click_query([sample], 400, rng, Pointing(0.0, central)).prompts
        x, y = prompts.coords.numpy()[:, 0].T
        deep.append(np.mean((np.abs(x - 37.5) <= 1) & (y >= 13) & (y <= 18)))  # far from every edge of 12 x 16
    assert deep[0] < 0.2
    assert deep[1] == 1.0


def test_prompts_have_one_point_or_several_as_the_recipe_says() -> None:
    sample, rng = a_sample(), np.random.default_rng(7)
    query = click_query([sample], 300, rng, Pointing(0.0, 0.0, most_points=3))
    labels = query.prompts.labels.numpy()
    counts = np.bincount((labels == POSITIVE).sum(1), minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 0.01
    for row in range(300):
        points = query.prompts.coords[row].numpy()[labels[row] == POSITIVE].astype(int)
        assert query.targets[row][points[:, 1], points[:, 0]].all()
    one = click_query([sample], 4, np.random.default_rng(0), Pointing())
    assert one.prompts.labels.shape[1] == 3
    mixed = token_query([sample], STRUCTURES, 6, rng, 0.5, Pointing(most_points=3)).prompts.labels
    assert mixed.shape[1] == 5


def test_absent_structures_are_asked_for_too_and_their_target_is_empty() -> None:
    query = token_query([a_sample((1, 3))], STRUCTURES, 3, np.random.default_rng(0), with_click=1.0)
    assert query.structures == (1, 2, 3)
    assert query.weight.tolist() == [1, 1, 1]
    assert query.targets.any((1, 2)).tolist() == [True, False, True]
    assert (query.prompts.labels[1] == PADDING).all()  # there is nothing to click on
    assert (query.prompts.labels[[0, 2]] != PADDING).any(1).all()


def test_without_clicks_tokens_come_alone() -> None:
    query = token_query([a_sample(), a_sample((1,))], STRUCTURES, 5, np.random.default_rng(0), with_click=0.0)
    assert (query.prompts.labels == PADDING).all()
    assert query.structures is not None
    assert len(query.structures) == 10
    for row, value in enumerate(query.structures):
        np.testing.assert_array_equal(query.targets[row], (a_sample() if row < 5 else a_sample((1,))).labels == value)


def test_where_not_all_structures_fit_present_ones_prevail_and_absent_ones_are_not_forgotten() -> None:
    structures, rng = tuple(range(1, 9)), np.random.default_rng(4)
    asked = np.array([token_query([a_sample()], structures, 6, rng, 0.0).structures for _ in range(50)])
    assert (np.isin(asked, (1, 2, 3)).sum(1) == 3).all()
    assert set(asked.ravel().tolist()) == set(structures)
    assert all(len(set(row.tolist())) == 6 for row in asked)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("present", [(), (2,), (1, 2, 3)])
def test_a_query_has_as_many_prompts_as_asked_for(count: int, present: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        assert len(token_query([a_sample(present)] * 2, (1, 2, 3, 4, 5), count, rng, 0.5).prompts) == 2 * count
        assert len(click_query([a_sample(present)] * 2, count, rng).prompts) == 2 * count


# --- the loss -------------------------------------------------------------------------------------------------------


class Answering:
    """A network that answers with given logits."""

    def __init__(self, target: Tensor, iou: Tensor | None = None) -> None:
        self.target, self.device = target, torch.device("cpu")
        self.iou = torch.zeros(len(target)) if iou is None else iou

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.zeros_like(self.target), self.target], 1), torch.stack([0 * self.iou, self.iou], 1)


NO_EMBEDDING = Embedding(torch.zeros(1, 1, 1, 1))
NO_ADAPTATION = SimpleNamespace()


def loss_of(logits: Tensor, query: Query, iou: Tensor | None = None) -> Tensor:
    return query_loss(Answering(logits, iou), NO_ADAPTATION, NO_EMBEDDING, query, WEIGHTS)  # type: ignore[arg-type]


def a_query(known: NDArray[np.bool_] | None = None) -> Query:
    return click_query([a_sample((1, 2), known)], 2, np.random.default_rng(0))


def test_the_loss_is_the_weighted_sum_of_cross_entropy_dice_and_the_error_of_the_predicted_iou() -> None:
    query = a_query()
    logits = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(query.targets).float()
    dice = soft_dice_loss(torch.sigmoid(logits), target, squared=True)
    hard, truth = (logits > 0).numpy(), query.targets
    iou = (hard & truth).sum((1, 2)) / (hard | truth).sum((1, 2))
    predicted = torch.tensor([0.3, 0.9])
    expected = (cross_entropy(logits, target) + 0.8 * dice + (predicted - torch.from_numpy(iou)) ** 2).mean()
    torch.testing.assert_close(loss_of(logits, query, predicted), expected.float())


def test_dice_with_background_is_that_of_two_classes_over_the_whole_batch() -> None:
    """SAMed's: per class 2 sum(p t) / (sum(p^2) + sum(t^2)), 1e-5 in both, over all pixels of all samples."""
    query = a_query()
    logits = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()
    truth = query.targets.astype(float)
    p = 1 / (1 + np.exp(-logits.numpy()))
    losses = [
        1 - (2 * (q * t).sum() + 1e-5) / ((q * q).sum() + (t * t).sum() + 1e-5)
        for q, t in ((p, truth), (1 - p, 1 - truth))
    ]
    weights = LossWeights(pixel=0.0, dice=1.0, quality=0.0, with_background=True)
    found = query_loss(Answering(logits.float()), NO_ADAPTATION, NO_EMBEDDING, query, weights)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("part", ["pixel", "dice", "quality"])
def test_each_part_of_the_loss_has_its_own_weight(part: str) -> None:
    query, none = a_query(), {"pixel": 0.0, "dice": 0.0, "quality": 0.0}
    logits = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    answering = Answering(logits, torch.tensor([0.3, 0.9]))

    def loss(**weights: float) -> float:
        given = LossWeights(**{**none, **weights})
        return float(query_loss(answering, NO_ADAPTATION, NO_EMBEDDING, query, given))  # type: ignore[arg-type]

    assert loss() == 0
    assert loss(**{part: 1.0}) > 0
    assert loss(**{part: 2.0}) == pytest.approx(2 * loss(**{part: 1.0}), rel=1e-5)


def test_a_right_answer_with_the_right_iou_costs_next_to_nothing() -> None:
    query = a_query()
    logits = 60 * torch.from_numpy(query.targets).float() - 30
    assert float(loss_of(logits, query, torch.ones(2))) < 1e-6


def test_unknown_pixels_get_no_gradient_and_do_not_change_the_loss() -> None:
    known = np.ones((SIZE, SIZE), bool)
    known[20:40, 10:30] = False
    query = a_query(known)
    logits = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = loss_of(logits, query)
    loss.backward()
    assert not logits.grad[:, ~known].any()
    assert logits.grad[:, known].abs().min() > 0
    changed = torch.where(torch.from_numpy(known), logits.detach(), 9.0)
    assert torch.equal(loss_of(changed, query), loss.detach())


def test_prompts_without_weight_do_not_count() -> None:
    both = click_query([a_sample(()), a_sample((2,))], 1, np.random.default_rng(0))
    alone = click_query([a_sample((2,))], 1, np.random.default_rng(0))
    logits = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = loss_of(logits, both)
    alone = Query(alone.prompts, None, both.targets[1:], both.known[1:], both.weight[1:])
    torch.testing.assert_close(loss, loss_of(logits[1:], alone))
    loss.backward()
    assert not logits.grad[0].any()


def test_an_empty_slice_costs_nothing_instead_of_dividing_by_zero() -> None:
    query = click_query([a_sample(())], 2, np.random.default_rng(0))
    assert float(loss_of(torch.randn(2, SIZE, SIZE), query)) == 0


def test_targets_shrink_to_the_masks_of_the_decoder_by_majority() -> None:
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :4, :3] = True  # 12 of 16
    masks[0, 4:6, 4:] = True  # 8 of 16
    masks[0, 4:5, :4] = True  # 4 of 16
    assert module._shrunk(masks, 2, torch.device("cpu")).tolist() == [[[1, 0], [0, 1]]]
    assert torch.equal(module._shrunk(masks, 8, torch.device("cpu")), torch.from_numpy(masks).float())


def test_the_dice_of_a_batch_counts_empty_answers_to_absent_structures_as_right() -> None:
    query = token_query([a_sample((1, 3))], STRUCTURES, 3, np.random.default_rng(0), with_click=0.0)
    right = 60 * torch.from_numpy(query.targets).float() - 30
    adaptation = SimpleNamespace(structure_prompts=lambda network, embedding, prompts, structures: prompts)
    dice = lambda logits: batch_dice(Answering(logits), adaptation, NO_EMBEDDING, query)  # type: ignore[arg-type]  # noqa: E731
    assert dice(right) == pytest.approx(1)
    wrong = right.clone()
    wrong[1, 0, 0] = 5  # one pixel of the absent structure
    assert dice(wrong) == pytest.approx(2 / 3)
    half = right.clone()
    half[0, 8:16] = -5  # half of structure 1
    assert dice(half) == pytest.approx((2 / 3 + 1 + 1) / 3)


# --- with a network -------------------------------------------------------------------------------------------------


@pytest.fixture
def adaptation(a_tiny_sam: PromptableNetwork) -> Adaptation:
    return Adaptation(a_tiny_sam, AdaptationSpec(LoraSpec()), STRUCTURES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["click", "token"])
def test_a_few_steps_lower_the_loss_of_a_query(
    a_tiny_sam: PromptableNetwork, adaptation: Adaptation, kind: str
) -> None:
    samples, rng = [a_sample((1, 3)), a_sample((2,))], np.random.default_rng(0)
    query = click_query(samples, 2, rng) if kind == "click" else token_query(samples, STRUCTURES, 3, rng, 0.3)
    with adaptation.applied(a_tiny_sam) as parameters:
        optimizer = torch.optim.AdamW(parameters.values(), lr=5e-3)
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            embedding = a_tiny_sam.encode(images_of(samples, a_tiny_sam, "sam"))
            loss = query_loss(a_tiny_sam, adaptation, embedding, query, WEIGHTS, np.random.default_rng(1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_images_come_normalized_as_the_network_wants_them(a_tiny_sam: PromptableNetwork) -> None:
    images = images_of([a_sample(), a_sample(())], a_tiny_sam, "unit")
    assert images.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_array_equal(images[1, 2].numpy(), a_sample().image)


def test_the_locator_learns_shares_of_pixels_and_nothing_from_unknown_ones(
    a_tiny_sam: PromptableNetwork, adaptation: Adaptation
) -> None:
    known = np.ones((SIZE, SIZE), bool)
    known[:, 40:] = False
    logits = torch.randn(1, 1 + len(STRUCTURES), 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    located = SimpleNamespace(locator=lambda embedding: logits, structures=STRUCTURES)
    locator_loss(located, NO_EMBEDDING, [a_sample(known=known)]).backward()  # type: ignore[arg-type]
    assert not logits.grad[..., 5:].any()
    assert (logits.grad[..., :5] != 0).all()
    with torch.no_grad():
        embedding = a_tiny_sam.encode(images_of([a_sample()], a_tiny_sam, "sam"))
    optimizer = torch.optim.Adam(adaptation.locator.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = locator_loss(adaptation, embedding, [a_sample()])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
