"""What segmenting a whole CT costs: what is compared, on a CT of a few voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.metrics import compute_dice
from torch import as_tensor

from FewShotSegLib.benchmarks import uda_cost
from FewShotSegLib.benchmarks.uda_cost import costs
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.methods.uda.recipe import Recipe

AFFINE = np.diag([-4.0, -4.0, 5.0, 1.0])


def bodies(*values: int, shape: tuple[int, int, int] = (12, 40, 40)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for at, value in enumerate(values):
        labels[3:9, 8:30, 3 + 12 * at : 12 + 12 * at] = value
    return labels


def test_probabilities_are_those_of_soft_edges_and_sum_to_one() -> None:
    labels = bodies(1, 2)
    volume = Volume(np.zeros(labels.shape, np.float32), AFFINE)
    shares = uda_cost._probabilities(volume, labels, 3, Grid.of(volume, (4, 16, 16), (8.0, 8.0, 10.0)))
    assert shares.shape == (3, 6, 20, 20)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert (shares.argmax(axis=0)[2:4, 6:13, 3:5] == 1).all()
    assert ((shares > 0.05) & (shares < 0.95)).any()


def test_dice_of_two_labelmaps_is_the_mean_over_what_either_shows() -> None:
    one, other = bodies(1, 2), np.roll(bodies(1, 2), 3, axis=2)
    other[other == 2] = 5
    masks = [as_tensor(np.stack([labels == value for value in (1, 2, 5)])[None]) for labels in (one, other)]
    expected = compute_dice(*masks, include_background=True)[0].nan_to_num(0.0).mean()
    assert uda_cost._dice(one, other) == pytest.approx(float(expected))
    assert uda_cost._dice(one, one) == 1


def test_an_adapter_with_fresh_weights_segments_the_whole_case() -> None:
    volume = Volume(np.random.default_rng(0).normal(0, 80, (6, 20, 20)), AFFINE)
    grid = Grid.of(volume, (4, 16, 16), (8.0, 8.0, 10.0))
    adapter = uda_cost._adapter(volume, "small", grid)
    assert len(adapter.structures) == uda_cost.ORGANS
    assert adapter.architecture is not None
    assert (adapter.architecture["resample"], adapter.architecture["network"]["out_channels"]) == ("labels", 14)
    assert adapter.architecture["edges"] == Recipe().edges  # what is measured is what new adapters do


def test_both_tables_are_made_of_the_cases_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uda_cost, "GRIDS", {"cpu": ("small", (8.0, 8.0, 10.0), (4, 16, 16))})
    monkeypatch.setattr(uda_cost, "memory_of", lambda device: lambda: 500_000_000)
    folder = tmp_path / "chaos_ct_liver_1"
    image = np.random.default_rng(0).normal(0, 80, (12, 40, 40)).astype(np.float32)
    save_volume(Volume(image, AFFINE), folder / "img.nii.gz")
    save_labelmap(Labelmap(Volume(bodies(1), AFFINE), {1: "liver"}), folder / "lab.nii.gz")
    whole, resampling = costs(tmp_path, repeats=1).split("\n\n", 1)[1].split("\n\n")
    (row,) = whole.splitlines()[2:]
    assert row.startswith("| dynunet small | (8.0, 8.0, 10.0) | 16 x 16 x 4 | ")
    seconds, peak, area = (float(cell) for cell in row.strip("| ").split("|")[3:])
    assert peak == 500
    assert area == pytest.approx(500 * seconds, abs=26)  # seconds are rounded to tenths
    (row,) = resampling.splitlines()[2:]
    assert row.startswith("| CT, liver, 2 classes | 20 x 20 x 6 (cpu) | 40 x 40 x 12 | ")
    assert float(row.strip("| ").split("|")[-1]) > 0.75  # the two ways agree, but for edges


def test_memory_that_the_system_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uda_cost, "GRIDS", {"cpu": ("small", (8.0, 8.0, 10.0), (4, 16, 16))})
    monkeypatch.setattr(uda_cost, "memory_of", lambda device: None)
    assert uda_cost._whole_case(Volume(np.zeros((4, 16, 16), np.float32), AFFINE)).endswith("| unknown | unknown |\n")


def test_a_missing_case_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no .*chaos_ct_liver_1.img\.nii\.gz"):
        costs(tmp_path, repeats=1)
