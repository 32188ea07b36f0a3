"""A 3-D network over a whole volume, window by window, and its answer on the grid of the volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid, orientation_of
from FewShotSegLib.progress import Progress, Report, silent

Array = NDArray[Any]


def foreground_logit(logits: Tensor) -> Tensor:
    """Return the logit of structure against background (B, D, H, W) of logits (B, 2, D, H, W) or (B, 1, D, H, W)."""
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
    """Return logits (C, D, H, W) of an image (D, H, W) in [0, 1], of any size: overlapping patches, weighted by a
    Gaussian about their centres.

    The network lies on `device`; the sum of the patches stays in main memory. `report` is called before each `batch` of
    patches.
    """
    if not 0 <= overlap < 1:
        raise InputError(f"The overlap of patches is from 0 to below 1, got {overlap:g}.")
    total, step = math.ceil(_windows(image.shape, patch, overlap) / batch), itertools.count()

    def logits_of(windows: Tensor) -> Tensor:
        report(Progress(next(step), total, message))
        with torch.autocast(windows.device.type, amp, enabled=amp is not None):
            return network(windows).float()

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
    """How many patches MONAI lays over an image."""
    counts = []
    for size, side in zip(shape, patch, strict=True):
        step = max(int(side * (1 - overlap)), 1)
        counts.append(math.ceil(max(size - side, 0) / step) + 1)
    return math.prod(counts)


def decided(logits: Array, threshold: float | None = None) -> NDArray[np.uint8]:
    """Return the channel of the highest value at each voxel, of (C, D, H, W) with at most 256 channels.

    With a `threshold` the background's channel does not count: 0 is where no other logit is above it. At 0 that is
    "sigmoid, threshold" of FLARE's fast entries, whose networks too were trained with softmax.

    Slice by slice, so that what is compared stays in the processor's cache: about ten times as fast as argmax over the
    first axis.
    """
    labels = np.zeros(logits.shape[1:], np.uint8)
    for at, label in enumerate(labels):
        best = logits[0, at].copy() if threshold is None else np.full_like(logits[0, at], threshold)
        for channel in range(1, len(logits)):
            higher = logits[channel, at] > best
            np.maximum(best, logits[channel, at], out=best)
            np.maximum(label, higher * np.uint8(channel), out=label)  # a later channel has the higher number
    return labels


def onto_volume(values: Array, volume: Volume, grid: Grid, planes: slice = slice(None)) -> NDArray[np.float32]:
    """Return what was predicted on the grid (D, H, W) at the voxels of the volume (K, J, I): `onto_grid` undone.

    Linear along each axis. For logits or probabilities; threshold afterwards. `planes` chooses some along K.
    """
    result, steps = _turned_back(np.asarray(values, np.float32), volume, grid)
    for axis, size in enumerate(volume.shape):
        weights = _linear(size, result.shape[axis], steps[axis])
        if not axis:
            weights = weights[planes]
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result)


def labels_onto_volume(labels: Array, volume: Volume, grid: Grid) -> Array:
    """Return labels on the grid (D, H, W) at the voxels of the volume (K, J, I): those of the nearest voxel.

    Far faster and smaller than bringing back the logits of many structures, with edges a voxel of the grid rough.
    """
    result, steps = _turned_back(np.asarray(labels), volume, grid)
    for axis, size in enumerate(volume.shape):
        at = np.floor(_places_in(size, result.shape[axis], steps[axis]) + 0.5).astype(int)
        result = np.take(result, np.clip(at, 0, result.shape[axis] - 1), axis=axis)
    return np.ascontiguousarray(result)


def _turned_back(values: Array, volume: Volume, grid: Grid) -> tuple[Array, list[float]]:
    """The values with the volume's array axes, and its voxel size along each in voxels of the grid."""
    own = orientation_of(volume.affine)[::-1]  # of array axes, as the ones below
    wanted = grid.orientation[::-1]
    source = [next(axis for axis in range(3) if _alike(letter, wanted[axis])) for letter in own]
    backwards = tuple(axis for axis in range(3) if own[axis] != wanted[source[axis]])
    steps = [float(volume.spacing_mm[2 - axis] / grid.spacing_mm[2 - source[axis]]) for axis in range(3)]
    return np.flip(values.transpose(source), backwards), steps


def _alike(letter: str, other: str) -> bool:
    return any(letter in pair and other in pair for pair in ("LR", "AP", "SI"))


def _linear(size: int, given: int, step: float) -> NDArray[np.float32]:
    """(size, given) weights of linear interpolation, the middle of both in one place, the last values repeated."""
    at = _places_in(size, given, step)
    return np.clip(1 - np.abs(at[:, None] - np.arange(given)), 0, None).astype(np.float32)


def _places_in(size: int, given: int, step: float) -> Array:
    """Where `size` voxels lie among `given` ones that are `step` times as small, the middle of both in one place."""
    return np.clip((np.arange(size) - (size - 1) / 2) * step + (given - 1) / 2, 0, given - 1)
