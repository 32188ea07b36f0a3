"""Options of the method, and its hardware presets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from FewShotSegLib.data.recipe import check, option, with_preset
from FewShotSegLib.errors import InputError
from FewShotSegLib.training.patches import PatchRecipe

from .cycle_gan import TRANSLATION_PRESETS as TRANSLATIONS
from .pseudo_labels import PseudoLabelRecipe
from .registration import RegistrationRecipe


@dataclass(frozen=True)
class UdaPreset:
    """Sizes for a class of hardware."""

    steps: int
    patch: tuple[int, int, int]
    in_plane: int  # voxels of the longer side of a target slice
    size: str
    teacher_size: str
    translation: str


UDA_PRESETS = {
    # A patch is a whole slice: seen in part, a kidney may be the left or the right one.
    "cpu": UdaPreset(1500, (16, 96, 96), 96, "small", "small", "cpu"),
    "gpu": UdaPreset(3000, (32, 160, 160), 192, "paper", "large", "gpu"),
    "paper": UdaPreset(250_000, (40, 224, 192), 0, "paper", "large", "paper"),
}

# As specified in the paper, besides the sizes. Its z-scores are omitted: instance normalization makes a network nearly
# invariant to them, except at the borders. Unlabelled targets have no foreground, so their statistics are over all
# voxels. It trains on 300 MR and 100 CT, and augments like nnU-Net: foreground, rotation, scale, gain and gamma have
# its ranges (of isotropic patches), the rest is ours. In anatomy space intensities are not augmented, since an offset
# would brighten the edges. Nothing is flipped left-right where a structure is named after its side. The paper specifies
# no drift check.
PAPER: dict[str, Any] = {
    "space": "anatomy",
    "rounds": 3,
    "inherit_weights": False,
    "spacing_mm": (0.81, 0.81, 2.5),
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "adversarial": "log",
    "foreground_percentiles": True,
    "decide": "threshold",
    "drift_limit": -1.0,
    "pseudo_labels": PseudoLabelRecipe(drop_fraction=0.038),
    "patches": PatchRecipe(
        foreground=0.33,
        change_probability=0.2,
        rotation_deg=30.0,
        tilt_deg=30.0,
        scale=(0.7, 1.4),
        gain=(0.75, 1.25),
        gamma=(0.7, 1.5),
        flip="all",
        elastic_mm=4.0,
    ),
    "target_share": 0.75,
    "registration": RegistrationRecipe(metric="l2"),  # eq. 6
}


@dataclass(frozen=True)
class Recipe:
    """Disabling parts gives the ablations of the paper's Table 7."""

    preset: str = option(
        "auto",
        "Hardware preset; paper: also sets options left at their defaults as in the paper, where it names a value",
        choices=("auto", *UDA_PRESETS),
    )
    # Measured on CT to T2 MR (two seeds, held-out volumes): 7 and 17 Dice points more than with edges.
    space: str = option(
        "intensity", "Input of the networks: intensities (CycleGAN) or edges (ASIT)", choices=("intensity", "anatomy")
    )
    translate: bool = option(True, "Translate the labelled images to the target domain first")
    edges: str = option(
        "grid",
        "Compute edges on the working grid, or on the original voxels",
        choices=("grid", "voxels"),
        advanced=True,
    )
    rounds: int = option(
        3,
        "Number of successive teachers, each also trained on the pseudo-labels of the previous one (self-training)",
        min=1,
        max=10,
    )
    inherit_weights: bool = option(
        True, "Start every later network with the weights of the one before it, if it has the same size", advanced=True
    )
    inherited_fraction: float = option(
        0.4,
        "Training steps of a network with inherited weights, as a fraction of steps",
        min=0.01,
        max=1.0,
        advanced=True,
    )
    match: bool = option(True, "After the first round uncertain targets borrow labels by registration (MDM)")
    filter: bool = option(True, "Then leave out targets whose labels change between rounds (PLF)")
    steps: int | None = option(None, "Training steps of each network; default: set by the preset", min=1, advanced=True)
    patch: tuple[int, int, int] | None = option(None, "Patch; default: set by the preset", advanced=True)
    spacing_mm: tuple[float, float, float] | None = option(
        None,
        "Working voxel size (i, j, k) in mm; default: that of the targets, in plane set by the preset",
        advanced=True,
    )
    size: str = option("as preset", "Size of the network", choices=("as preset", "small", "paper"), advanced=True)
    teacher_size: str = option(
        "as preset", "Size of the teachers", choices=("as preset", "small", "paper", "large"), advanced=True
    )
    residual: bool = option(
        False,
        "Residual generator: predicts a change of the slice; unsuitable for inverted contrast",
        advanced=True,
    )
    decide: str = option(
        "argmax",
        "argmax: the highest logit wins; threshold: sigmoid above 1/2, as in the paper",
        choices=("argmax", "threshold"),
        advanced=True,
    )
    foreground_percentiles: bool = option(
        False, "Clip labelled images at percentiles of the foreground, as nnU-Net does", advanced=True
    )
    optimizer: str = option("adamw", "sgd: momentum 0.99, as in the paper", choices=("adamw", "sgd"), advanced=True)
    learning_rate: float = option(2e-3, "Peak learning rate (with sgd: 0.01)", min=1e-6, max=0.1, advanced=True)
    target_share: float = option(
        0.5, "Fraction of training patches from pseudo-labelled targets", min=0.0, max=1.0, advanced=True
    )
    drift_limit: float = option(
        0.5, "Minimum edge agreement before and after translation", min=-1.0, max=1.0, advanced=True
    )
    translation_steps: int | None = option(None, "Steps of the translation; default: set by the preset", min=1)
    adversarial: str = option(
        "lsgan",
        "Adversarial loss: squares (CycleGAN's code) or logarithms (eq. 1)",
        choices=("lsgan", "log"),
        advanced=True,
    )
    cycle_weight: float = option(10.0, "Weight of the cycle-consistency loss", min=0.0, advanced=True)
    identity_weight: float = option(5.0, "Weight of the identity loss", min=0.0, advanced=True)
    domain_of: str = option(
        "",
        "Regular expression whose group finds the domain, such as the sequence, in a target's file name; then the "
        "best domain lends its labels. None: certain targets do",
        advanced=True,
    )
    patient_of: str = option(
        "",
        "Regular expression whose group finds the patient in a target's file name; other images of that patient "
        "lend first. None: not known",
        advanced=True,
    )
    registration: RegistrationRecipe = field(default_factory=RegistrationRecipe, metadata={"help": "How labels travel"})
    pseudo_labels: PseudoLabelRecipe = field(
        default_factory=lambda: PseudoLabelRecipe(drop_fraction=0.2),
        metadata={"help": "Which pseudo-labels to trust"},
    )
    patches: PatchRecipe = field(default_factory=PatchRecipe, metadata={"help": "How patches are drawn"})

    def __post_init__(self) -> None:
        check(self)
        for name in ("domain_of", "patient_of"):
            found_in((), getattr(self, name), name)
        if self.filter and self.rounds < 2:
            raise InputError(
                f"Filtering compares at least 2 rounds, got rounds={self.rounds}; choose more rounds or set filter off."
            )


