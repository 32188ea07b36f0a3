"""Predictions of a model in training on held-out samples, as an image for monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.lora.heads import target_of
from FewShotSegLib.sam.clicks import FIRST_PROMPT
from FewShotSegLib.sam.network import PADDING, PromptableNetwork, PromptBatch
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.visualization.overlays import outline, outlined

TRUTH = (255, 255, 255)


def answers_picture(
    network: PromptableNetwork,
    adaptation: Adaptation,
    samples: Sequence[Sample],
    images: Tensor,
    structures: Mapping[int, str],
) -> NDArray[np.uint8]:
    """An image (S, B S, 3) of B samples side by side: ground truth as white outlines, predictions without clicks as
    coloured ones. The adaptation must be in place; `images` is the network input (B, 3, S, S) of the samples.
    """
    answers = _labels_found(network, adaptation, images)
    colors = structure_colors(structures)
    return np.concatenate([_drawn(s, found, colors) for s, found in zip(samples, answers, strict=True)], axis=1)


def _labels_found(network: PromptableNetwork, adaptation: Adaptation, images: Tensor) -> NDArray[np.int64]:
    """Label values (B, S, S); where structures overlap, the higher logit wins."""
    values = np.array([0, *adaptation.structures])
    asked = adaptation.structures * len(images)
    with torch.inference_mode():
        embedding = network.encode(images)
        coords = torch.zeros(len(asked), FIRST_PROMPT, 2, device=network.device)
        labels = torch.full((len(asked), FIRST_PROMPT), PADDING, device=network.device)
        prompts = adaptation.structure_prompts(network, embedding, PromptBatch(coords, labels), asked)
        logits, _ = target_of(*network.decode(embedding, prompts))
        logits = logits.float().view(len(images), len(adaptation.structures), *logits.shape[-2:])  # B K h w
        logits = F.interpolate(logits, images.shape[-2:], mode="bilinear")
        winner = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).argmax(dim=1)
    return np.asarray(values[winner.cpu().numpy()])


def _drawn(
    sample: Sample, found: NDArray[np.int64], colors: Mapping[int, tuple[float, float, float]]
) -> NDArray[np.uint8]:
    picture = outlined(sample.image, found, colors)
    for value in colors:
        picture[outline(sample.labels == value) & ~outline(found == value)] = TRUTH
    return picture
