"""Volumes and predictors that stay loaded between clicks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume, ras_from_ijk
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.inference import load
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.volumes import load_volume
from FewShotSegLib.progress import silent
from FewShotSegLib.worker.client import WorkerClient
from FewShotSegLib.worker.session import PromptSession
from Testing.conftest import Listener, discs, save_tiny_compact, write_discs
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


# ---------------------------------------------------------------------------------------------- without a process


@pytest.fixture
def a_session(an_rng: np.random.Generator, tmp_path: Path) -> PromptSession:
    """One that knows the discs as "v"."""
    session = PromptSession()
    volume, _ = discs(an_rng)
    np.save(tmp_path / "v.npy", volume.array)
    session.add_volume({"volume": "v", "path": str(tmp_path / "v.npy"), "affine": volume.affine.tolist()})
    return session


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Base models that were loaded, by the names of their files."""
    names: list[str] = []
    real = load.load_predictor

    def watched(adapter: str | None, base: str | None, device: Any) -> Any:
        names.append(Path(base or "").stem)
        return real(adapter, base, device)

    monkeypatch.setattr(load, "load_predictor", watched)
    return names


def mask_of(answer: dict[str, Any]) -> np.ndarray:
    mask = Prompt.from_dict({key: answer[key] for key in ("axis", "index", "mask")}).mask
    assert mask is not None
    return mask


def test_a_volume_is_kept_under_its_name_until_it_is_forgotten(tmp_path: Path, where: dict[str, Any]) -> None:
    session, path = PromptSession(), tmp_path / "v.npy"
    np.save(path, np.zeros((2, 3, 4), np.int16))
    assert session.add_volume({"volume": "v", "path": str(path)}) == {"shape": [2, 3, 4]}
    assert path.exists()
    session.add_volume({"volume": "w", "path": str(path), "delete": True})
    assert not path.exists()
    assert [session.forget_volume({"volume": name}) for name in "vvw"] == [
        {"known": True},
        {"known": False},
        {"known": True},
    ]
    with pytest.raises(InputError, match="No volume is called 'v' here"):
        session.predict({"volume": "v", "prompt": a_click(), **where})


def test_a_file_that_holds_no_array_is_removed_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match=r"Cannot read the volume .*v\.npy"):
        PromptSession().add_volume({"volume": "v", "path": str(path), "delete": True})
    assert not path.exists()


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_volume_needs_a_name(name: object, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((2, 2, 2)))
    with pytest.raises(InputError, match="name of the volume is missing"):
        PromptSession().add_volume({"volume": name, "path": str(tmp_path / "v.npy")})


def test_predictors_stay_loaded_and_the_one_used_longest_ago_goes(
    a_session: PromptSession, loaded: list[str], tmp_path: Path, a_home: Path
) -> None:
    bases = {name: str(tmp_path / f"{name}.safetensors") for name in "abcd"}
    for seed, path in enumerate(bases.values()):
        save_tiny_compact(Path(path), seed)
    for name in "abcadba":
        a_session.encode({"volume": "v", "index": 1, "base": bases[name], "device": "cpu"})
    assert loaded == ["a", "b", "c", "d", "b"]  # d replaced b, b then c


def test_an_adapter_file_that_has_changed_is_loaded_again(
    a_session: PromptSession, loaded: list[str], where: dict[str, Any]
) -> None:
    request = {"volume": "v", "prompt": a_click(), **where}
    first = a_session.predict(request)
    assert a_session.predict(request)["mask"] == first["mask"]
    assert len(loaded) == 1
    adapter = load_adapter(where["adapter"])
    tensors = {name: value + np.float32(0.05) for name, value in adapter.tensors.items()}
    save_adapter(type(adapter)(**{**vars(adapter), "tensors": tensors}), where["adapter"])
    os.utime(where["adapter"], ns=(1, 1))
    assert a_session.predict(request)["iou"] != first["iou"]
    assert len(loaded) == 2


def test_the_intensity_chosen_for_a_volume_counts_more_than_that_of_the_adapter(
    a_session: PromptSession, where: dict[str, Any], tmp_path: Path
) -> None:
    own = load_adapter(where["adapter"]).intensity
    ious = []
    for spec in (None, own.to_dict(), IntensitySpec("window", 5000, 6000).to_dict()):
        request = {"volume": "v", "path": str(tmp_path / "v.npy"), "affine": np.diag([-1, -1, 4, 1]).tolist()}
        a_session.add_volume({**request, "intensity": spec})
        ious.append(a_session.predict({"volume": "v", "prompt": a_click(), **where})["iou"])
    assert ious[0] == ious[1] != ious[2]


def test_the_range_of_a_volume_is_worked_out_once(
    a_session: PromptSession, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = IntensitySpec.range_of
    monkeypatch.setattr(IntensitySpec, "range_of", lambda self, array: asked.append(1) or real(self, array))
    base = {"base": where["base"], "device": "cpu"}
    for index in (1, 2, 3):
        a_session.encode({"volume": "v", "index": index, **where})
        a_session.encode({"volume": "v", "index": index, **base})
    ranges = a_session._volumes["v"].ranges
    assert len(asked) == len(ranges)


def test_patient_coordinates_mean_the_same_as_voxels(a_session: PromptSession, where: dict[str, Any]) -> None:
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    clicked = {"axis": "k", "index": 2, "points_ijk": [[22.0, 24.0, 2.0]], "point_labels": [1], "structure": "disc"}
    point = ras_from_ijk(affine, np.array(clicked["points_ijk"])).tolist()
    in_ras = {"points_ras": point, "point_labels": [1], "structure": "disc"}
    one, other = (a_session.predict({"volume": "v", "prompt": prompt, **where}) for prompt in (clicked, in_ras))
    assert (other["axis"], other["index"]) == ("k", 2)
    assert np.array_equal(mask_of(one), mask_of(other))


def test_a_structure_that_was_learned_needs_no_click_and_any_other_does(
    a_session: PromptSession, where: dict[str, Any]
) -> None:
    answer = a_session.predict({"volume": "v", "prompt": {"index": 2, "axis": "k", "structure": "disc"}, **where})
    assert mask_of(answer).shape == (64, 64)
    with pytest.raises(InputError, match="knows no structure 'liver'; give points or a box"):
        a_session.predict({"volume": "v", "prompt": {"index": 2, "axis": "k", "structure": "liver"}, **where})
    clicked = a_session.predict({"volume": "v", "prompt": a_click(structure="liver"), **where})
    unnamed = a_session.predict({"volume": "v", "prompt": a_click(structure=None), **where})
    assert np.array_equal(mask_of(clicked), mask_of(unnamed))  # a name that nobody has learned is just a name


@pytest.mark.parametrize("index", ["2", True, None, 2.0])
def test_an_index_is_a_whole_number(index: object, a_session: PromptSession, where: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="index must be a whole number"):
        a_session.encode({"volume": "v", "index": index, **where})


@pytest.mark.parametrize(("direction", "expected"), [(1, {2, 3}), (-1, {1, 2}), (0, {1, 2, 3})])
def test_a_structure_is_followed_in_the_direction_asked_for(
    direction: int, expected: set[int], a_session: PromptSession, where: dict[str, Any]
) -> None:
    request = {"volume": "v", "prompts": [a_click()], "direction": direction, "count": 1, **where}
    found = {piece["index"] for piece in a_session.propagate(request, silent)["slices"]}
    assert 2 in found
    assert found <= expected
    with pytest.raises(Cancelled):
        a_session.propagate(request, Listener(3, Cancelled()))  # the third slice, which was clicked on
