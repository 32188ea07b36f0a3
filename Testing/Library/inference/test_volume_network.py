"""3-D networks as adapters: networks that answer by a formula, so that every voxel of the result is known."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference import volume_network
from FewShotSegLib.inference.segment import SegmentOptions
from FewShotSegLib.inference.volume_network import (
    VolumePredictor,
    grid_from_dict,
    grid_to_dict,
    is_volume_network,
    network_arguments,
    on_grid,
    seen_by,
    tensors_of,
)
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import weights_of
from Testing.conftest import Listener, dice, discs
from Testing.Library.examples import an_adapter

CPU = torch.device("cpu")
WINDOW = IntensitySpec("window", -200, 200)
GRID = Grid((1.0, 1.0, 4.0), (4, 16, 16), "LPS")  # that of the discs
STRUCTURES = {2: "spleen", 7: "liver"}


class Line(nn.Module):
    """Logits of background and structure, by a formula of the voxel alone."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x), 1 + self.slope * x + self.offset], 1)


class Classes(nn.Module):
    """Logits of background and two classes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.45 + 0 * x, x, 0.8 - x], 1)


def an_adapter_of(head: str = "binary", grid: Grid = GRID, **changes: Any) -> Adapter:
    arguments = network_arguments(grid, "unet", "small", 2 if head == "binary" else 1 + len(STRUCTURES))
    network = build(**arguments)
    architecture = {"network": arguments, "head": head, "grid": grid_to_dict(grid), **changes}
    return Adapter(
        tensors_of(dict.fromkeys(STRUCTURES, network)) if head == "binary" else weights_of(network),
        "asap",
        {},
        "",
        "",
        STRUCTURES,
        WINDOW,
        16,
        0,
        0,
        architecture=json.loads(json.dumps(architecture)),
    )


def a_predictor(head: str = "binary", **changes: Any) -> VolumePredictor:
    predictor = VolumePredictor(an_adapter_of(head, **changes), CPU)
    predictor.networks = {2: Line(-4, 1), 7: Line(6, -3.5)} if head == "binary" else {0: Classes()}
    return predictor


def scaled(volume: Volume) -> np.ndarray:
    return (volume.array.astype(np.float64).clip(-200, 200) + 200) / 400


def test_of_overlapping_structures_the_higher_logit_wins_and_only_positive_ones_count(a_volume: Volume) -> None:
    x = scaled(a_volume)
    logits = np.stack([np.zeros_like(x), 1 - 4 * x, 6 * x - 3.5])
    expected = np.array([0, 2, 7])[logits.argmax(0)]
    assert set(np.unique(expected)) == {0, 2, 7}
    labelmap = a_predictor().segment(a_volume).labelmap
    assert np.array_equal(labelmap.volume.array, expected)
    assert labelmap.structures == STRUCTURES
    assert labelmap.volume.same_geometry(a_volume)


@pytest.mark.parametrize("resample", ["logits", "labels"])
def test_one_network_of_all_classes_decides_among_them(a_volume: Volume, resample: str) -> None:
    x = scaled(a_volume)
    expected = np.array([0, 2, 7])[np.stack([0.45 + 0 * x, x, 0.8 - x]).argmax(0)]
    found = a_predictor("classes", resample=resample).segment(a_volume).labelmap.volume.array
    assert (found != expected).mean() < 1e-4  # ties in single precision
    assert set(np.unique(found)) == set(np.unique(expected))


def test_probabilities_are_shares_of_all_structures_and_the_background(a_volume: Volume) -> None:
    x = scaled(a_volume)
    shares = softmax(np.stack([np.zeros_like(x), 1 - 4 * x, 6 * x - 3.5]), axis=0)
    found = a_predictor().segment(a_volume, options=SegmentOptions(probabilities=True))
    assert found.probabilities.keys() == STRUCTURES.keys()
    for at, value in enumerate(STRUCTURES, 1):
        assert found.probabilities[value].dtype == np.float16
        np.testing.assert_allclose(found.probabilities[value], shares[at], atol=2e-3)
    assert a_predictor().segment(a_volume).probabilities == {}


def test_islands_are_removed_when_asked(a_volume: Volume) -> None:
    from scipy import ndimage

    whole = a_predictor().segment(a_volume).labelmap.volume.array
    kept = a_predictor().segment(a_volume, options=SegmentOptions(largest_component=True)).labelmap.volume.array
    for value in STRUCTURES:
        assert ndimage.label(whole == value)[1] > 1
        assert ndimage.label(kept == value)[1] == 1


def test_every_structure_is_said_and_the_work_can_be_cancelled(a_volume: Volume) -> None:
    listener = Listener()
    a_predictor().segment(a_volume, report=listener)
    assert list(dict.fromkeys(listener.messages)) == ["segmenting spleen", "segmenting liver", "segmented"]
    with pytest.raises(Cancelled):
        a_predictor().segment(a_volume, report=Listener(2, Cancelled()))


def test_weights_come_back_to_the_networks_they_were_taken_from() -> None:
    arguments = network_arguments(GRID, "unet", "small")
    networks = {value: build(**arguments, seed=value) for value in STRUCTURES}
    predictor = VolumePredictor(replace(an_adapter_of(), tensors=tensors_of(networks)), CPU)
    image = torch.rand(1, 1, 4, 16, 16)
    assert predictor.networks.keys() == networks.keys()
    with torch.inference_mode():
        answers = [predictor.networks[value](image) for value in STRUCTURES]
        assert all(torch.equal(a, networks[v].eval()(image)) for a, v in zip(answers, STRUCTURES, strict=True))
        assert not torch.equal(*answers)


@pytest.mark.parametrize("head", ["binary", "classes"])
def test_what_the_adapter_kept_is_what_its_network_was(head: str) -> None:
    adapter = an_adapter_of(head)
    predictor = VolumePredictor(adapter, CPU)
    assert list(predictor.networks) == (list(STRUCTURES) if head == "binary" else [0])
    assert not any(network.training for network in predictor.networks.values())
    assert predictor.grid == GRID
    assert predictor.identity[2] == adapter.digest


def test_a_grid_survives_json() -> None:
    grid = Grid((0.7, 0.8, 5.0), (3, 40, 48), "RAS")
    assert grid_from_dict(json.loads(json.dumps(grid_to_dict(grid)))) == grid


def test_the_spacing_of_a_network_is_along_its_patch() -> None:
    arguments = network_arguments(Grid((0.7, 0.8, 5.0), (3, 40, 48)), "unet", "paper", 5)
    assert (arguments["patch"], arguments["spacing"]) == ([3, 40, 48], [5.0, 0.8, 0.7])  # D, H, W are k, j, i


def test_a_network_sees_edges_in_anatomy_space_and_scaled_intensities_elsewhere(a_volume: Volume) -> None:
    np.testing.assert_allclose(seen_by(a_volume, WINDOW), scaled(a_volume), atol=1e-6)
    tissue = a_volume.like(a_volume.array.clip(-300, 300).astype(np.float32) + 500)
    space = AnatomySpace().settled([tissue])
    seen = seen_by(tissue, WINDOW, space)
    assert seen.min() >= 0
    assert seen.max() <= 1
    inverted = tissue.like(1000 - tissue.array)  # has the same edges
    np.testing.assert_allclose(seen_by(inverted, WINDOW, space), seen, atol=1e-5)
    assert VolumePredictor(an_adapter_of(anatomy=space.to_dict()), CPU).anatomy == space


def test_edges_on_the_grid_are_those_of_the_resampled_image_and_free_of_haze(an_rng: np.random.Generator) -> None:
    """Noise in small voxels: rectified and averaged it is a haze, averaged first it is little."""
    array = np.full((4, 64, 64), 100.0)
    array[:, :, 32:] = 160.0
    volume = Volume((array + 25 * an_rng.standard_normal(array.shape)).astype(np.float32), np.diag([0.5, 0.5, 2.0, 1]))
    grid, space = Grid((2.0, 2.0, 2.0), (4, 16, 16), "RAS"), AnatomySpace("2d")
    late, early = (on_grid(volume, WINDOW, grid, space, edges) for edges in ("grid", "voxels"))
    coarse = array[:, ::4, ::4]
    assert late.shape == early.shape == coarse.shape
    inside, rim = np.s_[:, 2:-2, 2:5], np.s_[:, 2:-2, 7:9]
    assert late[inside].mean() / late[rim].mean() < 0.3
    assert early[inside].mean() / early[rim].mean() > 0.5
    resampled = Volume(on_grid(volume, WINDOW, grid), np.diag([2.0, 2.0, 2.0, 1.0]))
    by_hand = AnatomySpace("2d", intensity=IntensitySpec("window", 0, 1)).apply(resampled).array
    np.testing.assert_allclose(late, by_hand, atol=1e-6)


@pytest.mark.parametrize("edges", ["grid", None])
def test_an_adapter_says_where_its_edges_are_computed_and_older_ones_mean_their_own_voxels(
    edges: str | None, a_volume: Volume
) -> None:
    space = AnatomySpace("2d")
    predictor = VolumePredictor(an_adapter_of(anatomy=space.to_dict(), **({"edges": edges} if edges else {})), CPU)
    predictor.grid = Grid((2.0, 2.0, 4.0), (4, 16, 16), "LPS")
    seen: list[np.ndarray] = []

    class Watching(Line):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.numpy())
            return super().forward(x)

    predictor.networks = {2: Watching(1, 0)}
    predictor.segment(a_volume)
    expected = on_grid(a_volume, predictor.adapter.intensity, predictor.grid, space, edges or "voxels")
    assert np.isclose(max(window.max() for window in seen), expected.max(), atol=1e-6)
    other = on_grid(a_volume, predictor.adapter.intensity, predictor.grid, space, "voxels" if edges else "grid")
    first = seen[0][0, 0]
    d, h, w = (slice(0, n) for n in first.shape)
    np.testing.assert_allclose(first, expected[d, h, w], atol=1e-6)
    assert not np.allclose(first, other[d, h, w], atol=1e-3)


def test_an_adapter_that_decides_by_threshold_asks_each_class_alone(a_volume: Volume) -> None:
    argmax, threshold = (a_predictor("classes", **more) for more in ({}, {"decide": "threshold"}))
    for predictor in (argmax, threshold):
        predictor.networks = {0: Classes()}
    x = scaled(a_volume)  # Classes: background .45, x, .8 - x; both are above 0 for x in (0, .8)
    found = threshold.segment(a_volume).labelmap.volume.array
    assert (found > 0).mean() > (argmax.segment(a_volume).labelmap.volume.array > 0).mean()
    assert np.array_equal(found > 0, np.maximum(x, 0.8 - x) > 0)


def test_a_volume_of_another_spacing_is_segmented_on_its_own_voxels() -> None:
    volume, labels = discs(np.random.default_rng(4))
    predictor = a_predictor(grid=Grid((2.0, 2.0, 4.0), (4, 16, 16), "LPS"))
    predictor.networks = {2: Line(-8, 3), 7: Line(20, -12)}  # dark below 3/8, bright above 12/20
    found = predictor.segment(volume).labelmap.volume
    assert found.same_geometry(volume)
    for value, truth in ((7, labels == 1), (2, labels == 2)):
        assert dice(found.array == value, truth) > 0.8


@pytest.mark.parametrize("planes", [1, 3, 100])
def test_logits_are_brought_back_part_by_part(planes: int, a_volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SegmentOptions(probabilities=True)
    grid = Grid((2.0, 2.0, 6.0), (4, 16, 16), "LPS")
    found = []
    for count in (planes, a_volume.shape[0]):
        monkeypatch.setattr(volume_network, "PLANES", count)
        found.append(a_predictor(grid=grid).segment(a_volume, options=options))
    assert np.array_equal(found[0].labelmap.volume.array, found[1].labelmap.volume.array)
    for value in STRUCTURES:
        np.testing.assert_allclose(found[0].probabilities[value], found[1].probabilities[value], atol=2e-3)


def test_the_logits_of_a_whole_volume_are_never_there_at_once() -> None:
    volume = Volume(np.zeros((96, 64, 64), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    predictor = a_predictor(grid=Grid((4.0, 4.0, 4.0), (8, 16, 16), "LPS"))
    predictor.segment(volume)
    tracemalloc.start()
    try:
        predictor.segment(volume)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * volume.array.size  # logits of three channels alone would be 12 bytes a voxel


def test_labels_above_255_are_kept(a_volume: Volume) -> None:
    adapter = replace(an_adapter_of("classes"), structures={2: "spleen", 300: "liver"})
    predictor = VolumePredictor(adapter, CPU)
    predictor.networks = {0: Classes()}
    assert 300 in predictor.segment(a_volume).labelmap.volume.array


def test_an_adapter_of_a_base_model_holds_no_3d_network() -> None:
    assert is_volume_network(an_adapter_of())
    assert not is_volume_network(an_adapter())
    assert not is_volume_network(replace(an_adapter_of(), architecture={"lora": {}}))
    with pytest.raises(InputError, match="made for the base model vit_b and holds no 3-D network"):
        VolumePredictor(an_adapter(), CPU)
