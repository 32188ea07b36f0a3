"""3-D patches as slices for a contact sheet, for visual inspection of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.synthesis.plan import Sample

from .patches import PatchRecipe, PatchSource, case_of


def patch_samples(
    exemplars: Sequence[Exemplar],
    structures: Mapping[int, str],
    grid: Grid,
    intensity: IntensitySpec,
    recipe: PatchRecipe,
    rng: np.random.Generator,
    count: int,
) -> list[Sample]:
    """`count` patches of the exemplars, sampled and augmented as in training; each shows one structure."""
    samples = []
    for number in range(count):
        exemplar = exemplars[number % len(exemplars)]
        value = list(structures)[number // len(exemplars) % len(structures)]
        case = case_of(exemplar, value, grid, intensity)
        patch = PatchSource([case], grid, recipe, [structures[value]], torch.device("cpu")).draw(rng)
        labels = value * patch.mask.numpy().astype(np.int32)
        caption = f"{exemplar.name}: {structures[value]}"
        samples.append(shown_slice(patch.image.numpy(), labels, caption, structures, patch.known.numpy()))
    return samples


def shown_slice(
    image: NDArray[Any],
    labels: NDArray[np.int32],
    caption: str,
    structures: Mapping[int, str],
    known: NDArray[np.bool_] | None = None,
) -> Sample:
    """The slice (H, W) of a patch (D, H, W) with the most foreground."""
    at = int(np.argmax(np.count_nonzero(labels, axis=(1, 2))))
    provenance = {"caption": caption, "structures": dict(structures)}
    some = None if known is None or known.all() else known[at]
    return Sample(image[at].astype(np.float32), labels[at], some, provenance)
