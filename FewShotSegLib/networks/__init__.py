"""Networks for 3-D patches, trained end to end, by name.

Parameters, one channel in and two out, for the ASAP paper's patch of 32 x 240 x 240:

| name      | after                                           |     small |      paper |
|-----------|-------------------------------------------------|-----------|------------|
| unet      | MONAI `UNet`, residual                          | 1,202,793 |  4,806,481 |
| swinunet  | MONAI `SwinUNETR`                               | 3,761,045 | 15,691,196 |
| mambaunet | Mamba-UNet, own, plain torch                    | 1,283,226 | 27,044,042 |
| dynunet   | MONAI `DynUNet`, nnU-Net-like, deep supervision | 1,398,400 |  5,590,008 |

"paper" is what the papers use (on a GPU); "small" trains on a CPU. `dynunet` also has "large", the teacher of the UDA
paper.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.networks.shape import Shape, kernels_of, strides_of
from FewShotSegLib.networks.weights import load_weights, weights_of

__all__ = [
    "NETWORKS",
    "SIZES",
    "build",
    "kernels_of",
    "load_weights",
    "parameter_count",
    "strides_of",
    "weights_of",
]

# Name -> module below this folder, and its class. Imported when built: MONAI takes seconds to import, and everything
# that loads a promptable model imports this package.
_CLASSES = {
    "unet": ("unet", "UNet"),
    "swinunet": ("swin", "SwinUNet"),
    "mambaunet": ("mamba", "MambaUNet"),
    "dynunet": ("small", "DynUNet"),
}
NETWORKS = tuple(_CLASSES)
SIZES = ("small", "paper")
TEACHER = "large"  # of dynunet alone
SMALLEST_PATCH = 4


def build(
    name: str,
    *,
    in_channels: int = 1,
    out_channels: int = 2,
    patch: Sequence[int],
    size: str = "small",
    spacing: Sequence[float] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a network with fresh weights: images (B, in_channels, D, H, W) -> logits (B, out_channels, D, H, W).

    `patch` (D, H, W) is the training patch size, `spacing` the voxel size along the same axes (only its ratios matter);
    both determine the strides. Other input sizes are accepted too. The same arguments give the same weights, and
    torch's global random state is left alone. All arguments but `seed` are JSON: an `Adapter.architecture`.

    In training mode `dynunet` has outputs at several resolutions, (B, S, out_channels, D, H, W): see
    `networks.small.supervised`.
    """
    if name not in NETWORKS:
        raise InputError(f'There is no network "{name}"; choose {", ".join(NETWORKS)}.')
    if size not in SIZES and (name, size) != ("dynunet", TEACHER):
        raise InputError(f'The size of a network is one of {", ".join(SIZES)}, got "{size}".')
    _check_channels(in_channels, out_channels)
    shape, lengths = _checked_patch(patch), _checked_spacing(spacing)
    module, class_name = _CLASSES[name]
    made = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network: nn.Module = made(in_channels, out_channels, shape, lengths, size)
    return network


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _check_channels(in_channels: int, out_channels: int) -> None:
    for what, count in (("in_channels", in_channels), ("out_channels", out_channels)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{what} of a network is a whole number from 1, got {count!r}.")


def _checked_patch(patch: Sequence[int]) -> Shape:
    sizes = list(patch)
    whole = len(sizes) == 3 and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    if not whole or sum(n >= SMALLEST_PATCH for n in sizes) < 2:
        raise InputError(
            f"A patch is three whole numbers of voxels (D, H, W), two of them at least {SMALLEST_PATCH}, got {patch!r}."
        )
    d, h, w = sizes
    return d, h, w


def _checked_spacing(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    lengths = tuple(float(length) for length in spacing)
    if len(lengths) != 3 or not all(0 < length < float("inf") for length in lengths):
        raise InputError(f"Spacing is three lengths above 0 along (D, H, W), got {spacing!r}.")
    return lengths
