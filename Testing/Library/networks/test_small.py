"""The small nnU-Net-like network and its deep supervision."""

from __future__ import annotations

import numpy as np
import torch

from FewShotSegLib.networks.small import supervised


def test_deep_supervision_weighs_each_resolution_half_as_much_as_the_finer_one() -> None:
    logits = torch.randn(2, 4, 3, 1, 5, 5)
    parts = supervised(logits)
    np.testing.assert_allclose([weight for weight, _ in parts], np.array([8, 4, 2, 1]) / 15)
    assert all(torch.equal(part, logits[:, depth]) for depth, (_, part) in enumerate(parts))
    assert supervised(logits[:, 0])[0][0] == 1
