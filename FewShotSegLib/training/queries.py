"""Synthesized slices -> training batches of a promptable network, and the loss of such a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.lora.heads import target_of
from FewShotSegLib.sam.clicks import FIRST_PROMPT, choices, corrected, first_prompt, random_click
from FewShotSegLib.sam.network import PADDING, POSITIVE, Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.synthesis.plan import Sample

from .data_parallel import averaged, gathered, own, summed
from .losses import cross_entropy, dice_loss_of, dice_sums, soft_dice_loss

KINDS = ("click", "box", "both")
PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits and targets (..., h, w) -> (...)."""


class TellsStructures(Protocol):
    """Adds structure information to prompts: an adaptation, or maps."""

    def structure_prompts(
        self, network: PromptableNetwork, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]
    ) -> PromptBatch:
        """The prompts (N, grouped by image) with the information on their structures."""


@dataclass(frozen=True)
class Pointing:
    """Distribution of training prompts: the fraction with a box, a third of those with a click too, the fraction of
    central clicks, and the maximum number of points of a click prompt, itself included.
    """

    box_share: float = 0.3
    central_share: float = 0.3
    most_points: int = 1

    @property
    def shares(self) -> tuple[float, float, float]:
        """Fractions of clicks, boxes, and both."""
        return 1 - self.box_share, 2 * self.box_share / 3, self.box_share / 3


@dataclass(frozen=True)
class LossWeights:
    """Weights of the pixel loss, of Dice, and of the error of the predicted IoU.

    `with_background`: Dice as in SAMed's code, the mean over background and structure, each over the whole batch with
    1e-5 for empty masks, instead of per mask.
    """

    pixel: float = 1.0
    dice: float = 0.8
    quality: float = 1.0
    with_background: bool = False


@dataclass(frozen=True, eq=False)
class Query:
    """P prompts for each of B images, grouped by image; N = B P.

    prompts without structure tokens; structures (N,) label values whose tokens are added, or None for click-only
    prompts; targets (N, S, S) bool; known (N, S, S) bool; weight (N,) 0 for prompts without anything to point at.
    """

    prompts: PromptBatch
    structures: tuple[int, ...] | None
    targets: NDArray[np.bool_]
    known: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def share(self) -> Query:
        """This process's shard of the prompts of the global batch."""
        rows = own(range(len(self.weight)))
        at = slice(rows[0], rows[-1] + 1)
        prompts = PromptBatch(self.prompts.coords[at], self.prompts.labels[at])
        structures = None if self.structures is None else self.structures[at]
        return Query(prompts, structures, self.targets[at], self.known[at], self.weight[at])


def click_query(
    samples: Sequence[Sample], count: int, rng: np.random.Generator, pointing: Pointing | None = None
) -> Query:
    """Class-agnostic prompts as a user would give them: one random structure each, a point or a box on it."""
    how = pointing or Pointing()
    drawn = [_one_click(sample, value, rng, how) for sample in samples for value in _present(sample, count, rng)]
    return _query(drawn, None)


def token_query(
    samples: Sequence[Sample],
    structures: Sequence[int],
    count: int,
    rng: np.random.Generator,
    with_click: float,
    pointing: Pointing | None = None,
) -> Query:
    """Structure tokens, for present and absent structures alike; a fraction of the present ones also with a click."""
    drawn, asked, how = [], [], pointing or Pointing()
    for sample in samples:
        for value in _asked(sample, structures, count, rng):
            asked.append(value)
            click = bool((sample.labels == value).any()) and rng.random() < with_click
            drawn.append(_one_click(sample, value, rng, how) if click else _no_click(sample, value, how))
    return _query(drawn, tuple(asked))


