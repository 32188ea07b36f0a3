"""Teaching a network to take clicks, at toy size."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.pretraining.clicks import FEW, Part, Running, enlarged, main, part_loss, scenes, teach
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.fit import step_rng

DECODER = Part(2, 1, 1e-3, False, FEW, prompts=2)
EVERYTHING = Part(2, 1, 1e-3, True, FEW, prompts=2)
CORRECTIONS = Part(2, 1, 1e-3, False, (0, 0, 1), low_resolution=1.0, mean_encoder=True, prompts=2)
HELD = Part(2, 1, 1e-3, True, (0, 1), held=3.0, prompts=2)


def weights(network: PromptableNetwork, part: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if name.startswith(part)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_decoder_alone_leaves_the_encoder(a_tiny_sam: PromptableNetwork, tmp_path: Path) -> None:
    before = weights(a_tiny_sam, "")
    teach(a_tiny_sam, [DECODER], tmp_path / "a.safetensors", Running())
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

    def listening(network, *arguments):
        seen.append(weights(network, "image_encoder."))
        return real(network, *arguments)

    monkeypatch.setattr("FewShotSegLib.pretraining.clicks.part_loss", listening)
    teach(a_tiny_sam, [EVERYTHING, CORRECTIONS], tmp_path / "a.safetensors", Running())
    mean = weights(a_tiny_sam, "image_encoder.")
    assert not same(mean, official)
    assert same(seen[2], mean)
    assert same(seen[3], mean)


def test_it_goes_on_where_it_was_interrupted_and_ends_the_same(
    a_tiny_sam: PromptableNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("FewShotSegLib.pretraining.clicks.CHECKPOINT_SECONDS", 0.0)
    start = weights(a_tiny_sam, "")
    whole = weights(teach(a_tiny_sam, [DECODER, CORRECTIONS], tmp_path / "a.safetensors", Running()), "")
    a_tiny_sam.load_state_dict(start)
    (tmp_path / "a-part1.ckpt").unlink()  # killed in the second part
    again = teach(a_tiny_sam, [DECODER, CORRECTIONS], tmp_path / "a.safetensors", Running())
    assert same(weights(again, ""), whole)


def test_the_loss_is_that_of_the_first_and_the_last_round(a_tiny_sam: PromptableNetwork) -> None:
    batch = scenes(CORRECTIONS, a_tiny_sam.image_size, 0, 0)
    loss, metrics = part_loss(a_tiny_sam, CORRECTIONS, batch, step_rng(0, 0))
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


def test_an_encoder_is_held_to_the_features_it_had(a_tiny_sam: PromptableNetwork) -> None:
    batch = scenes(HELD, a_tiny_sam.image_size, 0, 0)
    before = copy.deepcopy(a_tiny_sam.image_encoder)
    free, _ = part_loss(a_tiny_sam, HELD, batch, step_rng(0, 0))
    same_place, metrics = part_loss(a_tiny_sam, HELD, batch, step_rng(0, 0), before)
    assert metrics["moved"] == 0
    assert torch.equal(free, same_place)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.mul_(1.1)
    moved, metrics = part_loss(a_tiny_sam, HELD, batch, step_rng(0, 0), before)
    assert metrics["moved"] > 0
    assert float(moved - free) == pytest.approx(3.0 * float(metrics["moved"]), rel=1e-4)


def test_other_processes_draw_the_same_scenes_and_the_first_part_can_be_left_out(
    a_tiny_sam: PromptableNetwork, tmp_path: Path
) -> None:
    start = weights(a_tiny_sam, "")
    alone = weights(teach(a_tiny_sam, [EVERYTHING, DECODER], tmp_path / "a.safetensors", Running(first_part=1)), "")
    a_tiny_sam.load_state_dict(start)
    helped = teach(a_tiny_sam, [EVERYTHING, DECODER], tmp_path / "b.safetensors", Running(workers=2, first_part=1))
    assert same(weights(helped, ""), alone)
    assert same(weights(helped, "image_encoder."), start)


def test_an_encoder_that_learned_can_be_put_back_to_where_it_last_stayed(
    a_tiny_sam: PromptableNetwork, tmp_path: Path
) -> None:
    parts = [EVERYTHING, replace(CORRECTIONS, rounds=(1.0,)), HELD, replace(HELD, put_back=True)]
    stayed = weights(teach(a_tiny_sam, parts[:2], tmp_path / "a.safetensors", Running()), "")
    ended = weights(teach(a_tiny_sam, parts, tmp_path / "b.safetensors", Running(first_part=2)), "")
    encoder = {name: value for name, value in stayed.items() if name.startswith("image_encoder.")}
    assert same(encoder, ended)
    assert not same({name: value for name, value in stayed.items() if name.startswith("mask_decoder.")}, ended)


def test_a_base_model_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = str(tmp_path / "none.pth")
    monkeypatch.setattr("sys.argv", ["clicks", "--out", str(tmp_path / "a.safetensors"), "--start", start])
    with pytest.raises(SystemExit, match=r"none\.pth"):
        main()
