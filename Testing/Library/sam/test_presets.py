"""What fits which machine."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.sam.presets import ALL_BLOCKS, PRESETS, best_preset, smaller_preset
from FewShotSegLib.training.prompted_recipe import PromptedRecipe as Recipe
from FewShotSegLib.training.prompted_recipe import resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def free_memory(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), 80 * 2**30))


@pytest.mark.parametrize(
    ("gib", "preset"),
    [(79, "24GB"), (20, "24GB"), (19.9, "12GB"), (10, "12GB"), (9.9, "8GB"), (6, "8GB"), (5.9, "cpu")],
)
def test_the_largest_preset_that_fits_free_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch, gib: float, preset: str
) -> None:
    free_memory(monkeypatch, gib)
    assert best_preset(GPU) == preset
    assert resolve(Recipe(), "vit_b", GPU).preset == preset


def test_without_a_gpu_the_cpu_preset_is_taken() -> None:
    assert best_preset(CPU) == "cpu"


def test_presets_get_smaller_until_there_is_none() -> None:
    assert [smaller_preset(name) for name in PRESETS] == ["12GB", "8GB", "cpu", None]
    blocks = [preset.encoder_blocks for preset in PRESETS.values()]
    assert blocks[0] == ALL_BLOCKS
    assert blocks[1:] == sorted(blocks[1:], reverse=True)
    needs = [preset.free_gib for preset in PRESETS.values()]
    assert needs == sorted(needs, reverse=True)