def query_loss(
    network: PromptableNetwork,
    adaptation: TellsStructures,
    embedding: Embedding,
    query: Query,
    weights: LossWeights,
    correction: np.random.Generator | None = None,
    pixel_loss: PixelLoss = cross_entropy,
) -> Tensor:
    """Mean over prompts of `weights` x (`pixel_loss`, Dice, error of the predicted IoU) at the decoder's resolution.

    With `correction`, a second forward pass follows after one corrective click, and both contribute to the loss.
    """
    prompts = query.prompts
    if query.structures is not None:
        prompts = adaptation.structure_prompts(network, embedding, prompts, query.structures)
    logits, iou = network.decode(embedding, prompts)
    answer, _ = target_of(logits, iou)
    side = answer.shape[-1]
    target = _shrunk(query.targets, side, network.device)
    known = _shrunk(query.known, side, network.device)
    weight = torch.from_numpy(query.weight).to(network.device)
    loss = _masked_loss(answer, iou, target, known, weight, weights, pixel_loss)
    if correction is not None:
        prompts = corrected(prompts, answer.detach().float(), target, network, correction, choose=_own_choices)
        logits, iou = network.decode(embedding, prompts)
        again, _ = target_of(logits, iou)
        loss = 0.5 * (loss + _masked_loss(again, iou, target, known, weight, weights, pixel_loss))
    return loss


def _own_choices(counts: Sequence[int], rng: np.random.Generator, central: float) -> Sequence[int]:
    """Corrective clicks of this process, drawn as part of the global batch."""
    return own(choices(gathered(counts), rng, central))


def locator_loss(adaptation: Adaptation, embedding: Embedding, samples: Sequence[Sample]) -> Tensor:
    """Cross-entropy and Dice over the batch, against the fraction of each locator pixel that a structure covers.

    Dice is computed per structure over the whole batch: most structures are absent from most slices.
    """
    logits = adaptation.locator(embedding).float()  # B K+1 h w
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).to(logits.device)
    known = torch.from_numpy(np.stack([_known(sample) for sample in samples])).to(logits.device).float()
    values = torch.tensor((0, *adaptation.structures), device=logits.device).view(1, -1, 1, 1)
    stride = labels.shape[-1] // logits.shape[-1]
    target = F.avg_pool2d((labels[:, None] == values).float(), stride)
    certain = (F.avg_pool2d(known[:, None], stride) > 0.99).float()
    entropy = -(F.log_softmax(logits, 1) * target).sum(1, keepdim=True) * certain
    share = torch.softmax(logits, 1)
    overlap = 2 * summed((share * target * certain).sum((0, 2, 3))) + 1
    total = summed(((share**2 + target**2) * certain).sum((0, 2, 3))) + 1
    return averaged(entropy.mean()) + (1 - overlap / total)[1:].mean()


def _masked_loss(
    answer: Tensor,
    iou: Tensor,
    target: Tensor,
    known: Tensor,
    weight: Tensor,
    weights: LossWeights,
    pixel_loss: PixelLoss,
) -> Tensor:
    answer = answer.float()
    probability = torch.sigmoid(answer) * known
    # Outside the known area prediction and target are made equal, so the pixel has zero loss.
    agreed = torch.where(known > 0, answer, torch.where(target > 0.5, 30.0, -30.0))
    per_mask = weights.pixel * pixel_loss(agreed, target)
    if weights.with_background:
        per_mask = per_mask + weights.dice * _dice_with_background(probability, target, known, weight)
    else:
        per_mask = per_mask + weights.dice * soft_dice_loss(probability, target * known, squared=True)
    with torch.no_grad():
        hard = (answer > 0) & (known > 0)
        truth = (target > 0.5) & (known > 0)
        union = (hard | truth).sum((-2, -1))
        true_iou = torch.where(union > 0, (hard & truth).sum((-2, -1)) / union.clamp(min=1), 1.0)
    quality = (iou.float()[:, -1] - true_iou) ** 2
    loss = summed(((per_mask + weights.quality * quality) * weight).sum())
    return loss / summed(weight.sum()).clamp(min=1)


def _dice_with_background(probability: Tensor, target: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    """Scalar: 1 - the mean Dice of background and structure over all known pixels of the batch."""
    counted = known * weight[:, None, None]
    pairs = ((probability, target), (1 - probability, 1 - target))
    losses = []
    for p, t in pairs:
        overlap, total = dice_sums((p * counted).flatten()[None], (t * counted).flatten()[None], squared=True)
        losses.append(dice_loss_of(summed(overlap), summed(total), smooth=1e-5))
    return torch.stack(losses).mean()


def batch_dice(network: PromptableNetwork, adaptation: Adaptation, embedding: Embedding, query: Query) -> float:
    """Mean Dice of the predictions for a query; an empty mask for an absent structure counts as 1."""
    prompts = query.prompts
    with torch.inference_mode():
        if query.structures is not None:
            prompts = adaptation.structure_prompts(network, embedding, prompts, query.structures)
        answer, _ = target_of(*network.decode(embedding, prompts))
    hard = (answer > 0).cpu().numpy()
    side = hard.shape[-1]
    known = _shrunk(query.known, side, torch.device("cpu")).numpy() > 0
    truth = (_shrunk(query.targets, side, torch.device("cpu")).numpy() > 0.5) & known
    hard &= known
    overlap, total = (hard & truth).sum((1, 2)), hard.sum((1, 2)) + truth.sum((1, 2))
    dice = np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)
    return float((dice * query.weight).sum() / max(query.weight.sum(), 1))


