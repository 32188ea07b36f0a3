"""LoRA on a promptable model, taught by samples synthesized from a few exemplars.

Feng, Zhu and Yu, "Cheap Lunch for Medical Image Segmentation by Fine-tuning SAM on Few Exemplars" (2023): paste the
exemplars' structures, transformed, onto backgrounds; train low-rank updates of image encoder and mask decoder on the
result with point prompts. Departures, each an option: structure tokens, so that the adapter also works without clicks;
whole transformed exemplar slices among the pasted ones; boxes and corrective clicks among the prompts.

When to use it: from one annotated slice on. Cost: a minute on a laptop with the bundled model, minutes on a GPU with
SAM.
"""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import preflight
from FewShotSegLib.sam.presets import smaller_preset
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.mapped import adapt_with_maps, map_samples
from FewShotSegLib.training.prompted import adapt_prompted
from FewShotSegLib.training.prompted import training_samples as synthesized_samples
from FewShotSegLib.training.prompted_recipe import PromptedRecipe, resolve

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
Recipe = PromptedRecipe


def needs_base(recipe: PromptedRecipe) -> bool:
    """Whether a promptable base model is adapted."""
    return True


def adapt(inputs: AdaptInputs, recipe: PromptedRecipe, run: RunContext) -> Adapter:
    """Train an adapter for the structures of the exemplars on the promptable base: in encoder and decoder
    (`adapt_prompted`), or beside a frozen encoder (`adapt_with_maps`).
    """
    base = inputs.promptable_base
    if resolve(recipe, base.family, base.device).structure_maps:
        return adapt_with_maps(inputs, recipe, run, method="lora")
    return adapt_prompted(inputs, recipe, run, method="lora")


def training_samples(inputs: AdaptInputs, recipe: PromptedRecipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` samples of what would be trained on with this resolved recipe."""
    return (map_samples if recipe.structure_maps else synthesized_samples)(inputs, recipe, rng, count)
