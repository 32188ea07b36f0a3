"""Cost of segmenting a whole CT with the small network, and the savings of resampling labels instead of probabilities.

The approach of FLARE's fast entries, "sigmoid, threshold, resample": decide at the network's resolution and resample
the labels by nearest neighbour. The standard approach resamples the probabilities of every structure and decides then.
Weights are random: time and memory do not depend on them. The resampled maps are real labels, blurred to probabilities.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.benchmarks.datasets import CT_WINDOW, DATASETS
from FewShotSegLib.benchmarks.pairing import interleaved, milliseconds, ratios
from FewShotSegLib.benchmarks.records import markdown
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid, onto_grid
from FewShotSegLib.inference.sliding_window import decided, labels_onto_volume
from FewShotSegLib.inference.volume_network import VolumePredictor, grid_to_dict, network_arguments
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.jobs.memory_curve import MemoryCurve, memory_of
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import weights_of
from FewShotSegLib.progress import silent

Labels = NDArray[np.uint8]

WHOLE = ("chaos_ct_liver_1/img.nii.gz", "chaos_ct_liver_1/lab.nii.gz")
ORGANS = 13
# Spacing and patch of the paper's network, of the FLARE 2022 winner's, and of one for a CPU: 128 voxels across 370 mm.
GRIDS = {
    "paper": ("paper", (0.81, 0.81, 2.5), (40, 224, 192)),
    "FLARE 2022": ("paper", (1.2, 1.2, 4.0), (32, 128, 192)),
    "cpu": ("small", (2.9, 2.9, 4.0), (16, 96, 96)),
}
EDGE_VOXELS = 0.7  # SD of the blur that turns hard edges into soft ones like a network's


def costs(data: Path, repeats: int) -> str:
    """Two Markdown tables: a whole case, and resampling labels against probabilities."""
    image = data / WHOLE[0]
    if not image.is_file():
        raise InputError(f"There is no {image}; the time of a whole case is measured on it.")
    return f"{_whole_case(load_volume(image))}\n{_resampling(data, repeats)}"


# ---------------------------------------------------------------------------------------------------------- resampling


def _resampling(data: Path, repeats: int) -> str:
    rows = []
    for name, volume, labels, count in _labelled(data):
        for kind, (_, spacing, patch) in GRIDS.items():
            grid = Grid.of(volume, patch, spacing)
            probabilities = _probabilities(volume, labels, count, grid)

            def stock(given: NDArray[np.float32] = probabilities, shape: tuple[int, ...] = volume.shape) -> Labels:
                with torch.inference_mode():
                    whole = F.interpolate(torch.from_numpy(given)[None], shape, mode="trilinear")
                    return decided(whole[0].numpy())

            def ours(given: NDArray[np.float32] = probabilities, at: Volume = volume, grid: Grid = grid) -> Labels:
                return labels_onto_volume(decided(given), at, grid)

            seconds = interleaved({"probabilities": stock, "labels": ours}, repeats)
            ratio = ratios(seconds["probabilities"], seconds["labels"])
            rows.append(
                [
                    f"{name}, {count} classes",
                    f"{_sizes(probabilities.shape[1:])} ({kind})",
                    _sizes(volume.shape),
                    milliseconds(seconds["probabilities"]),
                    milliseconds(seconds["labels"]),
                    f"{ratio.median:.1f} ({ratio.low:.1f} to {ratio.high:.1f})",
                    f"{_dice(stock(), ours()):.3f}",
                ]
            )
    head = ["labels resampled", "from", "to", "probabilities", "labels", "ratio", "Dice of the two"]
    return markdown(head, rows)


def _labelled(data: Path) -> list[tuple[str, Volume, Labels, int]]:
    """Name, volume, labels and number of classes, including background."""
    whole = load_volume(data / WHOLE[0])
    liver = load_labelmap(data / WHOLE[1]).volume.array
    known = DATASETS["btcv"]
    found = [("CT, liver", whole, (liver > 0).astype(np.uint8), 2)]
    for image in sorted(data.glob(known.images))[:1]:
        labels = load_labelmap(known.labelmap_of(image)).volume.array
        found.append((f"CT, {ORGANS} organs", load_volume(image), labels.astype(np.uint8), ORGANS + 1))
    return found


def _probabilities(volume: Volume, labels: Labels, count: int, grid: Grid) -> NDArray[np.float32]:
    """(C, D, H, W) on the grid: each label's mask, blurred; they sum to 1."""
    masks = ((labels == value).astype(np.float32) for value in range(count))
    coarse = (onto_grid(mask, labels, volume.affine, grid)[0] for mask in masks)
    return np.stack([ndimage.gaussian_filter(mask, EDGE_VOXELS) for mask in coarse])


def _dice(a: Labels, b: Labels) -> float:
    """Mean Dice over the structures in either."""
    values = np.union1d(np.unique(a), np.unique(b))
    scores = [2 * np.sum((a == v) & (b == v)) / (np.sum(a == v) + np.sum(b == v)) for v in values if v]
    return float(np.mean(scores))


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in reversed(shape))


# ---------------------------------------------------------------------------------------------------------- whole case


def _whole_case(volume: Volume) -> str:
    head = (
        f"A whole CT, {_sizes(volume.shape)} voxels, {ORGANS} organs, {torch.get_num_threads()} CPU threads; memory is "
        "that of the whole process, and the area is under its curve over time.\n\n"
    )
    rows = []
    for size, spacing, patch in reversed(GRIDS.values()):  # small ones first
        predictor = VolumePredictor(_adapter(volume, size, Grid.of(volume, patch, spacing)), torch.device("cpu"))
        used = memory_of(torch.device("cpu"))
        with MemoryCurve(used) as curve:
            predictor.segment(volume, report=silent)
        cost = curve.summary()
        memory = [f"{cost[key]:.0f}" if used else "unknown" for key in ("peak_mb", "area_mb_s")]
        rows.append([f"dynunet {size}", str(spacing), _sizes(patch), f"{cost['seconds']:.1f}", *memory])
    return head + markdown(
        ["network", "voxels, mm", "patch", "seconds", "peak memory, MB", "memory x time, MB s"], rows
    )


def _adapter(volume: Volume, size: str, grid: Grid) -> Adapter:
    """An adapter as `methods.uda` makes them, with random weights."""
    arguments = network_arguments(grid, "dynunet", size, ORGANS + 1)
    return Adapter(
        tensors=weights_of(build(**arguments)),
        method="uda",
        recipe={},
        base_model="",
        base_sha256="",
        structures={value: f"organ {value}" for value in range(1, ORGANS + 1)},
        intensity=CT_WINDOW,
        image_size=max(grid.patch),
        seed=0,
        axis=0,
        provenance={},
        metrics={},
        architecture={
            "network": arguments,
            "head": "classes",
            "grid": grid_to_dict(grid),
            "anatomy": AnatomySpace().settled([volume]).to_dict(),
            "edges": "grid",
            "resample": "labels",
        },
    )