def images_of(samples: Sequence[Sample], network: PromptableNetwork, scale: str) -> Tensor:
    """Network input (B, 3, S, S)."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).to(network.device)
    return network.normalize(images, scale)


def _present(sample: Sample, count: int, rng: np.random.Generator) -> list[int]:
    """`count` structures of the sample, each once before any is repeated; 0 if there is none."""
    values = [int(v) for v in np.unique(sample.labels) if v]
    if not values:
        return [0] * count
    order: list[int] = []
    while len(order) < count:
        order.extend(int(v) for v in rng.permutation(values))
    return order[:count]


def _asked(sample: Sample, structures: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Structures to prompt for: all in turn if they fit, else present ones first and a third of absent ones."""
    if count >= len(structures):
        return [*structures, *(int(rng.choice(structures)) for _ in range(count - len(structures)))]
    present = [v for v in _present(sample, len(structures), rng) if v]
    absent = [int(v) for v in rng.permutation([v for v in structures if v not in set(present)])]
    wanted = min(len(set(present)), max(count - min(len(absent), count // 3), 1))
    chosen = list(dict.fromkeys(present))[:wanted]
    chosen += absent[: count - len(chosen)]
    while len(chosen) < count:
        chosen.append(int(rng.choice(structures)))
    return chosen


_Drawn = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], float]


def _one_click(sample: Sample, value: int, rng: np.random.Generator, pointing: Pointing) -> _Drawn:
    target = (sample.labels == value) & (value > 0)
    if not target.any():
        return (*_no_click(sample, value, pointing)[:4], 0.0)
    kind = str(rng.choice(KINDS, p=pointing.shares))
    first = first_prompt(target, kind, rng, central=pointing.central_share)
    coords, labels = _no_points(pointing)
    coords[:FIRST_PROMPT], labels[:FIRST_PROMPT] = first
    if pointing.most_points > 1 and kind != "box":
        for further in range(int(rng.integers(pointing.most_points))):
            coords[FIRST_PROMPT + further] = random_click(target, rng)
            labels[FIRST_PROMPT + further] = POSITIVE
    return coords, labels, target, _known(sample), 1.0


def _no_points(pointing: Pointing) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    count = FIRST_PROMPT + pointing.most_points - 1
    return np.zeros((count, 2), np.float32), np.full(count, PADDING, np.int64)


def _no_click(sample: Sample, value: int, pointing: Pointing) -> _Drawn:
    return (*_no_points(pointing), (sample.labels == value) & (value > 0), _known(sample), 1.0)


def _known(sample: Sample) -> NDArray[np.bool_]:
    return np.ones(sample.labels.shape, bool) if sample.known is None else sample.known


def _query(drawn: list[_Drawn], structures: tuple[int, ...] | None) -> Query:
    coords, labels, targets, known, weight = (np.stack(column) for column in zip(*drawn, strict=True))
    prompts = PromptBatch(torch.from_numpy(coords), torch.from_numpy(labels))
    return Query(prompts, structures, targets, known, weight.astype(np.float32))


def on_device(query: Query, device: torch.device) -> Query:
    """The query with its prompts on the device; masks follow at the decoder's resolution."""
    prompts = PromptBatch(query.prompts.coords.to(device), query.prompts.labels.to(device))
    return Query(prompts, query.structures, query.targets, query.known, query.weight)


def _shrunk(masks: NDArray[np.bool_], side: int, device: torch.device) -> Tensor:
    """Masks (N, S, S) at the decoder's resolution: 1 where at least half of the pixel is covered."""
    stride = masks.shape[-1] // side
    tensor = torch.from_numpy(masks).to(device).float()
    if stride > 1:
        tensor = F.avg_pool2d(tensor[:, None], stride)[:, 0]
    return (tensor >= 0.5).float()
