"""3-D networks as adapters: their serialization, and segmenting volumes with them. They do not support clicks.

Such an adapter has no base model. Its `architecture` contains everything needed for prediction:

    network   arguments of `networks.build`
    head      "binary": a network per structure, its tensors called "<label>/<name>"; "classes": one for all of them
    grid      spacing_mm (i, j, k), patch (D, H, W), orientation: to which volumes are resampled
    anatomy   `AnatomySpace` as a table, where the network sees edges instead of intensities
    edges     "grid": they are computed after resampling to the grid; "voxels" or missing: before
    resample  "logits" or "labels": what is resampled back to the voxels of the volume
    decide    "threshold": foreground is where a logit is above 0 (sigmoid above 1/2); missing: the highest logit wins
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.devices import patch_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid, image_onto_grid
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import load_weights, weights_of
from FewShotSegLib.progress import Progress, Report, silent

from .segment import Segmentation, SegmentOptions, cleaned
from .sliding_window import decided, foreground_logit, labels_onto_volume, onto_volume, predict

Array = NDArray[Any]

OVERLAP = 0.5
PLANES = 16  # slices of a volume to which logits are resampled at a time


def network_arguments(grid: Grid, name: str, size: str, out_channels: int = 2) -> dict[str, Any]:
    """Arguments of `networks.build` for a network on this grid, as JSON types."""
    spacing = [float(mm) for mm in reversed(grid.spacing_mm)]  # along D, H, W
    return {"name": name, "size": size, "out_channels": out_channels, "patch": list(grid.patch), "spacing": spacing}


def tensors_of(networks: Mapping[int, nn.Module]) -> dict[str, Array]:
    """Tensors of binary networks {label: network} for an adapter."""
    return {f"{value}/{name}": t for value, network in networks.items() for name, t in weights_of(network).items()}


def grid_to_dict(grid: Grid) -> dict[str, Any]:
    """A grid as JSON types."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(grid).items()}


def grid_from_dict(values: Mapping[str, Any]) -> Grid:
    """The grid from JSON types."""
    i, j, k = values["spacing_mm"]
    d, h, w = values["patch"]
    return Grid((float(i), float(j), float(k)), (int(d), int(h), int(w)), values["orientation"])


def seen_by(volume: Volume, intensity: IntensitySpec, anatomy: AnatomySpace | None = None) -> Array:
    """The network input from a volume, (K, J, I) in [0, 1]: its anatomy image if such a space is given, else its
    intensities.
    """
    if anatomy is not None:
        return anatomy.apply(volume).array
    return intensity.apply(volume.array, intensity.range_of(volume.array))


def on_grid(
    volume: Volume, intensity: IntensitySpec, grid: Grid, anatomy: AnatomySpace | None = None, edges: str = "voxels"
) -> NDArray[np.float32]:
    """The network input on the grid: (D, H, W) in [0, 1].

    `edges` "grid": edges of the resampled image. Those of the original voxels ("voxels") are rectified noise where
    voxels are small, which averages to a haze on a coarser grid: inside against rim of a liver in CT .42, on the grid
    .14.
    """
    late = anatomy is not None and edges == "grid"
    image = seen_by(volume, intensity, None if late else anatomy)
    image = image_onto_grid(image, volume.affine, grid)
    if anatomy is None or not late:
        return image
    space = replace(anatomy, intensity=IntensitySpec("window", 0.0, 1.0))
    return space.apply(Volume(image, np.diag([*grid.spacing_mm, 1.0]))).array


def is_volume_network(adapter: Adapter) -> bool:
    """Whether an adapter is a stand-alone 3-D network."""
    return not adapter.base_model and bool(adapter.architecture and "network" in adapter.architecture)


class VolumePredictor:
    """The networks of an adapter on a device."""

    advice = ""  # no faster alternative

    def __init__(self, adapter: Adapter, device: torch.device) -> None:
        if not is_volume_network(adapter):
            raise InputError(f"The adapter was made for the base model {adapter.base_model} and holds no 3-D network.")
        self.adapter, self.device = adapter, device
        self.architecture = dict(adapter.architecture or {})
        self.grid = grid_from_dict(self.architecture["grid"])
        anatomy = self.architecture.get("anatomy")
        self.anatomy = AnatomySpace.from_dict(anatomy) if anatomy else None
        self.identity = ("", 0, adapter.digest)
        values = sorted(adapter.structures) if self.architecture["head"] == "binary" else [0]
        self.networks = {value: self._network(value) for value in values}

    def _network(self, value: int) -> nn.Module:
        network = build(**self.architecture["network"])
        prefix = f"{value}/" if value else ""
        own = {name.removeprefix(prefix): t for name, t in self.adapter.tensors.items() if name.startswith(prefix)}
        load_weights(network, own)
        return network.to(self.device).eval()

    def forget_images(self) -> None:
        """No-op: nothing is cached."""

    def segment(
        self, volume: Volume, *, options: SegmentOptions | None = None, report: Report = silent
    ) -> Segmentation:
        """Segments a volume: its structures everywhere; where they overlap the higher logit wins."""
        options = options or SegmentOptions()
        threshold = 0.0 if self.architecture.get("decide") == "threshold" else None
        logits = self._logits(volume, report)  # (C, D, H, W), background first
        values = np.array(
            [0, *sorted(self.adapter.structures)], np.uint8 if max(self.adapter.structures) < 256 else np.uint16
        )
        probabilities: dict[int, NDArray[np.float16]] = {}
        if self.architecture.get("resample") == "labels" and not options.probabilities:
            labels = labels_onto_volume(values[decided(logits, threshold)], volume, self.grid)
        else:
            labels = np.empty(volume.shape, values.dtype)
            if options.probabilities:
                probabilities = {int(value): np.empty(volume.shape, np.float16) for value in values[1:]}
            # In parts: the logits of many structures at the voxels of a whole CT are gigabytes.
            for first in range(0, len(labels), PLANES):
                planes = slice(first, first + PLANES)
                part = np.stack([onto_volume(channel, volume, self.grid, planes) for channel in logits])
                labels[planes] = values[decided(part, threshold)]
                for at, share in enumerate(_shares(part) if options.probabilities else ()):
                    if at:
                        probabilities[int(values[at])][planes] = share
        report(Progress(1, 1, "segmented"))
        labels = cleaned(labels, volume.spacing_mm, options)
        return Segmentation(Labelmap(volume.like(labels), dict(self.adapter.structures)), probabilities, {})

    def _logits(self, volume: Volume, report: Report) -> NDArray[np.float32]:
        edges = self.architecture.get("edges", "voxels")
        image = on_grid(volume, self.adapter.intensity, self.grid, self.anatomy, edges)
        amp = patch_precision(self.device)
        found = []
        for value, network in self.networks.items():
            message = f"segmenting {self.adapter.structures[value]}" if value else "segmenting"
            logits = predict(
                network,
                image,
                self.grid.patch,
                overlap=OVERLAP,
                device=self.device,
                amp=amp,
                report=report,
                message=message,
            )
            found.append(logits if not value else foreground_logit(torch.from_numpy(logits)[None])[0].numpy())
        if 0 in self.networks:
            return np.asarray(found[0])
        return np.stack([np.zeros_like(found[0]), *found])


def _shares(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the first axis of (C, D, H, W)."""
    shares = np.exp(logits - logits.max(axis=0))
    shares /= shares.sum(axis=0)
    return shares
