"""Structure maps: coarse probability maps of structures from a pixel classifier, and decoding them into masks.

The map of a structure is given to the mask decoder as a mask prompt, with a click or a box on its most certain part.
The decoder's output is averaged with the map: the map identifies the structure, the decoder finds its edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import SliceFrame
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.sam.clicks import FIRST_PROMPT, centre_click, tight_box
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    MOST_LOGIT,
    NEGATIVE,
    PADDING,
    POSITIVE,
    Embedding,
    PromptableNetwork,
    PromptBatch,
    mask_prompts,
)

from .embedding_cache import EmbeddingCache
from .pixel_classifier import ContextClassifier, PixelClassifier, PixelMaps, pixel_maps
from .predictor import MAPS, Masks, Predictor, restored_adaptation

MAP, CLICK, BOX = "map", "click", "box"
# Shares of what was learned in an answer; the rest is the base model's.
LEARNED, LEARNED_IN_BOX, LEARNED_IF_DISAGREEING = 1 / 2, 1 / 8, 1 / 3
AGREED = 0.6  # the learned masks agree from this IoU on
WAYS = (CLICK, BOX, MAP)  # of decoding a map: the decoder with a click or a box, or the map alone


@dataclass(frozen=True, eq=False)
class StructureMaps:
    """Pixel classifiers for K structures, whose predictions are averaged, offsets (K,) added to their log-odds, and the
    decoding way of each structure. Numbers only: it contains no patient image.
    """

    structures: tuple[int, ...]
    classifiers: tuple[ContextClassifier, ...]
    offsets: Tensor
    ways: tuple[str, ...]

    def log_odds(self, maps: PixelMaps, structures: Sequence[int] | None = None) -> Tensor:
        """log(p / (1 - p)) of the requested structures (N, g, g), shifted by the Dice-optimal offsets."""
        odds = torch.stack([classifier.log_odds(maps) for classifier in self.classifiers]).mean(0)
        odds = odds + self.offsets[:, None, None]
        return odds if structures is None else odds[self.rows(structures)]

    def rows(self, structures: Sequence[int]) -> list[int]:
        """Row indices of the structures in the maps."""
        return [self.structures.index(value) for value in structures]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All tensors by name, as an `Adapter` stores them."""
        found = {f"{MAPS}offsets": self.offsets}
        for number, classifier in enumerate(self.classifiers):
            for stage, members in (("first", classifier.firsts), ("second", classifier.seconds)):
                for fold, member in enumerate(members):
                    name = f"{MAPS}{number}.{stage}.{fold}"
                    found[f"{name}.seen"], found[f"{name}.place"] = member.of_seen, member.of_place
        return {name: tensor.float().cpu().numpy().copy() for name, tensor in found.items()}

    @classmethod
    def restored(cls, adapter: Adapter, device: torch.device) -> StructureMaps:
        """The maps stored in an adapter."""
        ways = tuple((adapter.architecture or {})["maps"]["ways"])

        def numbers(name: str) -> Tensor:
            if f"{MAPS}{name}" not in adapter.tensors:
                raise InputError(f"The adapter is not whole: its maps lack {name}; make it again.")
            return torch.from_numpy(np.array(adapter.tensors[f"{MAPS}{name}"])).to(device)

        members: dict[tuple[int, str], list[PixelClassifier]] = {}
        for name in adapter.tensors:
            if name.startswith(MAPS) and name.endswith(".seen"):
                member = name.removeprefix(MAPS).removesuffix(".seen")
                number, stage, _ = member.split(".")
                classifier = PixelClassifier(numbers(f"{member}.seen"), numbers(f"{member}.place"))
                members.setdefault((int(number), stage), []).append(classifier)
        count = 1 + max((number for number, _ in members), default=-1)
        classifiers = tuple(ContextClassifier(members[n, "first"], members[n, "second"]) for n in range(count))
        return cls(tuple(sorted(adapter.structures)), classifiers, numbers("offsets"), ways)


def has_maps(adapter: Adapter) -> bool:
    """Whether the adapter uses structure maps."""
    return "maps" in (adapter.architecture or {})


@dataclass(frozen=True, eq=False)
class SeenEmbedding(Embedding):
    """An embedding together with its slice, (S, S) in [0, 1]."""

    image: NDArray[np.float32] | None = None


