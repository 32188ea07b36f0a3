"""From labelled images of one kind to unlabelled ones of another, such as CT to MR, without drawing a contour.

Zhu et al., "A novel pseudo label-based unsupervised multiple target domain adaptation framework for abdominal organ
segmentation" (FLARE 2024). Four parts: a CycleGAN makes the labelled images look like the unlabelled, as they are or
as *anatomy images*, the edges of both kinds (ASIT, `space=anatomy`); a teacher trained on these labels the targets, in
rounds; targets that the rounds disagree on borrow the labels of a similar target by registration (MDM); those that stay
uncertain are left out (PLF). A small fast network learns from what is left.

Departures, each argued where it is made: see `anatomy_space`, `translation`, `registration` and `pseudo_labels`.
Translated volumes whose edges have drifted are not trained on. A borrowed label counts as one more round, so it is
filtered too. Intensities and two rounds are the defaults, because they were better on real cases than the paper's edges
and three (Testing/BENCHMARKS.md).

When to use it: labelled CT (or any other kind) and a stack of unlabelled MR. Cost: about an hour on one CPU core,
by the preset; every stage is kept and not computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.volume_network import grid_to_dict, network_arguments
from FewShotSegLib.io.datasets import DataSet
from FewShotSegLib.progress import Report
from FewShotSegLib.sam.network import PromptableNetwork

from .recipe import Recipe, needs_base, resolve, smaller_preset
from .stages import Sources, Stages

__all__ = ["LABEL", "NEEDS", "Recipe", "adapt", "needs_base", "resolve", "smaller_preset"]

LABEL = "UDA: from labelled to unlabelled images of another kind"
NEEDS = frozenset({"source", "targets"})


def adapt(
    base: PromptableNetwork | None,
    exemplars: Sequence[Any],
    targets: Mapping[str, Volume],
    source: Sequence[DataSet],
    recipe: Recipe | None = None,
    *,
    rng: np.random.Generator,
    report: Report,
    intensity: IntensitySpec | None = None,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
    start: Adapter | None = None,
    device: torch.device | None = None,
) -> Adapter:
    """Trains a small network for the structures of the one labelled `source`, on images like the `targets`.

    `targets` {name: volume} are unlabelled. `intensity` is the targets'. Stages are kept in the cache folder, by
    content; `checkpoint` is not needed. Metrics hold what every stage decided.
    """
    device = device or torch.device("cpu")
    recipe = resolve(recipe or Recipe(), "", device)
    if start is not None:
        raise InputError("This method does not go on from an adapter; leave the warm start out.")
    if max_seconds is not None:
        raise InputError("This method has no time limit; choose fewer steps or rounds in the recipe.")
    if len(targets) < 2:
        raise InputError(f"At least 2 unlabelled target volumes are needed, got {len(targets)}; more are better.")
    if len(source) != 1:
        names = ", ".join(data_set.name for data_set in source) or "none"
        raise InputError(
            f"The labelled images must be one data set, got {len(source)} ({names}); choose its own folder."
        )
    seed = int(rng.integers(2**31))
    run = Stages(Sources(source[0]), dict(targets), recipe, seed, device, report, intensity)
    weights = run.all_stages()
    return Adapter(
        tensors=weights,
        method="uda",
        recipe=to_dict(recipe),
        base_model="",
        base_sha256="",
        structures=run.structures,
        intensity=run.target_intensity,
        image_size=max(run.grid.patch),
        seed=seed,
        axis=next(iter(targets.values())).acquisition_axis,
        provenance={"source": source[0].name, "source_cases": len(source[0].cases), "targets": sorted(targets)},
        metrics=run.metrics,
        architecture={
            "network": network_arguments(run.grid, run.training.network, run.training.size, len(run.structures) + 1),
            "head": "classes",
            "grid": grid_to_dict(run.grid),
            "anatomy": run.anatomy.to_dict() if run.anatomy else None,
            "resample": "labels",
        },
    )


# --------------------------------------------------------------------------------------------------------------- stages
