"""MONAI's residual U-Net (Kerfoot et al. 2018), for patches of any shape."""

from __future__ import annotations

from monai.networks import nets

from FewShotSegLib.networks.shape import AnySize, Shape, product, strides_of

# "paper": the channels of MONAI's own examples and bundles; the ASAP paper does not specify them.
CHANNELS = {"small": (8, 16, 32, 64, 128), "paper": (16, 32, 64, 128, 256)}


class UNet(AnySize, nets.UNet):
    """MONAI's `UNet` with two convolutions per residual unit and instance norm; parameter names and shapes are MONAI's
    and independent of the patch, except for single-slice patches.
    """

    HEAD = ("model.2.",)

    def __init__(
        self, in_channels: int, out_channels: int, patch: Shape, spacing: tuple[float, ...] | None, size: str
    ) -> None:
        channels = CHANNELS[size]
        strides = strides_of(patch, len(channels) - 1, spacing)
        kernel = [1 if voxels == 1 else 3 for voxels in patch]
        super().__init__(
            3,
            in_channels,
            out_channels,
            channels,
            strides,  # type: ignore[arg-type]
            kernel_size=kernel,
            up_kernel_size=kernel,
            num_res_units=2,
        )
        self.multiple = product(strides)
