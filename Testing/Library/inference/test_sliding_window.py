"""Windows fit together without a seam, and the result finds its way back to the volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from FewShotSegLib.data.volume import Volume, ras_from_ijk
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.grid import Grid, onto_grid
from FewShotSegLib.inference.sliding_window import decided, labels_onto_volume, onto_volume, predict
from FewShotSegLib.progress import Progress
from Testing.conftest import dice


class PerVoxel(nn.Module):
    """Logits that depend on the voxel alone, so that windows must fit together without a seam."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return torch.cat([1 - 3 * x, x**2], 1)


@pytest.mark.parametrize("shape", [(3, 9, 8), (4, 16, 16), (11, 37, 20)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_windows_fit_together_without_a_seam(
    an_rng: np.random.Generator, shape: tuple[int, int, int], overlap: float
) -> None:
    image = an_rng.random(shape, dtype=np.float32)
    steps: list[Progress] = []
    network = PerVoxel()
    logits = predict(network, image, (4, 16, 16), overlap=overlap, batch=3, report=steps.append)
    np.testing.assert_allclose(logits, np.stack([1 - 3 * image, image**2]), atol=1e-6)
    assert [step.step for step in steps] == list(range(steps[0].total))
    assert network.training


def test_prediction_stops_where_it_is_told_and_leaves_the_network_as_it_was() -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == 2:
            raise Cancelled

    network = PerVoxel()
    with pytest.raises(Cancelled):
        predict(network, np.zeros((8, 40, 40), np.float32), (4, 16, 16), report=cancel)
    assert network.training
    with pytest.raises(InputError, match="from 0 to below 1, got 1"):
        predict(network, np.zeros((8, 40, 40), np.float32), (4, 16, 16), overlap=1)


def oblique(angles: tuple[float, float, float], spacing: tuple[float, float, float], columns: list[int]) -> np.ndarray:
    """An affine that is turned a little, with its axes permuted."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = (turn @ np.diag([-1, -1, 1]))[:, columns] * spacing
    affine[:3, 3] = 10, -20, 30
    return affine


@pytest.mark.parametrize("columns", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_volume_returns_from_the_grid_to_its_own_voxels(columns: list[int], sign: int) -> None:
    """A ramp over RAS coordinates must come back as the same ramp, away from the rim."""
    affine = oblique((12, -7, 4), (0.9, 1.1, 2.0), columns)
    affine[:3, 1] *= sign
    shape = (14, 26, 22)
    k, j, i = np.indices(shape)
    ras = ras_from_ijk(affine, np.stack([i, j, k], -1).reshape(-1, 3))
    ramp = (ras @ [0.01, -0.02, 0.015]).reshape(shape)
    volume = Volume(ramp, affine)
    grid = Grid((0.7, 0.8, 0.9), (4, 8, 8), "LPS")  # finer, or it would be a mean
    image, _ = onto_grid(volume.array, np.zeros(shape, np.uint8), affine, grid)
    back = onto_volume(image, volume, grid)
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[inside], ramp[inside], atol=1e-5)


def test_on_its_own_grid_a_volume_comes_back_bit_for_bit(a_volume: Volume) -> None:
    grid = Grid.of(a_volume, (4, 24, 24))
    image, _ = onto_grid(a_volume.array, np.zeros(a_volume.shape, np.uint8), a_volume.affine, grid)
    np.testing.assert_array_equal(onto_volume(image, a_volume, grid), a_volume.array.astype(np.float32))


def test_decided_is_the_channel_of_the_highest_value() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
    found = decided(logits)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, logits.argmax(axis=0))


def test_labels_brought_back_are_nearly_those_of_logits_brought_back() -> None:
    """Four smooth bodies on a coarser grid."""
    volume = Volume(np.zeros((60, 120, 120), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]))
    grid = Grid.of(volume, (8, 32, 32), (1.4, 1.4, 2.8))
    shape = onto_grid(volume.array, volume.array, volume.affine, grid)[0].shape
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    centres = [(-0.3, -0.4, -0.4), (0.2, 0.4, -0.3), (0.0, -0.3, 0.4), (0.1, 0.5, 0.5)]
    bodies = [4 * (0.16 - ((z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2)) for c, b, a in centres]
    logits = np.stack([np.zeros(shape), *bodies]).astype(np.float32)
    one = labels_onto_volume(logits.argmax(0).astype(np.uint8), volume, grid)
    other = np.stack([onto_volume(channel, volume, grid) for channel in logits]).argmax(0)
    assert one.shape == other.shape == volume.shape
    for value in range(1, 5):
        found, wanted = one == value, other == value
        assert dice(found, wanted) > 0.96
        assert found.sum() == pytest.approx(wanted.sum(), rel=0.02)


def test_with_a_threshold_the_background_has_no_say() -> None:
    logits = np.array([[5.0, -9.0, 0.0, 3.0], [1.0, -1.0, -0.5, 2.0], [0.5, -2.0, 0.25, 4.0]], np.float32)
    found = decided(logits.reshape(3, 1, 1, 4), threshold=0.0)
    assert found.ravel().tolist() == [1, 0, 2, 2]
    assert decided(logits.reshape(3, 1, 1, 4)).ravel().tolist() == [0, 1, 2, 2]
