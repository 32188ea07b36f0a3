"""Maps of structures as numbers, and the prompts that are derived from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.pixel_classifier import ContextClassifier, PixelClassifier
from FewShotSegLib.inference.structure_maps import (
    BOX,
    CLICK,
    MAP,
    MapPredictor,
    StructureMaps,
    derived_prompts,
    expected_iou,
    maps_of,
)
from FewShotSegLib.sam.network import BOX_CORNER_HIGH, BOX_CORNER_LOW, PADDING, POSITIVE, PromptableNetwork


def some_maps(channels: int = 5) -> StructureMaps:
    rng = torch.Generator().manual_seed(0)

    def member(more: int = 0) -> PixelClassifier:
        sizes = ((channels + more, 3), (74, 3))
        return PixelClassifier(*(torch.randn(*size, generator=rng) for size in sizes))

    classifier = ContextClassifier([member(), member()], [member(8), member(8)])
    return StructureMaps((2, 7), (classifier,), torch.tensor([0.0, 1.5]), (CLICK, MAP))


def as_adapter(maps: StructureMaps) -> Adapter:
    return Adapter(
        maps.tensors(),
        "lora",
        {},
        "tiny_sam",
        "0" * 64,
        {2: "a", 7: "b"},
        IntensitySpec("window", 0, 1),
        64,
        0,
        0,
        architecture={"maps": {"ways": list(maps.ways)}},
    )


def test_maps_come_back_from_an_adapter_as_they_were() -> None:
    maps = some_maps()
    found = StructureMaps.restored(as_adapter(maps), torch.device("cpu"))
    assert (found.structures, found.ways) == (maps.structures, maps.ways)
    assert torch.equal(found.offsets, maps.offsets)
    for mine, theirs in zip(maps.classifiers, found.classifiers, strict=True):
        for one, other in zip((*mine.firsts, *mine.seconds), (*theirs.firsts, *theirs.seconds), strict=True):
            assert torch.equal(one.of_seen, other.of_seen)
            assert torch.equal(one.of_place, other.of_place)


@pytest.mark.parametrize("missing", ["maps.offsets", "maps.0.second.1.place"])
def test_an_adapter_that_lost_a_part_of_its_maps_is_refused(missing: str) -> None:
    adapter = as_adapter(some_maps())
    broken = replace(adapter, tensors={n: t for n, t in adapter.tensors.items() if n != missing})
    with pytest.raises(InputError, match="not whole: its maps lack"):
        StructureMaps.restored(broken, torch.device("cpu"))


def test_only_structures_that_were_asked_for_are_mapped(a_tiny_sam: PromptableNetwork) -> None:
    predictor = MapPredictor(a_tiny_sam)
    seen = maps_of(predictor.encode([np.zeros((64, 64), np.float32)])[0])
    maps = some_maps(channels=32 + 8)
    whole = maps.log_odds(seen)
    assert torch.equal(maps.log_odds(seen, [7]), whole[1:])
    unmoved = replace(maps, offsets=torch.zeros(2)).log_odds(seen)
    torch.testing.assert_close(whole - unmoved, torch.tensor([0.0, 1.5])[:, None, None].expand_as(whole))


def test_prompts_lie_on_the_most_certain_part_of_a_map() -> None:
    odds = torch.full((3, 32, 32), -4.0)
    odds[0, 2:5, 2:5] = 0.5  # as large, and doubtful
    odds[0, 20:23, 24:27] = 5.0
    odds[1] = odds[0]
    coords, labels = derived_prompts(odds, [CLICK, BOX, BOX], 64)
    assert labels.tolist() == [
        [POSITIVE, PADDING, PADDING],
        [POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH],
        [PADDING, PADDING, PADDING],  # the map says that it is absent
    ]
    np.testing.assert_allclose(coords[0, 0], (50.5, 42.5))
    np.testing.assert_allclose(coords[1, 1:], [[48, 40], [53, 45]])
    assert (derived_prompts(odds, [MAP, MAP, MAP], 64)[1] == PADDING).all()


def test_the_expected_iou_is_that_of_the_probabilities() -> None:
    sure = torch.full((4, 4), -30.0)
    sure[:2] = 30.0
    unsure = torch.full((4, 4), -30.0)
    unsure[0], unsure[1] = float(np.log(0.75 / 0.25)), float(np.log(0.25 / 0.75))
    nothing = torch.full((4, 4), float(np.log(0.1 / 0.9)))
    found = expected_iou(torch.stack([sure, unsure, nothing]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.75 * 4 / (4 + 0.25 * 4), 0.9]))
