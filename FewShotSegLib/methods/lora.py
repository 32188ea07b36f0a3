"""LoRA on a promptable model, trained on samples synthesized from a few exemplars.

Feng, Zhu and Yu, "Cheap Lunch for Medical Image Segmentation by Fine-tuning SAM on Few Exemplars" (2023): paste the
exemplars' structures, transformed, onto backgrounds; train low-rank updates of image encoder and mask decoder on the
result with point prompts. Departures, each an option that `preset=paper` (several organs) and `preset=paper tumour`
undo: structure tokens, so that the adapter also works without clicks; whole transformed exemplar slices and rims in
addition to pasting; boxes, central and corrective clicks among the prompts; Dice without the background; the error of
the predicted IoU in the loss; an unlimited number of samples. `paper tumour` also scales every slice by its own minimum
and maximum, as the paper does on BraTS, unless an intensity is given. These remain: organs are never mirrored; blur is
applied once, to the whole sample; placements that hide more than half of a structure (`min_visible`) are drawn again;
of each volume at most 16 empty slices are backgrounds; and where no slice is declared empty (the paper uses slices of
the training volumes without organs) structures are pasted on their own slice, inpainted. The paper's exponential decay
is, in SAMed's code, (1 - done)^0.9.

When to use it: from one annotated slice on. Cost: a minute on a laptop with a bundled model, minutes on a GPU with
SAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import preflight
from FewShotSegLib.data.intensity import IntensitySpec, Scale
from FewShotSegLib.data.recipe import option, with_preset
from FewShotSegLib.sam.presets import ALL_BLOCKS, smaller_preset
from FewShotSegLib.synthesis.plan import Sample, SynthesisRecipe
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.mapped import MapRecipe, adapt_with_maps, map_samples, resolve_maps
from FewShotSegLib.training.prompted import adapt_prompted
from FewShotSegLib.training.prompted import training_samples as synthesized_samples

__all__ = [
    "LABEL",
    "NEEDS",
    "Recipe",
    "adapt",
    "needs_base",
    "preflight",
    "resolve",
    "smaller_preset",
    "training_samples",
]

LABEL = "LoRA with synthesized exemplars"
NEEDS = frozenset({"exemplars"})

# Ranges of the transforms are ours: the paper gives none. Organs are not mirrored, as their location is fixed.
ORGANS = SynthesisRecipe(
    composite="paper",
    rim=0.0,
    elastic=0.0,
    noise_sd=0.0,
    structure_intensity=1.0,
    original_probability=0.0,
    move_together=False,
    empty_probability=0.0,
    keep_structure_probability=1.0,
)
# A tumour may be anywhere, in any orientation.
TUMOUR = replace(ORGANS, rotation_deg=180.0, flip="both", shift=0.25)
_PAPER: dict[str, Any] = {
    "structure_maps": False,
    "encoder_blocks": ALL_BLOCKS,
    "click_prompts": 1,
    "token_prompts": 0,
    "box_share": 0.0,
    "central_share": 0.0,
    "correction_probability": 0.0,
    "dice": "with background",
    "quality_weight": 0.0,
    "validate_every": 0,
    "estimate_folds": 0,
}
PAPERS: dict[str, dict[str, Any]] = {
    "paper": {**_PAPER, "pool_size": 1800, "synthesizer": ORGANS},
    "paper tumour": {**_PAPER, "pool_size": 4500, "synthesizer": TUMOUR},
}


@dataclass(frozen=True)
class Recipe(MapRecipe):
    """Options of a promptable model, and the paper's."""

    preset: str = option(
        "auto",
        "Hardware preset, by free GPU memory; paper: as in the paper, for several organs or a tumour",
        choices=("auto", "cpu", "8GB", "12GB", "24GB", *PAPERS),
    )


def needs_base(recipe: Recipe) -> bool:
    """Whether a promptable base model is adapted."""
    return True


def resolve(recipe: Recipe, family: str, device: torch.device) -> Recipe:
    """The recipe completed from the preset; the user's settings are kept."""
    return resolve_maps(with_preset(recipe, PAPERS.get(recipe.preset, {})), family, device)


def adapt(inputs: AdaptInputs, recipe: Recipe, run: RunContext) -> Adapter:
    """Train an adapter for the structures of the exemplars on the promptable base: in encoder and decoder
    (`adapt_prompted`), or with a frozen encoder (`adapt_with_maps`).
    """
    base = inputs.promptable_base
    resolved = resolve(recipe, base.family, base.device)
    inputs = _scaled_as_in_the_paper(inputs, resolved, base.scale)
    return (adapt_with_maps if resolved.structure_maps else adapt_prompted)(inputs, resolved, run, method="lora")


def training_samples(inputs: AdaptInputs, recipe: Recipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` training samples for this resolved recipe."""
    inputs = _scaled_as_in_the_paper(inputs, recipe)
    return (map_samples if recipe.structure_maps else synthesized_samples)(inputs, recipe, rng, count)


def _scaled_as_in_the_paper(inputs: AdaptInputs, recipe: Recipe, scale: Scale = "sam") -> AdaptInputs:
    """The inputs with the paper's min-max range of each slice for tumours, unless the user chose an intensity."""
    if recipe.preset != "paper tumour" or inputs.intensity is not None:
        return inputs
    return replace(inputs, intensity=IntensitySpec("minmax", 0.0, 1.0, scale))
