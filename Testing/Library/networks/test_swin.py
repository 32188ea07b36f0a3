"""Swin UNETR with strides that fit the patch."""

from __future__ import annotations

import torch
from monai.networks import nets

from FewShotSegLib.networks import build
from Testing.Library.networks.ball import a_ball


def test_where_all_axes_are_halved_alike_swin_is_that_of_monai() -> None:
    network = build("swinunet", patch=(64, 64, 64)).eval()
    stock = nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)).eval()
    stock.load_state_dict(network.state_dict())
    image = a_ball((32, 32, 64))[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(image), stock(image), rtol=0, atol=0)
