"""GMISeg: one adapter for unseen structures, trained on many tasks.

Xu, "GMISeg: General Medical Image Segmentation without Re-Training" (2024): train on many segmentation tasks with
simulated points and boxes, so that the model generalizes, with prompts or a support set, to structures it was not
trained on. Every data set is a task of its own, and tasks are sampled uniformly; of a volume the middle slices along
the three planes are used. Loss: focal + Dice, and the error of the predicted IoU, by which masks are ranked.

Trainable are Loose LoRA in the attention of the image encoder's last blocks (`encoder_blocks`), and in full the prompt
encoder, which has few parameters, and the mask decoder. The compact base models train all blocks. On a CPU SAM and
`bundled` train none, for time, so that Loose LoRA is in the decoder's attention; `encoder_blocks=-1` trains all.

Unspecified in the paper: its eq. 2 and Fig. 3 (see `lora.layers.LooseLowRank`); optimizer and steps (ours are those of
our other methods); "augmentation segmentation tasks" (our random transforms, see `SynthesisRecipe`). Its scores cannot
serve as a reference: a Jaccard above the Dice of the same row, for one. Flips are disabled where a structure name is
lateralised.

The adapter has no named structures: prompt it with clicks, or give it a support set (`inference.support`).

When to use it: labelled data sets of one kind at hand, and the next structure not among them. Cost: as one adaptation
with LoRA, increasing with the number of tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars
from FewShotSegLib.data.exemplar import preflight as preflight_of_task
from FewShotSegLib.data.intensity import PERCENTILES, IntensitySpec, Scale
from FewShotSegLib.data.recipe import option, to_dict
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import LabelledSlice, labelled_slices
from FewShotSegLib.inference.pictures import digest_of_piece
from FewShotSegLib.io.datasets import complete_exemplar
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.progress import note
from FewShotSegLib.sam.presets import smaller_preset
from FewShotSegLib.synthesis.plan import Sample, SynthesisRecipe
from FewShotSegLib.synthesis.synthesizer import Synthesizer
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.lesson import Lesson
from FewShotSegLib.training.losses import focal_loss
from FewShotSegLib.training.prompted import adapter_of, learn
from FewShotSegLib.training.prompted_recipe import PromptedRecipe, adaptation_spec, resolve

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

LABEL = "GMISeg: learn from many tasks, for new ones"
NEEDS = frozenset({"exemplars", "auxiliary"})
THINNEST = 16  # minimum slices of a labelled block to be resliced along its other planes


def _changes() -> SynthesisRecipe:
    """The paper's flips and noise, and our random transforms; no pasting, which would displace structures."""
    return SynthesisRecipe(original_probability=1.0, empty_probability=0.0, flip="both", noise_sd=0.05)


@dataclass(frozen=True)
class Recipe(PromptedRecipe):
    """Options of structure tokens have no effect: there are none."""

    kind: str = option("loose", "Type of low-rank update", choices=("lora", "loose"), advanced=True)
    full_decoder: bool = option(True, "Train the whole mask decoder instead of LoRA on it", advanced=True)
    most_points: int = option(
        3, "Maximum number of points per click prompt (GMISeg: one or more)", min=1, max=16, advanced=True
    )
    click_prompts: int = option(4, "Clicks and boxes per slice", min=1, max=32, advanced=True)
    token_prompts: int = option(0, "Structure tokens per slice; the method has none", min=0, max=0, advanced=True)
    estimate_folds: int = option(
        0, "Leave-one-out estimate; not available for this method", min=0, max=0, advanced=True
    )
    guard: str = option(
        "off", "Comparison with the base model; not available for this method", choices=("off",), advanced=True
    )
    cross_entropy_weight: float = option(1.0, "Weight of the focal loss (GMISeg: 1)", min=0.0, advanced=True)
    focal_gamma: float = option(2.0, "Exponent of the focal loss; 0 is cross-entropy", min=0.0, max=20.0, advanced=True)
    dice_weight: float = option(1.0, "Weight of the Dice loss (GMISeg: 1)", min=0.0, advanced=True)
    slices_per_plane: int = option(
        1, "Slices used of each volume along each plane (GMISeg: the middle one)", min=1, max=1000
    )
    max_cases: int = option(30, "Maximum number of cases per auxiliary data set", min=1, max=10_000, advanced=True)
    synthesizer: SynthesisRecipe = field(default_factory=_changes, metadata={"help": "Synthesis of training samples"})


