"""Sliding-window inference of a 3-D network over a volume, and resampling of its output to the volume's grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid, orientation_of
from FewShotSegLib.progress import Progress, Report, silent

Array = NDArray[Any]


def foreground_logit(logits: Tensor) -> Tensor:
    """Return the logit of structure versus background (B, D, H, W) from logits (B, 2, D, H, W) or (B, 1, D, H, W)."""
    if logits.shape[1] not in (1, 2):
        raise InputError(f"A structure against all else has 1 or 2 channels, got {logits.shape[1]}.")
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def predict(
    network: nn.Module,
    image: Array,
    patch: Sequence[int],
    *,
    overlap: float = 0.5,
    batch: int = 1,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    report: Report = silent,
    message: str = "segmenting",
) -> NDArray[np.float32]:
    """Return logits (C, D, H, W) of an image (D, H, W) in [0, 1] of any size: overlapping patches with Gaussian
    weighting.

    The network is on `device`; the sum over patches stays in main memory. `report` is called before each `batch` of
    patches.
    """
    if not 0 <= overlap < 1:
        raise InputError(f"The overlap of patches is from 0 to below 1, got {overlap:g}.")
    total, step = math.ceil(_windows(image.shape, patch, overlap) / batch), itertools.count()

    def logits_of(windows: Tensor) -> Tensor:
        report(Progress(next(step), total, message))
        with torch.autocast(windows.device.type, amp, enabled=amp is not None):
            return network(windows).float()

    from monai.inferers import sliding_window_inference  # takes seconds, and not every predictor needs it

    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            whole = sliding_window_inference(
                torch.from_numpy(np.require(image, np.float32, ["C", "W"]))[None, None],
                tuple(patch),
                batch,
                logits_of,
                overlap,
                mode="gaussian",
                sw_device=device,
                device="cpu",
            )
    finally:
        network.train(training)
    return whole[0].numpy()


def _windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """The number of MONAI's sliding-window patches for an image."""
    counts = []
    for size, side in zip(shape, patch, strict=True):
        step = max(int(side * (1 - overlap)), 1)
        counts.append(math.ceil(max(size - side, 0) / step) + 1)
    return math.prod(counts)


def decided(logits: Array, threshold: float | None = None) -> NDArray[np.uint8]:
    """Return the argmax over channels at each voxel, of (C, D, H, W) with at most 256 channels.

    With a `threshold` the background channel is ignored: voxels are 0 where no other logit exceeds it. At 0 that is the
    "sigmoid, threshold" of FLARE's fast entries, whose networks, too, were trained with softmax.

    Slice by slice for cache locality: about ten times as fast as argmax over the first axis.
    """
    labels = np.zeros(logits.shape[1:], np.uint8)
    for at, label in enumerate(labels):
        best = logits[0, at].copy() if threshold is None else np.full_like(logits[0, at], threshold)
        for channel in range(1, len(logits)):
            higher = logits[channel, at] > best
            np.maximum(best, logits[channel, at], out=best)
            np.maximum(label, higher * np.uint8(channel), out=label)  # later channels have higher indices
    return labels


def onto_volume(values: Array, volume: Volume, grid: Grid, planes: slice = slice(None)) -> NDArray[np.float32]:
    """Return a prediction on the grid (D, H, W) resampled to the voxels of the volume (K, J, I): inverse of
    `onto_grid`.

    Linear along each axis. For logits or probabilities; threshold afterwards. `planes` selects slices along K.
    """
    result, steps = _turned_back(np.asarray(values, np.float32), volume, grid)
    for axis, size in enumerate(volume.shape):
        weights = _linear(size, result.shape[axis], steps[axis])
        if not axis:
            weights = weights[planes]
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result)


def labels_onto_volume(labels: Array, volume: Volume, grid: Grid) -> Array:
    """Return labels on the grid (D, H, W) at the voxels of the volume (K, J, I): nearest neighbour.

    Far faster and smaller than resampling the logits of many structures, but edges are accurate to one grid voxel only.
    """
    result, steps = _turned_back(np.asarray(labels), volume, grid)
    for axis, size in enumerate(volume.shape):
        at = np.floor(_places_in(size, result.shape[axis], steps[axis]) + 0.5).astype(int)
        result = np.take(result, np.clip(at, 0, result.shape[axis] - 1), axis=axis)
    return np.ascontiguousarray(result)


def _turned_back(values: Array, volume: Volume, grid: Grid) -> tuple[Array, list[float]]:
    """The values reoriented to the volume's array axes, and its voxel size along each in voxels of the grid."""
    own = orientation_of(volume.affine)[::-1]  # in array axis order, as below
    wanted = grid.orientation[::-1]
    source = [next(axis for axis in range(3) if _alike(letter, wanted[axis])) for letter in own]
    backwards = tuple(axis for axis in range(3) if own[axis] != wanted[source[axis]])
    steps = [float(volume.spacing_mm[2 - axis] / grid.spacing_mm[2 - source[axis]]) for axis in range(3)]
    return np.flip(values.transpose(source), backwards), steps


def _alike(letter: str, other: str) -> bool:
    return any(letter in pair and other in pair for pair in ("LR", "AP", "SI"))


def _linear(size: int, given: int, step: float) -> NDArray[np.float32]:
    """(size, given) weights of linear interpolation with aligned centres and edge replication."""
    at = _places_in(size, given, step)
    return np.clip(1 - np.abs(at[:, None] - np.arange(given)), 0, None).astype(np.float32)


def _places_in(size: int, given: int, step: float) -> Array:
    """Positions of `size` voxels among `given` ones that are `step` times smaller, with aligned centres."""
    return np.clip((np.arange(size) - (size - 1) / 2) * step + (given - 1) / 2, 0, given - 1)
