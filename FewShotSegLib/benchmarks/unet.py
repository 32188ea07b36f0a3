"""Standard baselines: a 2-D U-Net, or the Attention U-Net of the Cheap Lunch paper's comparison, trained
from scratch on the same annotated slices for the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import AttentionUnet, UNet
from torch import nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.devices import patch_precision
from FewShotSegLib.imaging.slice_frame import mask_from_network
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.methods.lora import Recipe
from FewShotSegLib.progress import Report
from FewShotSegLib.training.fit import Schedule, fit, step_rng
from FewShotSegLib.training.prompted import synthesizer_of

IMAGE_SIZE, BATCH = 256, 8


def train_unet(
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    *,
    seed: int,
    seconds: float,
    report: Report,
    attention: bool = False,
) -> tuple[nn.Module, dict[int, str]]:
    """MONAI's residual U-Net or its Attention U-Net (Oktay et al. 2018), Dice + cross-entropy, with the geometric and
    intensity augmentation of our synthesis.
    """
    structures = dict(exemplars[0].structures)
    classes = {value: number for number, value in enumerate(sorted(structures), 1)}
    recipe = Recipe()
    whole = replace(recipe, synthesizer=replace(recipe.synthesizer, original_probability=1.0, empty_probability=0.0))
    source = synthesizer_of(exemplars, intensity, IMAGE_SIZE, whole, structures)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(len(classes) + 1, attention)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    lookup = np.zeros(max(classes) + 1, np.int64)
    lookup[list(classes)] = list(classes.values())

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        samples = [source.draw(step_rng(seed, BATCH * step + i)) for i in range(BATCH)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))[:, None]
        labels = torch.from_numpy(np.stack([lookup[sample.labels] for sample in samples]))[:, None]
        return loss(network(images).float(), labels), {}

    schedule = Schedule(100_000, 2e-3, weight_decay=1e-4, warmup_steps=10, max_seconds=seconds)
    amp = patch_precision("cpu")
    fit(dict(network.named_parameters()), loss_at, schedule, report=report, amp=amp)
    return network.eval(), structures


def _network(channels: int, attention: bool) -> nn.Module:
    shape: dict[str, Any] = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}
    if attention:
        return AttentionUnet(2, 1, channels, **shape)
    return UNet(2, 1, channels, num_res_units=2, **shape)


def segment_unet(
    network: nn.Module,
    structures: dict[int, str],
    volume: Volume,
    intensity: IntensitySpec,
    image_size: int | None = None,
) -> Labelmap:
    """Labels by argmax over classes, on the volume's own grid.

    `network` maps images (1, 1, S, S) to logits (1, K + 1, h, w), background first, then structures by value;
    S is `image_size`, by default the U-Net's.
    """
    reader = SliceReader(volume, intensity, image_size or IMAGE_SIZE)
    values = np.array([0, *sorted(structures)], np.uint8)
    labels: np.ndarray[Any, Any] = np.zeros(volume.shape, np.uint8)
    for index in range(volume.shape[0]):
        with torch.inference_mode():
            logits = network(torch.from_numpy(reader.square(index))[None, None])[0].float().cpu().numpy()
        layers = [mask_from_network(layer, reader.frame(index)) for layer in logits]
        labels[index] = values[np.argmax(layers, axis=0)]
    return Labelmap(volume.like(labels), structures)
