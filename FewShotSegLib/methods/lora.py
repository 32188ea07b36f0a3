"""LoRA on a promptable model, taught by samples synthesized from a few exemplars.

Feng, Zhu and Yu, "Cheap Lunch for Medical Image Segmentation by Fine-tuning SAM on Few Exemplars" (2023): paste the
exemplars' structures, transformed, onto backgrounds; train low-rank updates of image encoder and mask decoder on the
result with point prompts. Departures, each an option: structure tokens, so that the adapter also works without clicks;
whole transformed exemplar slices among the pasted ones; boxes and corrective clicks among the prompts.

When to use it: from one annotated slice on. Cost: a minute on a laptop with the bundled model, minutes on a GPU with
SAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.progress import Report
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.presets import smaller_preset
from FewShotSegLib.training.prompted import adapt_prompted, synthesizer_of
from FewShotSegLib.training.prompted_recipe import PromptedRecipe, resolve

__all__ = ["LABEL", "NEEDS", "Recipe", "adapt", "needs_base", "resolve", "smaller_preset", "synthesizer_of"]

LABEL = "LoRA with synthesized exemplars"
NEEDS = frozenset({"exemplars"})
Recipe = PromptedRecipe


def needs_base(recipe: PromptedRecipe) -> bool:
    """Whether a promptable base model is adapted."""
    return True


def adapt(
    base: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    targets: Sequence[Any] = (),
    auxiliary: Sequence[Any] = (),
    recipe: PromptedRecipe | None = None,
    *,
    rng: np.random.Generator,
    report: Report,
    intensity: IntensitySpec | None = None,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
    start: Adapter | None = None,
) -> Adapter:
    """Trains an adapter for the exemplars' structures on `base`; see `adapt_prompted`. Targets and auxiliary data are
    not used.
    """
    return adapt_prompted(
        base, exemplars, recipe or Recipe(), method="lora", rng=rng, report=report, intensity=intensity,
        max_seconds=max_seconds, checkpoint=checkpoint, start=start,
    )  # fmt: skip
