"""The small nnU-Net-like network of unsupervised adaptation, and its deep supervision."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor

from FewShotSegLib.networks.shape import AnySize, Shape, kernels_of, product, strides_of

# "paper": 16 channels, two convolutions per stage, four poolings (Zhu et al. 2024, after the winner of FLARE 2022).
# "large": the paper's default network, which teaches the small one: 32 channels, five poolings, at most nnU-Net's 320.
FILTERS = {
    "small": (8, 16, 32, 64, 128),
    "paper": (16, 32, 64, 128, 256),
    "large": (32, 64, 128, 256, 320, 320),
}


class DynUNet(AnySize, nets.DynUNet):
    """MONAI's `DynUNet`, planned by nnU-Net's rules; in training mode it answers at four resolutions.

    Then logits are (B, 4, out_channels, D, H, W), finest first, all at full size; see `supervised`.
    """

    HEAD = ("output_block.", "deep_supervision_heads.")

    def __init__(
        self, in_channels: int, out_channels: int, patch: Shape, spacing: tuple[float, ...] | None, size: str
    ) -> None:
        filters = FILTERS[size]
        strides = strides_of(patch, len(filters) - 1, spacing)
        super().__init__(
            3,
            in_channels,
            out_channels,
            kernel_size=kernels_of(patch, strides, spacing),
            strides=[(1, 1, 1), *strides],
            upsample_kernel_size=strides,
            filters=filters,
            deep_supervision=True,
            deep_supr_num=len(filters) - 2,
        )
        self.multiple = product(strides)


def supervised(logits: Tensor) -> list[tuple[float, Tensor]]:
    """Return the weights and logits (B, C, D, H, W) that a loss is the weighted sum over.

    Logits (B, C, D, H, W) are one pair; of deeply supervised ones (B, S, C, D, H, W) each weighs half as much as the
    one before, 1 together (nnU-Net).
    """
    if logits.ndim == 5:
        return [(1.0, logits)]
    weights = [0.5**depth for depth in range(logits.shape[1])]
    return [(weight / sum(weights), logits[:, depth]) for depth, weight in enumerate(weights)]
