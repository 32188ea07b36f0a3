"""Volumes and predictors that stay loaded between clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.io.volumes import load_volume
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import discs, write_discs
from Testing.Library.worker.conftest import a_click, answer_to, ask, wait_for


def test_a_click_is_answered_with_the_mask_of_the_library(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator, tmp_path: Path
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    answer = ask(a_client, op="predict", volume="v", prompt=a_click(), mask_path=str(tmp_path / "mask.npy"), **where)
    found = Prompt.from_dict({k: answer["result"][k] for k in ("axis", "index", "mask")})
    expected, iou = mask_of_the_library(volume, where)
    assert found.mask is not None
    assert np.array_equal(found.mask, expected)
    assert np.array_equal(np.load(tmp_path / "mask.npy"), expected)
    assert answer["result"]["iou"] == pytest.approx(iou, abs=1e-5)
    a_client.forget_volume("v")


def mask_of_the_library(volume: Volume, where: dict[str, Any]) -> tuple[Any, float]:
    import torch

    from FewShotSegLib.imaging.slice_frame import frame_of, to_network
    from FewShotSegLib.inference.load import load_predictor

    predictor = load_predictor(where["adapter"], where["base"], torch.device("cpu"))
    assert predictor.adapter is not None
    spec, frame = predictor.adapter.intensity, frame_of(volume, 0, 2, predictor.image_size)
    square = to_network(spec.apply(volume.array[2], spec.range_of(volume.array)), frame)
    masks = predictor.answer(predictor.encode([square])[0], Prompt.from_dict(a_click()), frame, [1])
    return predictor.on_voxels(masks, frame)[0] > 0, float(masks.iou[0])


def test_the_file_that_carries_a_volume_is_removed_once_it_was_read(
    a_client: WorkerClient, an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    answer_to(a_client, a_client.send_volume("v", volume.array, volume.affine))
    assert list(a_client._files().iterdir()) == []
    a_client.forget_volume("v")


def test_a_click_is_followed_to_the_neighbouring_slices(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    answer = ask(a_client, op="propagate", volume="v", prompts=[a_click(2)], direction=1, count=2, **where)
    slices = answer["result"]["slices"]
    assert [found["index"] for found in slices] == list(range(2, 2 + len(slices)))
    first = Prompt.from_dict({key: slices[0][key] for key in ("axis", "index", "mask")})
    expected, iou = mask_of_the_library(volume, where)
    assert first.mask is not None
    assert np.array_equal(first.mask, expected)
    assert slices[0]["iou"] == pytest.approx(iou, abs=1e-5)
    a_client.forget_volume("v")


def test_the_slice_to_annotate_next_is_suggested(
    a_client: WorkerClient, where: dict[str, Any], an_rng: np.random.Generator
) -> None:
    volume, _ = discs(an_rng)
    a_client.send_volume("v", volume.array, volume.affine)
    number = a_client.submit({"op": "suggest", "volume": "v", "known": [2], **where})
    seen = wait_for(a_client, lambda message: message.get("id") == number and message["type"] != "progress")
    found = seen[-1]["result"]
    assert found["axis"] == "k"
    assert set(found["doubts"]) == {"0", "4", "5"}
    assert found["doubts"][str(found["index"])] == max(found["doubts"].values())
    assert [message["step"] for message in seen if message.get("type") == "progress"] == [1, 2, 3]
    a_client.forget_volume("v")


def test_a_volume_in_a_file_reads_as_it_was_written(a_client: WorkerClient, tmp_path: Path) -> None:
    image, _ = write_discs(tmp_path, "p", 1)
    volume = load_volume(image)
    np.save(tmp_path / "v.npy", volume.array)
    answer = ask(a_client, op="volume", volume="f", path=str(tmp_path / "v.npy"), affine=volume.affine.tolist())
    assert answer["result"]["shape"] == [6, 64, 64]
    assert (tmp_path / "v.npy").exists()