class MapPredictor(Predictor):
    """A predictor that knows structures by their maps. User prompts replace the derived click, box and mask.

    `looks` is an adapter used for encoding, such as one of GMISeg. An `adapter` with its own maps brings a decoder that
    was trained to use them; its output is averaged with the base model's, which on real cases is better than either
    (see BENCHMARKS.md).
    """

    def __init__(
        self,
        network: PromptableNetwork,
        adapter: Adapter | None = None,
        *,
        looks: Adapter | None = None,
        scale: str | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__(network, looks, scale=adapter.intensity.scale if adapter else scale, cache=cache)
        self.adapter = adapter
        self.trained: Adaptation | None = None
        self.maps = StructureMaps((), (), torch.zeros(0, device=network.device), ())
        if adapter is not None and has_maps(adapter):
            self.trained = restored_adaptation(network, adapter)
            self.maps = StructureMaps.restored(adapter, network.device)

    @property
    def identity(self) -> tuple[str, int, str]:
        """What determines the output, including the maps."""
        base, size, looks = super().identity
        return base, size, f"{looks} {self.adapter.digest if self.adapter else ''}"

    def knows(self, structure: int) -> bool:
        """Whether there is a map of this structure."""
        return structure in self.maps.structures

    def encode(self, images01: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """Embeddings of network squares (S, S) in [0, 1], each with its image."""
        found = zip(super().encode(images01), images01, strict=True)
        return [SeenEmbedding(embedding.features, embedding.skips, image) for embedding, image in found]

    def decode_structures(self, embedding: Embedding, structures: Sequence[int]) -> Masks:
        """Target logits of structures without clicks, on one slice from `encode`."""
        maps = self.maps.log_odds(maps_of(embedding), structures)
        ways = [self.maps.ways[row] for row in self.maps.rows(structures)]
        logits = self.from_maps(embedding, maps, ways, structures)
        return Masks(logits.cpu().numpy(), expected_iou(logits).cpu().numpy())

    def from_maps(
        self, embedding: Embedding, maps: Tensor, ways: Sequence[str], structures: Sequence[int] = ()
    ) -> Tensor:
        """Logits (N, h, w): the maps (N, g, g), or their means with the decoder's output for them. Half the weight is
        the base decoder's; the other half is the map's, shared with a trained decoder's if there is one.
        """
        coords, labels = derived_prompts(maps, ways, self.image_size)
        asked = np.flatnonzero(labels[:, 0] == POSITIVE)
        if not len(asked):
            return maps
        device, rows = maps.device, torch.from_numpy(asked)
        prompts = PromptBatch(torch.from_numpy(coords[asked]).to(device), torch.from_numpy(labels[asked]).to(device))
        prompts = prompts.with_masks(self._as_prompts(maps[rows]))
        decoded = [self.decode(embedding, prompts)]
        if self.trained is not None:
            decoded.append(self._decode_trained(embedding, prompts, [structures[row] for row in asked.tolist()]))
        plain, *learned = (
            torch.from_numpy(masks.logits).to(device).clamp(-MOST_LOGIT, MOST_LOGIT) for masks in decoded
        )
        answers = F.interpolate(maps[:, None], plain.shape[-2:], mode="bilinear")[:, 0]
        answers[rows] = _mixed(plain, [answers[rows], *learned], LEARNED)
        return answers

    def answer(self, embedding: Embedding, prompt: Prompt, frame: SliceFrame, structures: Sequence[int] = ()) -> Masks:
        """Target logits of a user's prompt on one slice.

        Only the base model answers point by point, correcting its own mask: a poor map or decoder would mislead every
        following step. On structures with maps, the learned outputs are then mixed in as in `decode_known`; they see
        all points at once, and the map unless the prompt has a mask of its own.
        """
        plain = super().answer(embedding, prompt, frame)
        if not structures:
            return plain
        return self._with_learned(plain, embedding, self.user_prompt(prompt, frame), structures)

    def decode_known(self, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]) -> Masks:
        """The weighted mean (`learned_shares`) of the base model's own output and of the learned ones: the output with
        the structure's map as a mask prompt, and that of a trained decoder if there is one. A prompt with its own mask,
        such as the one of the slice before, keeps it.
        """
        plain = self.decode(embedding, prompts)
        return self._with_learned(plain, embedding, prompts, structures) if structures else plain

    def _with_learned(
        self, plain: Masks, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]
    ) -> Masks:
        learned = []
        if prompts.masks is None:
            prompts = prompts.with_masks(self._as_prompts(self.maps.log_odds(maps_of(embedding), structures)))
            learned.append(self.decode(embedding, prompts))
        if self.trained is not None:
            learned.append(self._decode_trained(embedding, prompts, structures))
        if not learned:
            return plain
        shares = learned_shares(prompts.labels.cpu().numpy(), [masks.logits > 0 for masks in learned])
        return Masks(
            _mixed(plain.logits, [masks.logits for masks in learned], shares[:, None, None]),
            _mixed(plain.iou, [masks.iou for masks in learned], shares),
        )

    def _decode_trained(self, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]) -> Masks:
        """Output of the decoder that was trained with maps; only it receives the structure tokens."""
        assert self.trained is not None
        with self.trained.applied(self.network):
            return self.decode(embedding, prompts.with_tokens(self.trained.tokens_of(structures)))

    def _as_prompts(self, maps: Tensor) -> Tensor:
        return mask_prompts(maps, self.network.mask_input_size)


