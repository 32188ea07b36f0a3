"""The small nnU-Net-like network for unsupervised domain adaptation, and its deep supervision."""

from __future__ import annotations

from monai.networks import nets
from torch import Tensor

from FewShotSegLib.networks.shape import AnySize, Shape, kernels_of, product, strides_of

# "paper": 16 channels, two convolutions per stage, four downsamplings (Zhu et al. 2024, after the FLARE 2022 winner).
# "large": the paper's default network, the teacher of the small one: 32 channels, five downsamplings, at most nnU-Net's
# 320.
FILTERS = {
    "small": (8, 16, 32, 64, 128),
    "paper": (16, 32, 64, 128, 256),
    "large": (32, 64, 128, 256, 320, 320),
}


class DynUNet(AnySize, nets.DynUNet):
    """MONAI's `DynUNet`, configured by nnU-Net's rules; in training mode it has outputs at four resolutions.

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
    """Return pairs of weight and logits (B, C, D, H, W); the loss is the weighted sum over them.

    Logits (B, C, D, H, W) give one pair; for deep supervision (B, S, C, D, H, W) each weight is half the previous one,
    summing to 1 (nnU-Net).
    """
    if logits.ndim == 5:
        return [(1.0, logits)]
    weights = [0.5**depth for depth in range(logits.shape[1])]
    return [(weight / sum(weights), logits[:, depth]) for depth, weight in enumerate(weights)]
