"""Swin UNETR with strides that fit the patch."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from monai.networks.nets import swin_unetr
from torch import nn

from FewShotSegLib.networks import build
from FewShotSegLib.networks.shape import strides_of
from FewShotSegLib.networks.swin import SMALLEST, STAGES, PatchMerging
from Testing.Library.networks.ball import a_ball


def test_where_all_axes_are_halved_alike_swin_is_that_of_monai() -> None:
    network = build("swinunet", patch=(64, 64, 64)).eval()
    stock = nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)).eval()
    stock.load_state_dict(network.state_dict())
    image = a_ball((32, 32, 64))[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(image), stock(image), rtol=0, atol=0)


def test_merging_all_axes_is_the_second_merging_of_monai() -> None:
    ours = PatchMerging(4, (2, 2, 2), nn.LayerNorm)
    theirs = swin_unetr.PatchMergingV2(4, nn.LayerNorm, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 6, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("stride", [(1, 2, 2), (1, 1, 2), (1, 1, 1)])
def test_only_the_axes_that_shrink_are_merged(stride: tuple[int, int, int]) -> None:
    merging = PatchMerging(3, stride, nn.LayerNorm)
    x = torch.randn(2, 4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    d, h, w = stride
    with torch.inference_mode():
        merged = merging(x)
        assert merged.shape == (2, 4 // d, 8 // h, 8 // w, 6)
        cell = x[0, :d, h : 2 * h, w : 2 * w].reshape(-1)  # the neighbours of one token, (D, H, W, C) in that order
        expected = merging.reduction(nn.functional.layer_norm(cell, cell.shape))
        torch.testing.assert_close(merged[0, 0, 1, 1], expected)


def test_a_thick_patch_is_merged_as_its_strides_say() -> None:
    network = build("swinunet", patch=(8, 64, 64))
    strides = strides_of((8, 64, 64), STAGES, None, SMALLEST)
    assert network.multiple == (4, 32, 32)
    merged = [module for module in network.modules() if isinstance(module, PatchMerging)]
    assert [module.stride for module in merged] == [stride for stride in strides[1:] if stride != (2, 2, 2)]
    stock = swin_unetr.PatchMerging
    assert sum(type(m) is stock for m in network.modules()) == strides[1:].count((2, 2, 2))
