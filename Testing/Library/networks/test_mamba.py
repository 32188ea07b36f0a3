"""What a direction of Mamba-UNet computes, and how far the network sees."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.networks import build
from FewShotSegLib.networks.mamba import DirectionalScan
from Testing.Library.networks.ball import a_ball
from Testing.Library.networks.sequences import arguments


def test_mamba_sees_the_whole_slice_and_the_slices_around() -> None:
    network = build("mambaunet", patch=(4, 32, 32)).eval()
    image = a_ball((4, 32, 32))[0].requires_grad_()
    corner = network(image)[0, 1, 0, 0, 0]
    (reach,) = torch.autograd.grad(corner, image)
    assert (reach[0, 0].abs().amax((1, 2)) > 0).all()
    assert (reach[0, 0, 0, -4:, -4:] != 0).any()


def test_a_direction_of_the_network_computes_what_a_block_of_mambapy_does_with_the_same_weights() -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=16, n_layers=1, d_state=4, expand_factor=2)).double()
    direction = DirectionalScan(32, 4, "row", backwards=False).double()
    direction.project = torch.nn.Linear(32, 1 + 2 * 4, bias=False, dtype=torch.float64)
    assert direction.parts == [2, 4, 4]  # rank ceil(32 / 16); mambapy takes that of the outer width, 1
    direction.parts = [1, 4, 4]
    direction.step = block.dt_proj
    direction.project.weight = block.x_proj.weight
    direction.log_decay, direction.skip = block.A_log, block.D
    u = arguments(2, 23, 32, 1)[0]
    theirs = block.ssm(u, torch.zeros_like(u))  # without the gate
    torch.testing.assert_close(direction.scan(u), theirs, rtol=1e-6, atol=1e-7)  # mambapy computes A in float32
