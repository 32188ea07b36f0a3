"""Hardware presets: by free GPU memory, and the image size that a device can afford."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import registry

ALL_BLOCKS = -1


@dataclass(frozen=True)
class Preset:
    """Settings for a class of hardware. Blocks are counted from the end of the encoder."""

    encoder_blocks: int
    image_size: int
    batch_size: int
    checkpointing: bool
    pool_size: int = 0
    free_gib: float = 0.0
    structure_maps: bool = False


# SAM ViT models, by decreasing memory requirement; figures from micro-sam's and peft-sam's memory tables.
PRESETS = {
    "24GB": Preset(ALL_BLOCKS, 512, 8, False, free_gib=20.0),
    "12GB": Preset(6, 512, 4, False, free_gib=10.0),
    "8GB": Preset(3, 512, 2, True, free_gib=6.0),
    # A frozen encoder encodes each pooled sample once; its embedding is cached.
    "cpu": Preset(0, 512, 2, False, pool_size=64),
}
COMPACT = Preset(ALL_BLOCKS, 160, 4, False)
# Its encoder was trained on medical images: maps on the frozen features beat LoRA in the encoder, on a GPU too.
TINY_VIT_GPU = Preset(ALL_BLOCKS, 256, 4, False, structure_maps=True)
TINY_VIT_CPU = Preset(0, 256, 2, False, pool_size=64, structure_maps=True)


def preset_of(family: str, name: str, device: torch.device) -> Preset:
    """The preset of a family of base models (see `BaseModel.family`); the name matters for SAM's ViT models only."""
    if family == "compact":
        return COMPACT
    if family == "tiny_vit":
        return TINY_VIT_GPU if device.type == "cuda" else TINY_VIT_CPU
    return PRESETS[name]


def best_preset(device: torch.device) -> str:
    """The largest preset that fits the *free* memory of the device."""
    if device.type != "cuda":
        return "cpu"
    free_gib = torch.cuda.mem_get_info(device)[0] / 2**30
    return next((name for name, preset in PRESETS.items() if free_gib >= preset.free_gib), "cpu")


def smaller_preset(name: str) -> str | None:
    """The preset to try after running out of memory; None if there is none, as for presets unrelated to memory."""
    if name not in PRESETS:
        return None
    names = list(PRESETS)
    after = names.index(name) + 1
    return names[after] if after < len(names) else None


def affordable_size(name: str, device: torch.device) -> int | None:
    """The image size for tasks that encode dozens of slices; None: the model's own.

    SAM at 1024 pixels would take minutes on a CPU before the first result.
    """
    model, _ = registry.find(name)
    return PRESETS[best_preset(device)].image_size if model.family == "sam" else None