def needs_base(recipe: Recipe) -> bool:
    """Whether a promptable base model is adapted."""
    return True


def preflight(exemplars: Sequence[Exemplar]) -> list[str]:
    """Warnings for each task separately."""
    return [warning for members in _groups(exemplars) for warning in preflight_of_task(members)]


def training_samples(inputs: AdaptInputs, recipe: Recipe, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` samples of all tasks."""
    mixture = _mixture(list(_tasks(inputs, recipe, recipe.image_size or 0, "sam")), recipe)
    return [mixture.draw(rng) for _ in range(count)]


def adapt(inputs: AdaptInputs, recipe: Recipe, run: RunContext) -> Adapter:
    """Train an adapter without structures of its own. Exemplars with the same structures form one task, each auxiliary
    data set is another.

    Without an intensity each volume uses its automatic one. The adapter stores one for volumes that come without: that
    of all volumes if they agree, else percentiles.
    """
    base, start = inputs.promptable_base, inputs.start
    recipe = resolve(recipe, base.family, base.device)
    tasks = list(_tasks(inputs, recipe, base.image_size, base.scale))
    own = _common([rule for task in tasks for rule in task.rules])
    mixture = _mixture(tasks, recipe)
    for sentence in mixture.notes:
        run.report(note(sentence))
    seed = run.new_seed()
    # There are no structures to find without clicks, so no locator is needed.
    spec = replace(adaptation_spec(recipe, base), locator=False)
    adaptation = Adaptation(base, spec, (), generator=torch.Generator().manual_seed(seed))
    if start is not None:
        adaptation.load(base, {name: t for name, t in start.tensors.items() if not name.startswith("locator.")})
    digests = [digest_of_piece(piece) for task in tasks for piece in task.slices]
    identity = (base.sha256, base.image_size, to_dict(recipe), seed, start.digest if start else "", digests)
    pixel_loss = functools.partial(focal_loss, gamma=recipe.focal_gamma)
    lesson = Lesson(base, adaptation, mixture, recipe, own.scale, seed, pixel_loss)
    fitted, _ = learn(lesson, run, "learning from tasks", identity=repr(identity), can_stop=True)
    return adapter_of(
        base,
        adaptation,
        recipe,
        method="gmiseg",
        structures={},
        intensity=own,
        seed=seed,
        axis=0,
        provenance={"tasks": [task.described() for task in tasks]},
        metrics={
            "steps": fitted.steps,
            "stopped_by": fitted.stopped_by,
            "held_back_dice": fitted.best_score,
            "best_step": fitted.best_step,
            "estimated_dice": None,
            "estimate": "not estimable: the structures to come are not known",
        },
    )


class Mixture:
    """Samples of several tasks, drawn uniformly."""

    def __init__(self, sources: Sequence[Synthesizer]) -> None:
        self.sources = tuple(sources)
        self.structures: dict[int, str] = {}  # label values differ in meaning between tasks
        self.notes = list(dict.fromkeys(note for source in sources for note in source.notes))

    def draw(self, rng: np.random.Generator) -> Sample:
        """A sample of a random task."""
        return self.sources[int(rng.integers(len(self.sources)))].draw(rng)


@dataclass(frozen=True, eq=False)
class _Task:
    """Training data from one data set: a few slices, their structures, and the intensity scaling."""

    name: str
    structures: dict[int, str]
    slices: list[LabelledSlice]
    rules: list[IntensitySpec]

    def described(self) -> dict[str, Any]:
        """For the card of the adapter."""
        sources = [piece.source for piece in self.slices]
        return {"name": self.name, "structures": list(self.structures.values()), "slices": sources}


def _mixture(tasks: Sequence[_Task], recipe: Recipe) -> Mixture:
    return Mixture([Synthesizer(task.slices, (), (), recipe.synthesizer, task.structures) for task in tasks])


def _tasks(inputs: AdaptInputs, recipe: Recipe, image_size: int, scale: Scale) -> Iterator[_Task]:
    """Volumes are read one at a time; only their slices are kept."""
    if not inputs.exemplars and not inputs.auxiliary:
        raise InputError("At least one exemplar is needed, or a folder of labelled data sets.")
    reader = functools.partial(_read, inputs.intensity, scale, image_size, recipe.slices_per_plane)
    for members in _groups(inputs.exemplars):
        yield _task(members[0].name, check_exemplars(members), members, reader)
    for data_set in inputs.auxiliary:
        cases = (complete_exemplar(case) for case in data_set.cases[: recipe.max_cases])
        yield _task(data_set.name, None, cases, reader)


def _read(
    intensity: IntensitySpec | None, scale: Scale, image_size: int, per_plane: int, exemplar: Exemplar
) -> tuple[IntensitySpec, list[LabelledSlice]]:
    """The intensity scaling of a volume, and its training slices."""
    rule = replace(intensity or IntensitySpec.auto(exemplar.volume), scale=scale)
    return rule, middle_slices(exemplar, rule, image_size, per_plane)


def _groups(exemplars: Sequence[Exemplar]) -> list[list[Exemplar]]:
    """Group exemplars with the same structures."""
    groups: dict[tuple[tuple[int, str], ...], list[Exemplar]] = {}
    for exemplar in exemplars:
        groups.setdefault(tuple(sorted(exemplar.structures.items())), []).append(exemplar)
    return list(groups.values())


def _task(
    name: str,
    structures: dict[int, str] | None,
    exemplars: Iterable[Exemplar],
    read: Callable[[Exemplar], tuple[IntensitySpec, list[LabelledSlice]]],
) -> _Task:
    task = _Task(name, dict(structures or {}), [], [])
    for exemplar in exemplars:
        rule, slices = read(exemplar)
        task.rules.append(rule)
        task.slices.extend(slices)
        for value, structure in exemplar.structures.items():
            if task.structures.setdefault(value, structure) != structure:
                raise InputError(
                    f'{exemplar.name} calls label {value} "{structure}", another case of {name} '
                    f'"{task.structures[value]}"; use the same labels throughout a data set.'
                )
    return task


def _common(rules: Sequence[IntensitySpec]) -> IntensitySpec:
    """The intensity of all volumes if they agree, else a generic one."""
    return rules[0] if len(set(rules)) == 1 else IntensitySpec("percentile", *PERCENTILES, scale=rules[0].scale)


def middle_slices(
    exemplar: Exemplar, intensity: IntensitySpec, image_size: int, per_plane: int = 1
) -> list[LabelledSlice]:
    """The `per_plane` labelled slices closest to the middle of the labelled ones, along each plane.

    The other two planes are resliced where consecutive slices are all annotated, through the longest such block;
    elsewhere their labels are unknown.
    """
    labelled = [index for index in exemplar.annotated_slices if exemplar.labels_on(index).any()]
    own = replace(exemplar, annotated_slices=_middle(labelled, per_plane), empty_slices=())
    slices = labelled_slices(own, intensity, image_size)
    block = _longest_block(sorted({*exemplar.annotated_slices, *exemplar.empty_slices}))
    if len(block) < THINNEST:
        return slices
    part = _cut(exemplar, block)
    # Percentiles are of the whole volume, as at inference.
    fixed = intensity if intensity.kind != "percentile" else _as_window(intensity, exemplar.volume)
    for axis in {0, 1, 2} - {exemplar.axis}:
        shown = np.flatnonzero(part.labelmap.any(axis=tuple({0, 1, 2} - {axis}))).tolist()
        across = replace(part, axis=axis, annotated_slices=_middle(shown, per_plane), empty_slices=())
        slices += labelled_slices(across, fixed, image_size)
    return slices


def _middle(indices: Sequence[int], count: int) -> tuple[int, ...]:
    first = max((len(indices) - count) // 2, 0)
    return tuple(indices[first : first + count])


def _longest_block(indices: Sequence[int]) -> range:
    """The longest run of consecutive integers; the first on ties."""
    best = run = range(0)
    for index in indices:
        run = range(run.start, index + 1) if run and index == run.stop else range(index, index + 1)
        best = run if len(run) > len(best) else best
    return best


def _cut(exemplar: Exemplar, block: range) -> Exemplar:
    """The exemplar's block of slices as a separate volume."""
    at = tuple(slice(block.start, block.stop) if axis == exemplar.axis else slice(None) for axis in range(3))
    affine = exemplar.volume.affine.copy()
    affine[:3, 3] += affine[:3, 2 - exemplar.axis] * block.start
    volume = Volume(exemplar.volume.array[at], affine)
    return Exemplar(
        volume, exemplar.labelmap[at], exemplar.structures, exemplar.axis, tuple(range(len(block))), (), exemplar.name
    )


def _as_window(intensity: IntensitySpec, volume: Volume) -> IntensitySpec:
    low, high = intensity.range_of(volume.array) or (0.0, 0.0)
    return IntensitySpec("window", low, high, intensity.scale) if high > low else intensity
