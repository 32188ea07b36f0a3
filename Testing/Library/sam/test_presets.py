"""What fits which machine."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.sam import presets
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


@pytest.mark.parametrize(
    ("base", "device", "size"), [("bundled-small", CPU, None), ("vit_b", CPU, 512), ("vit_h", GPU, 512)]
)
def test_a_large_model_looks_at_smaller_images_where_many_are_looked_at(
    base: str, device: torch.device, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_memory(monkeypatch, 11)
    architecture = "compact" if base == "bundled-small" else base
    model = presets.registry.BaseModel(base, architecture, "file")
    monkeypatch.setattr(presets.registry, "find", lambda name: (model, None))
    assert presets.affordable_size(base, device) == size


def test_a_smaller_preset_asks_for_no_more_of_anything() -> None:
    for name, preset in PRESETS.items():
        smaller = PRESETS.get(smaller_preset(name) or "", preset)
        blocks = [99 if one.encoder_blocks == -1 else one.encoder_blocks for one in (preset, smaller)]
        assert blocks[1] <= blocks[0]
        assert smaller.image_size <= preset.image_size
        assert smaller.batch_size <= preset.batch_size
        assert smaller.free_gib <= preset.free_gib
