"""Options for adapting a promptable model, and their hardware presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from FewShotSegLib.data.recipe import check, option
from FewShotSegLib.errors import InputError
from FewShotSegLib.lora.adaptation import AdaptationSpec
from FewShotSegLib.lora.layers import KINDS, LoraSpec
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.presets import ALL_BLOCKS, PRESETS, best_preset, preset_of
from FewShotSegLib.synthesis.plan import SynthesisRecipe

STEPS = 400
R = TypeVar("R", bound="PromptedRecipe")


@dataclass(frozen=True)
class PromptedRecipe:
    """Defaults for the small bundled model on a CPU; `preset` adjusts SAM ViT models to the available memory."""

    preset: str = option(
        "auto",
        "Image size, batch size and trained blocks, chosen by free GPU memory",
        choices=("auto", "cpu", "8GB", "12GB", "24GB"),
    )
    steps: int | None = option(None, "Maximum optimization steps; default: 400", min=1, max=100_000)
    learning_rate: float = option(1e-3, "Peak learning rate (Cheap Lunch: 1e-3)", min=1e-6, max=0.1, advanced=True)
    synthesis: bool = option(
        True, "Train on synthesized samples; off: on the exemplar slices as they are", advanced=True
    )
    estimate_folds: int = option(
        2, "Leave-one-out folds over the exemplars for the Dice estimate; 0: no estimate", min=0, max=10, advanced=True
    )
    guard: str = option(
        "warn",
        "What to do if the adapter is worse than the base model",
        choices=("warn", "refuse", "off"),
        advanced=True,
    )
    rank: int = option(4, "LoRA rank (Cheap Lunch: 4)", min=1, max=256, advanced=True)
    alpha: float | None = option(None, "LoRA scaling is alpha / rank; default: alpha = rank", advanced=True)
    kind: str = option("lora", "Type of low-rank update", choices=tuple(KINDS), advanced=True)
    encoder_blocks: int | None = option(
        None,
        "Number of final encoder blocks with LoRA; -1: all, 0: none; default: set by the preset",
        min=-1,
        advanced=True,
    )
    mlp: bool = option(False, "LoRA on the encoder's MLPs too", advanced=True)
    full_decoder: bool = option(False, "Train the whole mask decoder instead of LoRA on it", advanced=True)
    tokens: int = option(4, "Tokens learned per structure", min=1, max=64, advanced=True)
    image_size: int | None = option(
        None, "Input size of the network (pixels); default: set by the preset", advanced=True
    )
    batch_size: int | None = option(None, "Slices per step; default: set by the preset", min=1, max=256, advanced=True)
    accumulate: int = option(1, "Gradient accumulation: batches per optimizer step", min=1, max=64, advanced=True)
    click_prompts: int = option(2, "Clicks and boxes per slice", min=0, max=32, advanced=True)
    box_share: float = option(
        0.3,
        "Fraction of prompts with a box, a third of them with a click too (Cheap Lunch: 0)",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    central_share: float = option(
        0.3,
        "Fraction of clicks near the centre; the others are anywhere in the structure (Cheap Lunch: 0)",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    most_points: int = option(
        1, "Maximum number of points per click prompt (GMISeg: one or more)", min=1, max=16, advanced=True
    )
    token_prompts: int = option(4, "Structure tokens per slice", min=0, max=64, advanced=True)
    token_click_probability: float = option(
        0.35, "Fraction of token prompts that also get a click", min=0.0, max=1.0, advanced=True
    )
    correction_probability: float = option(
        0.25, "Fraction of steps with a corrective click", min=0.0, max=1.0, advanced=True
    )
    cross_entropy_weight: float = option(1.0, "Weight of cross-entropy (Cheap Lunch: 1)", min=0.0, advanced=True)
    dice_weight: float = option(0.8, "Weight of the Dice loss (Cheap Lunch: 0.8)", min=0.0, advanced=True)
    dice: str = option(
        "structure",
        "Dice per structure, or as in SAMed: of background and structure over the whole batch",
        choices=("structure", "with background"),
        advanced=True,
    )
    quality_weight: float = option(
        1.0, "Weight of the IoU-prediction loss (Cheap Lunch: 0)", min=0.0, max=10.0, advanced=True
    )
    weight_decay: float = option(0.1, "AdamW weight decay (SAMed: 0.1)", min=0.0, max=1.0, advanced=True)
    warmup_steps: int = option(20, "Warm-up steps to the peak learning rate", min=0, max=10_000, advanced=True)
    validate_every: int = option(40, "Validation interval (steps)", min=0, advanced=True)
    patience: int = option(
        0, "Early-stopping patience (validations without improvement); 0: never", min=0, advanced=True
    )
    pool_size: int | None = option(
        None,
        "Number of synthesized samples that are reused; 0: a new one each time; default: set by the preset",
        min=0,
        advanced=True,
    )
    checkpointing: bool | None = option(
        None, "Gradient checkpointing: recompute activations to save memory; default: set by the preset", advanced=True
    )
    checkpoint_seconds: float = option(20.0, "Seconds between checkpoints; 0: after every step", min=0.0, advanced=True)
    synthesizer: SynthesisRecipe = field(
        default_factory=SynthesisRecipe, metadata={"help": "Synthesis of training samples"}
    )

    def __post_init__(self) -> None:
        check(self)
        if self.click_prompts + self.token_prompts == 0:
            raise InputError("A recipe needs click_prompts or token_prompts above 0.")


def resolve(recipe: R, family: str, device: torch.device) -> R:
    """The recipe completed from the preset; the user's settings are kept."""
    name = recipe.preset if recipe.preset in PRESETS else best_preset(device)
    preset = preset_of(family, name, device)
    return replace(
        recipe,
        preset=name if recipe.preset == "auto" else recipe.preset,
        steps=recipe.steps or STEPS,
        encoder_blocks=preset.encoder_blocks if recipe.encoder_blocks is None else recipe.encoder_blocks,
        image_size=recipe.image_size or preset.image_size,
        batch_size=recipe.batch_size or preset.batch_size,
        checkpointing=preset.checkpointing if recipe.checkpointing is None else recipe.checkpointing,
        pool_size=preset.pool_size if recipe.pool_size is None else recipe.pool_size,
    )


def image_size_of(recipe: PromptedRecipe) -> int:
    """The image size of a resolved recipe, in pixels."""
    if recipe.image_size is None:
        raise TypeError("The recipe is not resolved: it has no image size.")
    return recipe.image_size


def adaptation_spec(recipe: PromptedRecipe, network: PromptableNetwork) -> AdaptationSpec:
    """Which parts of this network are trained."""
    depth = len(network.image_encoder.blocks)
    last = depth if recipe.encoder_blocks in (None, ALL_BLOCKS) else min(recipe.encoder_blocks or 0, depth)
    lora = LoraSpec(
        rank=recipe.rank,
        alpha=recipe.alpha,
        encoder_blocks=tuple(range(depth - last, depth)) or None,
        encoder=last > 0,
        # LoRA needs a target; with a frozen encoder that is the decoder, even if it is fully trained.
        decoder=not recipe.full_decoder or last == 0,
        mlp=recipe.mlp,
        kind=recipe.kind,
    )
    return AdaptationSpec(lora, recipe.tokens, recipe.full_decoder)
