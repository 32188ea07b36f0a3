"""From labelled images of one kind to unlabelled ones of another, such as CT to MR, without manual contours.

Zhu et al., "A novel pseudo label-based unsupervised multiple target domain adaptation framework for abdominal organ
segmentation" (FLARE 2024). Four parts: a CycleGAN translates the labelled images to the target domain, as intensities
or as *anatomy images*, the edges of both kinds (ASIT, `space=anatomy`); a teacher trained on them labels targets,
and uncertain targets get the labels of a similar target by registration (MDM); further teachers are successively
trained on the updated labels too (self-training); targets whose labels change in these rounds are filtered out (PLF). A
small fast network is trained on the rest.

Departures, each explained where it is made: see `anatomy_space`, `translation`, `registration` and `pseudo_labels`.
Translated volumes whose edges have drifted are not used for training. Lenders are chosen by domain, if names tell it,
or by the confidence of the first teacher. Intensities are the default, because they were better on real cases than the
paper's edges (Testing/BENCHMARKS.md). `preset=paper` is the paper as far as it is specified (`recipe`).

When to use it: labelled CT (or any other kind) and a stack of unlabelled MR. Cost: about forty minutes on one CPU core
with the preset `cpu`; every stage is cached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.volume_network import grid_to_dict, network_arguments
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training import data_parallel
from FewShotSegLib.training.context import AdaptInputs, RunContext

from .recipe import Recipe, needs_base, resolve, smaller_preset
from .stages import Sources, Stages

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

LABEL = "UDA: from a labelled source to an unlabelled target domain"
NEEDS = frozenset({"source", "targets"})


def preflight(exemplars: Sequence[Exemplar]) -> list[str]:
    """No warnings: this method uses no exemplars."""
    return []


def training_samples(inputs: AdaptInputs, recipe: Recipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` slices of patches: of labelled source cases, not yet translated, and of unlabelled targets."""
    stages = _stages(inputs, recipe, 0, RunContext(rng))
    return [stages.training_sample(number, rng) for number in range(count)]


def adapt(inputs: AdaptInputs, recipe: Recipe, run: RunContext) -> Adapter:
    """Train a small network for the structures of the labelled source, on images like the targets.

    The intensity is the targets'. Stages are cached by content; a checkpoint of the run is not needed. Metrics record
    the decisions of every stage.
    """
    data_parallel.refuse("The method uda works", "start the command without torchrun")
    recipe = resolve(recipe, "", run.device)
    if inputs.start is not None:
        raise InputError("This method cannot continue from an adapter; leave the warm start out.")
    if run.max_seconds is not None:
        raise InputError(
            "This method cannot end at a time limit; set none, and choose fewer steps or rounds if it takes too long."
        )
    seed = run.new_seed()
    stages = _stages(inputs, recipe, seed, run)
    weights, training = stages.result()
    grid = stages.grid
    return Adapter(
        tensors=weights,
        method="uda",
        recipe=to_dict(recipe),
        base_model="",
        base_sha256="",
        structures=stages.structures,
        intensity=stages.target_intensity,
        image_size=max(grid.patch),
        seed=seed,
        axis=next(iter(inputs.targets.values())).acquisition_axis,
        provenance={
            "source": stages.sources.name,
            "source_cases": len(stages.sources.volumes),
            "targets": sorted(inputs.targets),
        },
        metrics=stages.metrics,
        architecture={
            "network": network_arguments(grid, training.network, training.size, len(stages.structures) + 1),
            "head": "classes",
            "grid": grid_to_dict(grid),
            "anatomy": stages.anatomy.to_dict() if stages.anatomy else None,
            "edges": recipe.edges,
            "decide": recipe.decide,
            "resample": "labels",
        },
    )


def _stages(inputs: AdaptInputs, recipe: Recipe, seed: int, run: RunContext) -> Stages:
    if len(inputs.targets) < 2:
        raise InputError(
            f"At least 2 unlabelled target volumes are needed, got {len(inputs.targets)}; more are better."
        )
    if inputs.source is None:
        raise InputError("A labelled source data set is needed, got none; choose its folder.")
    sources = Sources(inputs.source)
    return Stages(sources, dict(inputs.targets), recipe, seed, run.device, run.report, inputs.intensity)