def learned_shares(labels: NDArray[Any], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Weights (N,) of the learned outputs in answers to prompts with these labels (N, P); `masks`: the mask (N, h, w)
    of each learned output.

    Half beside clicks, so that a poor map or decoder does little harm; a third beside a single click where the learned
    masks disagree; an eighth in a box, which leaves little to guess (measured, see BENCHMARKS.md).
    """
    common, either = np.logical_and.reduce(masks).sum((1, 2)), np.logical_or.reduce(masks).sum((1, 2))
    clicks = ((labels == POSITIVE) | (labels == NEGATIVE)).sum(1)
    doubtful = (clicks == 1) & (common < AGREED * either)
    in_box = (labels == BOX_CORNER_LOW).any(1)
    shares = np.where(doubtful, LEARNED_IF_DISAGREEING, LEARNED)
    return np.where(in_box, LEARNED_IN_BOX, shares).astype(np.float32)


def _mixed(plain: Any, learned: Sequence[Any], share: Any) -> Any:
    """The base model's output, arrays or tensors, with this share of the mean of the learned ones."""
    return (1 - share) * plain + share * (sum(learned) / len(learned))


def maps_of(embedding: Embedding) -> PixelMaps:
    """Pixel features of an encoded slice."""
    if not isinstance(embedding, SeenEmbedding) or embedding.image is None:
        raise TypeError("Maps answer embeddings that their own predictor made.")
    return pixel_maps(embedding.image, embedding)


def derived_prompts(
    maps: Tensor, ways: Sequence[str], image_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Coordinates (N, 3, 2) and labels (N, 3) of a click, and if requested a box, on the most certain part of each map
    (N, g, g); only padding where the decoder is not to be used, or the map says that the structure is absent.
    """
    coords = np.zeros((len(maps), FIRST_PROMPT, 2), np.float32)
    labels = np.full((len(maps), FIRST_PROMPT), PADDING, np.int64)
    stride = image_size / maps.shape[-1]
    for row, (odds, way) in enumerate(zip(maps.cpu().numpy(), ways, strict=True)):
        parts, count = ndimage.label(odds > 0)
        if way == MAP or not count:
            continue
        probability = 1 / (1 + np.exp(-odds))
        best = parts == 1 + int(np.argmax(ndimage.sum_labels(probability, parts, range(1, count + 1))))
        # From grid pixels to network pixels; a box extends to the outer edge of its pixels.
        coords[row, 0], labels[row, 0] = (np.array(centre_click(best)) + 0.5) * stride - 0.5, POSITIVE
        if way == BOX:
            low, high = tight_box(best)
            coords[row, 1:] = np.stack([low * stride, (high + 1) * stride - 1])
            labels[row, 1:] = BOX_CORNER_LOW, BOX_CORNER_HIGH
    return coords, labels


def expected_iou(logits: Tensor) -> Tensor:
    """(N,): expected IoU under calibrated probabilities; for an empty mask, the probability of absence."""
    probability = torch.sigmoid(logits.float())
    inside = probability > 0.5
    both = (probability * inside).sum((1, 2))
    either = inside.sum((1, 2)) + (probability * ~inside).sum((1, 2))
    return torch.where(inside.any(-1).any(-1), both / either, 1 - probability.amax((1, 2)))
