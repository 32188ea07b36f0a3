"""Segmenting from exemplars alone: a support set is given with the slice, and nothing is trained.

GMISeg (Xu 2024) and before it UniverSeg (Butoi et al. 2023) ask for this; how GMISeg's support set acts is not written.
Ours: the pixels of the support slices, and of transformed copies of them, teach a classifier of the encoder's features
(`pixels`); its map of each structure is handed to the mask decoder as a mask prompt with a click or a box on its best
part; and supports left out in turn decide, for each structure, whether map and decoder together know it better than the
map alone. Slices are never mirrored: left stays left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from FewShotSegLib.data.adapter import Adapter, check_base
from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import check, from_dict, option, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import LabelledSlice, background_slices, labelled_slices
from FewShotSegLib.progress import Progress, Report, silent
from FewShotSegLib.sam.clicks import FIRST_PROMPT, centre_click, tight_box
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    MOST_LOGIT,
    PADDING,
    POSITIVE,
    Embedding,
    PromptableNetwork,
    PromptBatch,
)

from .embedding_cache import EmbeddingCache
from .pixel_classifier import (
    ContextClassifier,
    PixelClassifier,
    PixelMaps,
    PixelSamples,
    context_of,
    drawn_pixels,
    pixel_maps,
    shares_of,
    together,
)
from .predictor import Masks, Predictor

METHOD = "support"
MAP, CLICK, BOX = "map", "click", "box"
WAYS = (CLICK, BOX, MAP)  # of answering; what left out slices say decides
OFFSETS = (0.0, 0.5, 1.0, 1.5)  # of log-odds: what is thin is never likely, and must be found all the same
FOLDS = 3
BATCH = 4  # pictures encoded together, which takes half the time
GAMMA, GAIN, BIAS, BLUR = 0.4, 0.1, 0.05, 0.7  # how far copies differ in brightness (0 to 1) and sharpness
MOST_TRIED = 6  # slices that ways are compared on
MARGIN = 0.01  # of Dice, below which a comparison of offsets says nothing
SUBSET = 6  # slices; the paper: ensembles help from more than six on


@dataclass(frozen=True)
class SupportRecipe:
    """How a support set is used."""

    pictures: int = option(
        12, "Slices and transformed copies of them to learn from, at least; 1: no copies", min=1, max=256
    )
    pixels: int = option(12_000, "Pixels drawn from all of them", min=100, max=1_000_000)
    most_slices: int = option(64, "Most slices used; of more, an even choice", min=1, max=1024)
    subsets: int = option(
        0, "Answers of so many random subsets of six slices are averaged (GMISeg); 0: all slices at once", min=0, max=64
    )
    seed: int = option(0, "Seed of copies, pixels and subsets", min=0)

    def __post_init__(self) -> None:
        check(self)


def support_adapter(
    exemplars: Sequence[Exemplar],
    base: PromptableNetwork,
    *,
    intensity: IntensitySpec | None = None,
    recipe: SupportRecipe | None = None,
) -> Adapter:
    """The support set as an adapter of `base`: its tensors are the slices themselves, so a file of it holds pictures of
    patients.

    Slices that occur twice count once, and their order does not matter.
    """
    recipe = recipe or SupportRecipe()
    structures = check_exemplars(exemplars)
    intensity = intensity or replace(IntensitySpec.auto(exemplars[0].volume), scale=base.scale)
    most = max(recipe.most_slices // len(exemplars), 1)
    pieces: dict[str, LabelledSlice] = {}
    for exemplar in exemplars:
        some = replace(exemplar, annotated_slices=_spread(exemplar, most))
        shown = labelled_slices(some, intensity, base.image_size)
        empty = background_slices(some, intensity, base.image_size, limit=max(len(shown), 1))
        for piece in (*shown, *empty):
            pieces[sha256_of_array(np.stack([piece.image, piece.labels]))] = piece
    chosen = [pieces[digest] for digest in sorted(pieces)]
    return Adapter(
        tensors={
            "images": np.stack([piece.image for piece in chosen]),
            "labels": np.stack([piece.labels for piece in chosen]).astype(np.int32),
            "contents": np.array([piece.frame.content for piece in chosen], np.int32),
        },
        method=METHOD,
        recipe=to_dict(recipe),
        base_model=base.name,
        base_sha256=base.sha256,
        structures=structures,
        intensity=intensity,
        image_size=base.image_size,
        seed=recipe.seed,
        axis=exemplars[0].axis,
        provenance={"slices": [piece.source for piece in chosen]},
    )


def _spread(exemplar: Exemplar, most: int) -> tuple[int, ...]:
    """Up to `most` annotated slices, evenly spread, and the largest one of each structure that these would miss."""
    indices = exemplar.annotated_slices
    if len(indices) <= most:
        return indices
    chosen = {indices[i] for i in np.linspace(0, len(indices) - 1, most).round().astype(int)}
    areas = {index: np.bincount(exemplar.labels_on(index).ravel(), minlength=2) for index in indices}
    for value in exemplar.annotated_structures():
        area = {index: counts[value] if value < len(counts) else 0 for index, counts in areas.items()}
        if not any(area[index] for index in chosen):
            chosen.add(max(indices, key=lambda index: area[index]))
    return tuple(sorted(chosen))


@dataclass(frozen=True, eq=False)
class SeenEmbedding(Embedding):
    """An embedding that knows its slice, (S, S) in [0, 1]."""

    image: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class _Picture:
    """A support slice, or a transformed copy of one; `source` numbers the slices."""

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    content: tuple[int, int]
    source: int
    original: bool


class SupportPredictor(Predictor):
    """A predictor that knows the structures of a support set (see `support_adapter`).

    `trained` is an adapter for the network to look with, such as one of GMISeg. `ways` says how each structure is
    answered. What a user points at takes the place of the click, box and mask that would be derived.
    """

    def __init__(
        self,
        network: PromptableNetwork,
        support: Adapter,
        *,
        trained: Adapter | None = None,
        cache: EmbeddingCache | None = None,
        report: Report = silent,
    ) -> None:
        if support.method != METHOD:
            raise InputError(f"A support set is expected here, got an adapter of the method {support.method!r}.")
        check_base(support, network.name, network.sha256)
        super().__init__(network, trained, scale=support.intensity.scale, cache=cache)
        self.adapter = support
        self.recipe = from_dict(SupportRecipe, support.recipe)
        self.structures = tuple(support.structures)
        pictures = _pictures(support, self.recipe)
        with self.ready():
            samples = self._samples(pictures, report)
            subsets = self._subsets(len(support.tensors["images"]))
            fitted = [self._fitted(pictures, samples, chosen) for chosen in subsets]
            self.classifiers = [classifier for classifier, _ in fitted]
            self._decide(pictures, [left_out for _, odds in fitted for left_out in odds.items()])

    @property
    def identity(self) -> tuple[str, int, str]:
        """All that decides the answers, the support set with it."""
        base, size, trained = super().identity
        return base, size, f"{trained} {self.adapter.digest if self.adapter else ''}"

    def knows(self, structure: int) -> bool:
        """Whether the support set shows this structure."""
        return structure in self.structures

    def encode(self, images01: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """Embeddings of network squares (S, S) in [0, 1], each with its image."""
        found = zip(super().encode(images01), images01, strict=True)
        return [SeenEmbedding(embedding.features, embedding.skips, image) for embedding, image in found]

    def decode_structures(self, embedding: Embedding, structures: Sequence[int]) -> Masks:
        """Target logits of structures of the support set, on one slice from `encode`."""
        rows = [self.structures.index(value) for value in structures]
        logits = self._answers(embedding, self._log_odds(embedding)[rows], [self.ways[row] for row in rows])
        return Masks(logits.cpu().numpy(), _expected_iou(logits).cpu().numpy())

    def _decode_both(self, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]) -> Masks:
        """The mean of the answers with and without the map of the structure as a mask prompt."""
        plain = self.decode(embedding, prompts)
        if not structures or prompts.masks is not None:
            return plain
        maps = self._log_odds(embedding)[[self.structures.index(value) for value in structures]]
        told = self.decode(embedding, prompts.with_masks(self._as_prompts(maps)))
        half = np.float32(0.5)
        return Masks(half * (plain.logits + told.logits), half * (plain.iou + told.iou))

    # ------------------------------------------------------------------------------------------------- set-up

    def _subsets(self, count: int) -> list[list[int]]:
        """The slices that each classifier learns from."""
        if not self.recipe.subsets or count <= SUBSET:
            return [list(range(count))]
        rng = np.random.default_rng(self.recipe.seed)
        return [sorted(rng.choice(count, SUBSET, replace=False).tolist()) for _ in range(self.recipe.subsets)]

    def _samples(self, pictures: Sequence[_Picture], report: Report) -> list[PixelSamples]:
        most = max(self.recipe.pixels // len(pictures), 1)
        samples = []
        for number, picture in enumerate(pictures):
            report(Progress(number, len(pictures), f"exemplar picture {number + 1} of {len(pictures)}"))
            if number % BATCH == 0:
                embeddings = self.encode([other.image for other in pictures[number : number + BATCH]])
            maps = _maps_of(embeddings[number % BATCH])
            rng = np.random.default_rng([self.recipe.seed, number])
            samples.append(drawn_pixels(maps, picture.labels, self.structures, picture.content, most, rng))
        return samples

    def _fitted(
        self, pictures: Sequence[_Picture], samples: Sequence[PixelSamples], sources: Sequence[int]
    ) -> tuple[ContextClassifier, dict[int, Tensor]]:
        """A classifier that learned from some of the slices, and its log-odds for some that were left out, by number.

        In turn a fold of the slices is left out of the first stage. The second stage learns from what the first says of
        pictures it did not see; left out again, the slices tell how each structure is best answered.
        """
        chosen = [number for number, picture in enumerate(pictures) if picture.source in sources]
        # A single slice is told by its copies.
        parts = {n: sources.index(pictures[n].source) if len(sources) > 1 else n for n in chosen}
        count = min(max(parts.values()) + 1, FOLDS)
        folds = [[n for n in chosen if parts[n] % count == fold] for fold in range(count)]
        kept = [[n for n in chosen if count == 1 or parts[n] % count != fold] for fold in range(count)]
        firsts = [PixelClassifier(together([samples[n] for n in known], every=2)) for known in kept]
        contexts: dict[int, Tensor] = {}
        tried: dict[int, tuple[PixelMaps, Tensor]] = {}
        wanted = set(np.linspace(0, len(sources) - 1, MOST_TRIED).round().astype(int).tolist())
        for first, fold in zip(firsts, folds, strict=True):
            for number in fold:
                picture = pictures[number]
                maps = _maps_of(self.encode([picture.image])[0])
                context = context_of(first.log_odds(maps))
                contexts[number] = context.flatten(1)[:, samples[number].where].T
                if picture.original and sources.index(picture.source) in wanted:
                    tried[number] = maps, context
        seconds = [
            PixelClassifier(together([samples[n] for n in known]), torch.cat([contexts[n] for n in known]))
            for known in kept
        ]
        odds = {
            n: second.log_odds(*tried[n])
            for second, fold in zip(seconds, folds, strict=True)
            for n in fold
            if n in tried
        }
        return ContextClassifier(firsts, seconds), odds

    def _decide(self, pictures: Sequence[_Picture], left_out: Sequence[tuple[int, Tensor]]) -> None:
        """Chooses offsets and ways by what left out slices (number, log-odds) would have been given."""
        overlaps = np.zeros((len(OFFSETS), 2, len(self.structures)))
        for number, found in left_out:
            overlaps += np.stack([self._overlap(found + offset, pictures[number].labels) for offset in OFFSETS])
        self.offsets = torch.tensor([OFFSETS[row] for row in _best(overlaps, MARGIN)], device=self.device)
        overlaps = np.zeros((len(WAYS), 2, len(self.structures)))
        for number, found in left_out:
            embedding = self.encode([pictures[number].image])[0]
            moved = found + self.offsets[:, None, None]
            answers = (self._answers(embedding, moved, [way] * len(moved)) for way in WAYS)
            overlaps += np.stack([self._overlap(answer, pictures[number].labels) for answer in answers])
        self.ways = [WAYS[row] for row in _best(overlaps)]

    def _overlap(self, logits: Tensor, labels: NDArray[np.int32]) -> NDArray[np.int64]:
        """(2, K): pixels in answer and truth, and the sum of the pixels of both."""
        truth = shares_of(labels, self.structures, logits.shape[-1])[1:].to(logits.device) > 0.5
        found = logits > 0
        both, total = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
        return torch.stack([both, total]).cpu().numpy()

    # ------------------------------------------------------------------------------------------------- answering

    def _log_odds(self, embedding: Embedding) -> Tensor:
        """(K, g, g): the mean of the classifiers' answers, moved to where Dice is largest."""
        maps = _maps_of(embedding)
        odds = torch.stack([classifier.log_odds(maps) for classifier in self.classifiers]).mean(0)
        return odds + self.offsets[:, None, None]

    def _answers(self, embedding: Embedding, maps: Tensor, ways: Sequence[str]) -> Tensor:
        """Logits (N, h, w): the maps (N, g, g), or their means with what the decoder makes of them."""
        coords, labels = _derived_prompts(maps, ways, self.image_size)
        asked = np.flatnonzero(labels[:, 0] == POSITIVE)
        if not len(asked):
            return maps
        device, rows = maps.device, torch.from_numpy(asked)
        prompts = PromptBatch(torch.from_numpy(coords[asked]).to(device), torch.from_numpy(labels[asked]).to(device))
        decoded = self.decode(embedding, prompts.with_masks(self._as_prompts(maps[rows])))
        logits = torch.from_numpy(decoded.logits).to(device).clamp(-MOST_LOGIT, MOST_LOGIT)
        answers = F.interpolate(maps[:, None], logits.shape[-2:], mode="bilinear")[:, 0]
        answers[rows] = 0.5 * (answers[rows] + logits)
        return answers

    def _as_prompts(self, maps: Tensor) -> Tensor:
        """Mask prompts (N, 1, m, m)."""
        side = (self.network.mask_input_size,) * 2
        return F.interpolate(maps[:, None], side, mode="bilinear").clamp(-MOST_LOGIT, MOST_LOGIT)