def found_in(names: Iterable[str], pattern: str, option_name: str) -> dict[str, str]:
    """The match of a regular expression's group in each name; empty without an expression."""
    if not pattern:
        return {}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f'Recipe option "{option_name}" is not a regular expression ({error}): {pattern}') from error
    if expression.groups != 1:
        raise InputError(
            f'Recipe option "{option_name}" must have one group in brackets, such as "^(.+?)_", got {pattern}'
        )
    found = {name: expression.search(name) for name in names}
    for name, match in found.items():
        if match is None:
            raise InputError(f'Recipe option "{option_name}", {pattern}, finds nothing in the target name "{name}".')
    return {name: str(match.group(1)) for name, match in found.items() if match is not None}


def needs_base(recipe: Recipe) -> bool:
    """Whether a promptable base model is adapted."""
    return False


def resolve(recipe: Recipe, family: str, device: torch.device) -> Recipe:
    """The recipe completed from the preset, except the voxel size, which depends on the targets."""
    name = ("gpu" if device.type == "cuda" else "cpu") if recipe.preset == "auto" else recipe.preset
    preset = UDA_PRESETS[name]
    if name == "paper":
        recipe = with_preset(recipe, PAPER)
    return replace(
        recipe,
        preset=name,
        steps=recipe.steps or preset.steps,
        patch=recipe.patch or preset.patch,
        size=preset.size if recipe.size == "as preset" else recipe.size,
        teacher_size=preset.teacher_size if recipe.teacher_size == "as preset" else recipe.teacher_size,
        translation_steps=recipe.translation_steps or TRANSLATIONS[preset.translation].steps,
    )


def smaller_preset(name: str) -> str | None:
    """The preset to try after running out of memory; None if there is none."""
    names = list(UDA_PRESETS)
    return names[names.index(name) - 1] if names.index(name) else None
