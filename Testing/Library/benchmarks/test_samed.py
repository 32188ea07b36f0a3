"""The head of K + 1 classes: what it starts from, its loss, and that it learns without touching the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.benchmarks.samed import UNKNOWN, ClassNetwork, class_decoder, class_loss, train_samed
from FewShotSegLib.benchmarks.unet import segment_unet
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.methods import lora
from FewShotSegLib.sam.network import PromptableNetwork
from Testing.conftest import Listener, dice, sha256_of_network
from Testing.Library.lora.miniatures import compact

WINDOW = IntensitySpec("window", -200, 200)
QUICK = lora.resolve(
    lora.Recipe(preset="paper", image_size=64, batch_size=2, steps=60, pool_size=20), "compact", torch.device("cpu")
)


@pytest.mark.parametrize("kind", ["sam", "compact"])
def test_every_class_has_a_map_and_nothing_is_asked(a_tiny_sam: PromptableNetwork, kind: str) -> None:
    base = a_tiny_sam if kind == "sam" else compact()
    network = ClassNetwork(base, [7, 3], QUICK, seed=0)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
    assert logits.shape[:2] == (2, 3)
    assert logits.std((0, 2, 3)).min() > 0
    assert network.classes_of(torch.tensor([[0, 3, 7, 5]])).tolist() == [[0, 1, 2, 0]]


def test_what_learns_is_lora_in_the_encoder_and_all_of_the_prompt_encoder_and_the_decoder(
    a_tiny_sam: PromptableNetwork,
) -> None:
    network = ClassNetwork(a_tiny_sam, [1], QUICK, seed=0)
    trained = network.trained()
    encoder = [name for name in trained if name.startswith("image_encoder")]
    assert encoder
    assert all(".lora_q." in name or ".lora_v." in name for name in encoder)
    assert not any("lora" in name for name in trained if name.startswith("mask_decoder"))
    learning = {name for name, parameter in network.network.named_parameters() if parameter.requires_grad}
    assert learning == set(trained)
    heads = {n for n, _ in network.network.named_parameters() if n.startswith(("mask_decoder", "prompt_encoder"))}
    assert heads <= learning


def test_the_decoder_begins_with_fresh_classes_by_its_seed(a_tiny_sam: PromptableNetwork) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (class_decoder(a_tiny_sam.mask_decoder, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.mask_tokens.weight.shape == (4, a_tiny_sam.embed_dim)
    assert len(one.output_hypernetworks_mlps) == 4
    weights = [d.output_hypernetworks_mlps[2].layers[0].weight for d in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], one.output_hypernetworks_mlps[1].layers[0].weight)


def test_the_loss_is_a_fifth_cross_entropy_and_four_fifths_dice_with_the_background() -> None:
    """Two classes on two pixels: p(background) of .8 on a pixel of background and of .4 on one of the structure."""
    p = torch.tensor([0.8, 0.4], dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()])[None, :, None, :]
    classes = torch.tensor([[[0, 1]]])
    background = 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    structure = 2 * 0.6 / (0.2**2 + 0.6**2 + 1)
    entropy = -(np.log(0.8) + np.log(0.6)) / 2
    expected = 0.2 * entropy + 0.8 * (1 - (background + structure) / 2)
    assert float(class_loss(logits, classes)) == pytest.approx(expected, abs=1e-4)


def test_pixels_of_which_nothing_is_known_count_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=rng)
    classes = torch.randint(0, 3, (2, 8, 8), generator=rng)
    classes[:, :, 5:] = UNKNOWN
    other = logits.clone()
    other[:, :, :, 5:] += 3 * torch.randn(2, 3, 8, 3, generator=rng)
    assert float(class_loss(logits, classes)) == pytest.approx(float(class_loss(other, classes)), rel=1e-6)
    other[:, 1, :, :5] += 1
    assert float(class_loss(logits, classes)) != pytest.approx(float(class_loss(other, classes)), rel=1e-3)


def test_it_learns_from_exemplars_to_answer_all_structures_and_leaves_the_base_alone(an_exemplar: Exemplar) -> None:
    base = compact()
    before, state = sha256_of_network(base), torch.random.get_rng_state()
    listener = Listener()
    trained, structures = train_samed(base, [an_exemplar], WINDOW, QUICK, seed=0, seconds=60.0, report=listener)
    assert sha256_of_network(base) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    losses = [progress.metrics["loss"] for progress in listener.heard if "loss" in progress.metrics]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    found = segment_unet(trained, structures, an_exemplar.volume, WINDOW, base.image_size)
    assert found.structures == an_exemplar.structures
    assert found.volume.same_geometry(an_exemplar.volume)
    truth = an_exemplar.labels_on(1) > 0
    shown = found.volume.array[1] > 0
    assert dice(truth, shown) > 0.5