def _best(overlaps: NDArray[np.float64], margin: float = 0.0) -> list[int]:
    """The choice with the largest Dice for each structure, from overlaps (choices, 2, K); the first one where it is
    worse by no more than the margin.
    """
    dice = 2 * overlaps[:, 0] / np.maximum(overlaps[:, 1], 1)
    dice[0] += margin
    return [int(row) for row in dice.argmax(0)]


def _maps_of(embedding: Embedding) -> PixelMaps:
    if not isinstance(embedding, SeenEmbedding) or embedding.image is None:
        raise TypeError("A support set answers embeddings that its own predictor made.")
    return pixel_maps(embedding.image, embedding)


def _pictures(support: Adapter, recipe: SupportRecipe) -> list[_Picture]:
    """The slices, each followed by its copies."""
    images, labels, contents = (support.tensors[name] for name in ("images", "labels", "contents"))
    count = len(images)
    copies = max(-(-recipe.pictures // count) - 1, 1 if count <= 2 * recipe.pictures else 0)
    pictures = []
    for source in range(len(images)):
        height, width = (int(side) for side in contents[source])
        slice_ = _Picture(images[source].copy(), labels[source].copy(), (height, width), source, True)
        pictures.append(slice_)
        pictures += [_copy(slice_, np.random.default_rng([recipe.seed, source, n])) for n in range(copies)]
    return pictures


def _copy(picture: _Picture, rng: np.random.Generator) -> _Picture:
    """Turned, scaled, shifted, brightened and blurred a little: what differs between patients; never mirrored."""
    size = picture.image.shape[0]
    angle, scale = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.18)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(picture.content) - 1) / 2
    offset = centre - turn @ (centre + rng.uniform(-0.05, 0.05, 2) * size)
    image = ndimage.affine_transform(picture.image, turn, offset, order=1)
    image = np.clip(image, 0, 1) ** np.exp(rng.uniform(-GAMMA, GAMMA))
    image = np.clip(image * rng.uniform(1 - GAIN, 1 + GAIN) + rng.uniform(-BIAS, BIAS), 0, 1)
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLUR)).astype(np.float32)
    labels = ndimage.affine_transform(picture.labels, turn, offset, order=0)
    beyond = np.ones((size, size), bool)
    beyond[: picture.content[0], : picture.content[1]] = False
    image[beyond], labels[beyond] = 0, 0
    return replace(picture, image=image, labels=labels, original=False)


def _derived_prompts(
    maps: Tensor, ways: Sequence[str], image_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Coordinates (N, 3, 2) and labels (N, 3) of a click, and where wanted a box, on the most certain part of each map
    (N, g, g); padding alone where the decoder is not to be asked, or the map says that the structure is absent.
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
        # From pixels of the grid to those of the network; a box reaches to the outer edge of its pixels.
        coords[row, 0], labels[row, 0] = (np.array(centre_click(best)) + 0.5) * stride - 0.5, POSITIVE
        if way == BOX:
            low, high = tight_box(best)
            coords[row, 1:] = np.stack([low * stride, (high + 1) * stride - 1])
            labels[row, 1:] = BOX_CORNER_LOW, BOX_CORNER_HIGH
    return coords, labels


def _expected_iou(logits: Tensor) -> Tensor:
    """(N,): the IoU to be expected if the probabilities are right; of an empty mask, that nothing is there."""
    probability = torch.sigmoid(logits.float())
    inside = probability > 0.5
    both = (probability * inside).sum((1, 2))
    either = inside.sum((1, 2)) + (probability * ~inside).sum((1, 2))
    return torch.where(inside.any(-1).any(-1), both / either, 1 - probability.amax((1, 2)))
