"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from FewShotSegLib.devices import bfloat16_pays, encoding_precision


def test_the_precision_can_be_fixed_and_is_told() -> None:
    with encoding_precision("cpu", bfloat16=False) as used:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is used is torch.float32
    with encoding_precision("cpu") as used:
        assert used is (torch.bfloat16 if bfloat16_pays("cpu") else torch.float32)
    assert not torch.is_autocast_enabled("cpu")
    assert not bfloat16_pays("mps")
