"""The U-Net trained from scratch that adapters are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from FewShotSegLib.benchmarks import unet
from FewShotSegLib.benchmarks.unet import segment_unet, train_unet
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import StopAndKeepBest
from FewShotSegLib.progress import Progress
from Testing.conftest import Listener

WINDOW = IntensitySpec("window", -200, 200)


class Thirds(nn.Module):
    """Three classes: what is dark, middling or bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, 0.2 - (x - 0.5).abs(), x - 0.5], 1)


def test_the_most_likely_class_becomes_the_label_of_its_structure(a_volume: Volume) -> None:
    x = (a_volume.array.astype(float).clip(-200, 200) + 200) / 400
    expected = np.array([0, 3, 8])[np.stack([0.5 - x, 0.2 - np.abs(x - 0.5), x - 0.5]).argmax(0)]
    labelmap = segment_unet(Thirds(), {8: "liver", 3: "spleen"}, a_volume, WINDOW)
    inner = np.s_[:, 2:-2, 2:-2]  # enlarged to 256 pixels and back
    assert labelmap.structures == {3: "spleen", 8: "liver"}
    assert labelmap.volume.same_geometry(a_volume)
    assert (labelmap.volume.array[inner] == expected[inner]).mean() > 0.7
    assert set(np.unique(labelmap.volume.array)) == {0, 3, 8}


def test_training_follows_its_seed_and_leaves_the_global_generator_alone(
    an_exemplar: Exemplar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "IMAGE_SIZE", 64)
    monkeypatch.setattr(unet, "BATCH", 1)
    state = torch.random.get_rng_state()
    losses, weights = [], []
    for seed in (0, 0, 1):
        listener = Stopper(2)
        network, structures = train_unet([an_exemplar], WINDOW, seed=seed, seconds=60.0, report=listener)
        losses.append([p.metrics["loss"] for p in listener.heard])
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert structures == an_exemplar.structures
    assert not network.training
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("attention", "kind"), [(False, nets.UNet), (True, nets.AttentionUnet)])
def test_both_kinds_are_monais_and_one_channel_is_the_background(attention: bool, kind: type[nn.Module]) -> None:
    network = unet._network(4, attention)
    assert isinstance(network, kind)
    assert network.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 4, 64, 64)


class Stopper(Listener):
    """Has seen enough after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def __call__(self, progress: Progress) -> None:
        super().__call__(progress)
        if progress.step == self.steps:
            raise StopAndKeepBest
