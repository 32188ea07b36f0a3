"""Pictures to watch a training by: what is drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.answers_picture import TRUTH, answers_picture

STRUCTURES = {1: "liver", 2: "spleen"}


def a_sample(value: int) -> Any:
    labels = np.zeros((64, 64), np.uint8)
    labels[20:30, 10:40] = value
    return SimpleNamespace(image=np.full((64, 64), 0.5, np.float32), labels=labels)


def test_truth_and_answers_are_outlined_on_the_images_side_by_side(a_tiny_sam: PromptableNetwork) -> None:
    generator = torch.Generator().manual_seed(0)
    adaptation = Adaptation(a_tiny_sam, AdaptationSpec(LoraSpec()), sorted(STRUCTURES), generator=generator)
    samples = [a_sample(1), a_sample(2)]
    with adaptation.applied(a_tiny_sam):
        picture = answers_picture(a_tiny_sam, adaptation, samples, torch.zeros(2, 3, 64, 64), STRUCTURES)
    assert (picture.shape, picture.dtype) == ((64, 128, 3), np.uint8)
    colors = {TRUTH, (127, 127, 127)} | {
        tuple(int(v) for v in np.round(255 * np.array(color))) for color in structure_colors(STRUCTURES).values()
    }
    assert {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} <= colors
    ring = np.zeros((64, 64), bool)
    ring[20:30, 10:40] = True
    ring[21:29, 11:39] = False
    for half in (picture[:, :64], picture[:, 64:]):
        assert not (half[ring] == 127).all(axis=1).any()
        assert not (half[~ring] == 255).all(axis=1).any()
