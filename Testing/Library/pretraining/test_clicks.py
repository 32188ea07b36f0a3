"""Teaching a network to take clicks, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.pretraining.clicks import FEW, Part, enlarged, part_loss, teach
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.fit import step_rng

DECODER = Part(2, 1, 1e-3, False, FEW, prompts=2)
EVERYTHING = Part(2, 1, 1e-3, True, FEW, prompts=2)
CORRECTIONS = Part(2, 1, 1e-3, False, (0, 0, 1), low_resolution=1.0, prompts=2)


def weights(network: PromptableNetwork, part: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if name.startswith(part)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_decoder_alone_leaves_the_encoder(a_tiny_sam: PromptableNetwork, tmp_path: Path) -> None:
    before = weights(a_tiny_sam, "")
    teach(a_tiny_sam, [DECODER], tmp_path / "a.safetensors", seed=0, device="cpu")
    assert same(weights(a_tiny_sam, "image_encoder."), before)
    assert not same(weights(a_tiny_sam, "mask_decoder."), before)
    assert (tmp_path / "a.safetensors").is_file()
    assert not any(parameter.requires_grad for parameter in a_tiny_sam.parameters())


def test_corrections_are_learned_on_the_mean_of_both_encoders(
    a_tiny_sam: PromptableNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = weights(a_tiny_sam, "image_encoder.")
    seen = []
    real = part_loss

    def listening(network, part, rng):
        seen.append(weights(network, "image_encoder."))
        return real(network, part, rng)

    monkeypatch.setattr("FewShotSegLib.pretraining.clicks.part_loss", listening)
    teach(a_tiny_sam, [EVERYTHING, CORRECTIONS], tmp_path / "a.safetensors", seed=0, device="cpu")
    mean = weights(a_tiny_sam, "image_encoder.")
    assert not same(mean, official)
    assert same(seen[2], mean)
    assert same(seen[3], mean)


def test_it_goes_on_where_it_was_interrupted_and_ends_the_same(
    a_tiny_sam: PromptableNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("FewShotSegLib.pretraining.clicks.CHECKPOINT_SECONDS", 0.0)
    start = weights(a_tiny_sam, "")
    whole = weights(teach(a_tiny_sam, [DECODER, CORRECTIONS], tmp_path / "a.safetensors", seed=0, device="cpu"), "")
    a_tiny_sam.load_state_dict(start)
    (tmp_path / "a-part1.ckpt").unlink()  # killed in the second part
    again = teach(a_tiny_sam, [DECODER, CORRECTIONS], tmp_path / "a.safetensors", seed=0, device="cpu")
    assert same(weights(again, ""), whole)


def test_the_loss_is_that_of_the_first_and_the_last_round(a_tiny_sam: PromptableNetwork) -> None:
    loss, metrics = part_loss(a_tiny_sam, CORRECTIONS, step_rng(0, 0))
    assert torch.isfinite(loss)
    assert set(metrics) == {"dice1", "dice3"}


def test_an_enlarged_scene_has_the_pixels_of_a_small_one_unless_a_target_would_vanish() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (64, 64)).astype(np.float32)
    targets = np.zeros((2, 32, 32), np.float32)
    targets[0, 4:20, 4:20] = 1
    targets[1, 8:24, 8:24] = 1
    shown, masks = enlarged(image, targets, 16)
    assert (shown.shape, masks.shape) == (image.shape, targets.shape)
    assert shown.std() < 0.5 * image.std()
    assert np.array_equal(masks, targets)  # their edges lie on those of the large pixels
    targets[1] = 0
    targets[1, 8, 8] = 1
    shown, masks = enlarged(image, targets, 16)
    assert shown is image
    assert masks is targets
