"""The small nnU-Net-like network and its deep supervision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks import nets

from FewShotSegLib.errors import InputError
from FewShotSegLib.networks import build
from FewShotSegLib.networks.shape import kernels_of, strides_of
from FewShotSegLib.networks.small import FILTERS, supervised
from Testing.Library.networks.ball import a_ball


def test_deep_supervision_weighs_each_resolution_half_as_much_as_the_finer_one() -> None:
    logits = torch.randn(2, 4, 3, 1, 5, 5)
    parts = supervised(logits)
    np.testing.assert_allclose([weight for weight, _ in parts], np.array([8, 4, 2, 1]) / 15)
    assert all(torch.equal(part, logits[:, depth]) for depth, (_, part) in enumerate(parts))
    assert supervised(logits[:, 0])[0][0] == 1


def test_it_is_the_network_of_monai_planned_by_nnunets_rules() -> None:
    patch, spacing = (8, 32, 32), (3.0, 1.0, 1.0)
    network = build("dynunet", patch=patch, spacing=spacing, out_channels=3)
    strides = strides_of(patch, 4, spacing)
    assert strides[0] == (1, 2, 2)  # thick slices wait
    stock = nets.DynUNet(
        3,
        1,
        3,
        kernels_of(patch, strides, spacing),
        [(1, 1, 1), *strides],
        strides,
        filters=FILTERS["small"],
        deep_supervision=True,
        deep_supr_num=3,
    )
    stock.load_state_dict(network.state_dict())
    image = a_ball(patch)[0]
    with torch.inference_mode():
        several = network(image)
        assert several.shape == (1, 4, 3, *patch)
        assert torch.equal(several, stock(image))
        finest = network.eval()(image)
        assert torch.equal(finest, several[:, 0])
        assert torch.equal(finest, stock.eval()(image))


def test_the_teacher_is_the_default_network_of_the_paper() -> None:
    """32 channels in the first stage, five downsamplings, on the paper's patch."""
    network = build("dynunet", size="large", patch=(40, 224, 192), spacing=(2.5, 0.81, 0.81), out_channels=14)
    widths = [conv.out_channels for conv in network.modules() if isinstance(conv, torch.nn.Conv3d)]
    assert (widths[0], max(widths)) == (32, 320)
    assert network.multiple == (8, 32, 32)
    with pytest.raises(InputError, match='one of small, paper, got "large"'):
        build("unet", size="large", patch=(8, 32, 32))
