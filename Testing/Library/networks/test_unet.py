"""The residual U-Net is that of MONAI, on patches of any thickness."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from FewShotSegLib.networks import build
from FewShotSegLib.networks.unet import CHANNELS
from Testing.Library.networks.ball import a_ball


@pytest.mark.parametrize("size", CHANNELS)
def test_where_all_axes_are_halved_alike_it_is_that_of_monai(size: str) -> None:
    network = build("unet", patch=(64, 64, 64), size=size, out_channels=3).eval()
    stock = nets.UNet(3, 1, 3, CHANNELS[size], (2, 2, 2, 2), num_res_units=2).eval()
    stock.load_state_dict(network.state_dict())
    image = a_ball((32, 32, 48))[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(image), stock(image), rtol=0, atol=0)


def test_a_patch_of_one_slice_is_the_network_of_monai_in_two_dimensions() -> None:
    network = build("unet", patch=(1, 64, 64)).eval()
    flat = nets.UNet(2, 1, 2, CHANNELS["small"], (2, 2, 2, 2), num_res_units=2).eval()
    weights = network.state_dict()
    assert all(value.shape[2] == 1 for value in weights.values() if value.ndim == 5)
    flat.load_state_dict({name: value.squeeze(2) if value.ndim == 5 else value for name, value in weights.items()})
    image = a_ball((1, 64, 48))[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(image)[:, :, 0], flat(image[:, :, 0]), rtol=1e-5, atol=1e-6)


def test_the_shape_of_the_weights_does_not_depend_on_the_patch() -> None:
    thick, cube = (build("unet", patch=patch).state_dict() for patch in ((4, 64, 64), (64, 64, 64)))
    shapes = [{name: (value.ndim, value.shape[:2]) for name, value in one.items()} for one in (thick, cube)]
    assert shapes[0] == shapes[1]
    assert {name: value.shape for name, value in thick.items()} == {name: value.shape for name, value in cube.items()}
