"""Segmentation from a support set alone: it is given with the slice at inference, and nothing is trained.

This is the setting of GMISeg (Xu 2024) and before it UniverSeg (Butoi et al. 2023); how GMISeg uses its support set is
not described. Ours: the pixels of the support slices, and of augmented copies, train a classifier on the encoder's
features (`pixel_classifier`); its map of each structure is passed to the mask decoder (`structure_maps`); and held-out
support slices decide, for each structure, whether map and decoder together are better than the map alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from FewShotSegLib.data.adapter import Adapter, check_base
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import check, from_dict, option, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import in_one_piece, shown_together
from FewShotSegLib.progress import Report, silent
from FewShotSegLib.sam.network import Embedding, PromptableNetwork

from .embedding_cache import EmbeddingCache
from .map_fitting import decided, fitted_classifier, samples_of, tried
from .pictures import Picture, distinct_slices, pictures_of
from .predictor import Masks
from .structure_maps import MapPredictor, expected_iou, maps_of

METHOD = "support"
SUBSET = 6  # slices; in the paper, ensembles help with more than six


@dataclass(frozen=True)
class SupportRecipe:
    """How a support set is used."""

    pictures: int = option(12, "Minimum number of slices and augmented copies to fit; 1: no copies", min=1, max=256)
    pixels: int = option(12_000, "Number of pixels sampled from them", min=100, max=1_000_000)
    most_slices: int = option(64, "Maximum number of slices; more are subsampled evenly", min=1, max=1024)
    subsets: int = option(
        0, "Number of random six-slice subsets to average over (GMISeg); 0: all slices at once", min=0, max=64
    )
    seed: int = option(0, "Random seed of augmentation, pixels and subsets", min=0)

    def __post_init__(self) -> None:
        check(self)


def support_adapter(
    exemplars: Sequence[Exemplar],
    base: PromptableNetwork,
    *,
    intensity: IntensitySpec | None = None,
    recipe: SupportRecipe | None = None,
) -> Adapter:
    """The support set as an adapter of `base`: its tensors are the slices themselves, so its file contains patient
    images.

    Duplicate slices count once, and the order does not matter.
    """
    recipe = recipe or SupportRecipe()
    structures = check_exemplars(exemplars)
    intensity = intensity or replace(IntensitySpec.auto(exemplars[0].volume), scale=base.scale)
    chosen = list(distinct_slices(exemplars, intensity, base.image_size, recipe.most_slices).values())
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
        metrics={
            "in_one_piece": in_one_piece(chosen, structures),
            "shown_together": shown_together(chosen, structures),
        },
    )


class SupportPredictor(MapPredictor):
    """A predictor that knows the structures of a support set (see `support_adapter`).

    `trained` is an adapter used for encoding, such as one of GMISeg. User prompts replace the derived click, box and
    mask; with several subsets, the mean of their maps is then used.
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
        super().__init__(network, support, looks=trained, cache=cache)
        recipe = from_dict(SupportRecipe, support.recipe)
        structures = tuple(support.structures)
        pictures = pictures_of(_slices_of(support), recipe.pictures, recipe.seed)
        with self.ready():
            samples = samples_of(self, pictures, structures, recipe.pixels, recipe.seed, report)
            classifiers, left_out = [], []
            for sources in _subsets(len(support.tensors["images"]), recipe):
                classifier, odds = fitted_classifier(self, pictures, samples, sources, tried(pictures, sources))
                classifiers.append(classifier)
                left_out += list(odds.items())
            self.maps = decided(self, pictures, structures, classifiers, left_out)
        self.members = [replace(self.maps, classifiers=(classifier,)) for classifier in self.maps.classifiers]

    def decode_structures(self, embedding: Embedding, structures: Sequence[int]) -> Masks:
        """Target logits of structures without clicks: with several subsets, the mean of the subsets' mask logits, each
        decoded from its own map.
        """
        if len(self.members) == 1:
            return super().decode_structures(embedding, structures)
        ways = [self.maps.ways[row] for row in self.maps.rows(structures)]
        maps = maps_of(embedding)
        answers = [self.from_maps(embedding, member.log_odds(maps, structures), ways) for member in self.members]
        side = max(answer.shape[-1] for answer in answers)  # a map that was not decoded is coarser
        resized = [F.interpolate(answer[:, None], (side, side), mode="bilinear")[:, 0] for answer in answers]
        logits = torch.stack(resized).mean(0)
        return Masks(logits.cpu().numpy(), expected_iou(logits).cpu().numpy())


def _subsets(count: int, recipe: SupportRecipe) -> list[list[int]]:
    """The training slices of each classifier."""
    if not recipe.subsets or count <= SUBSET:
        return [list(range(count))]
    rng = np.random.default_rng(recipe.seed)
    return [sorted(rng.choice(count, SUBSET, replace=False).tolist()) for _ in range(recipe.subsets)]


def _slices_of(support: Adapter) -> list[Picture]:
    images, labels, contents = (support.tensors[name] for name in ("images", "labels", "contents"))
    return [
        Picture(image.copy(), known.copy(), (int(height), int(width)), source, True)
        for source, (image, known, (height, width)) in enumerate(zip(images, labels, contents, strict=True))
    ]
