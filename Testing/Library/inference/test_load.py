"""Which predictor an adapter, a base model or a support set gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference.load import load_any_predictor, load_predictor, load_support_predictor
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.support import SupportPredictor, SupportRecipe, support_adapter
from FewShotSegLib.inference.volume_network import VolumePredictor, grid_to_dict, network_arguments, tensors_of
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.networks import build
from FewShotSegLib.sam.loading import load_base
from Testing.conftest import Listener, save_tiny_compact

CPU = torch.device("cpu")


@pytest.fixture
def a_3d_network(tmp_path: Path) -> str:
    grid = Grid((1.0, 1.0, 4.0), (4, 16, 16))
    arguments = network_arguments(grid, "unet", "small")
    architecture = {"network": arguments, "head": "binary", "grid": grid_to_dict(grid)}
    window = IntensitySpec("window", -200, 200)
    tensors = tensors_of({1: build(**arguments)})
    adapter = Adapter(tensors, "asap", {}, "", "", {1: "disc"}, window, 16, 0, 0, architecture=architecture)
    save_adapter(adapter, tmp_path / "network.safetensors")
    return str(tmp_path / "network.safetensors")


def test_an_adapter_brings_the_base_model_it_was_made_for(an_adapter_file: Path) -> None:
    predictor = load_predictor(str(an_adapter_file), None, CPU)
    adapter = load_adapter(an_adapter_file)
    assert predictor.network.name == adapter.base_model == "tiny"
    assert predictor.image_size == adapter.image_size
    assert predictor.identity == (adapter.base_sha256, adapter.image_size, adapter.digest)
    assert [value for value in range(5) if predictor.knows(value)] == [1, 2]


def test_a_base_model_alone_knows_no_structure(a_tiny_base: str) -> None:
    predictor = load_predictor(None, a_tiny_base, CPU)
    assert type(predictor) is Predictor
    assert predictor.adapter is None
    assert not predictor.knows(1)


def test_without_anything_named_the_default_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str, **options: object) -> None:
        asked.append(name)
        raise InputError("far enough")

    monkeypatch.setattr("FewShotSegLib.inference.load.load_base", load)
    with pytest.raises(InputError, match="far enough"):
        load_predictor(None, None, CPU)
    assert asked == ["bundled"]


def test_a_base_model_that_is_not_registered_is_named_and_can_be_given_as_a_file(
    an_adapter_file: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "models.json").unlink()
    with pytest.raises(InputError, match=r"organs\.safetensors was made for the base model tiny, .* give its file"):
        load_predictor(str(an_adapter_file), None, CPU)
    given = load_predictor(str(an_adapter_file), str(home / "tiny.safetensors"), CPU)
    assert given.network.sha256 == load_adapter(an_adapter_file).base_sha256


def test_another_base_model_than_the_adapters_is_refused(an_adapter_file: Path, tmp_path: Path) -> None:
    save_tiny_compact(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(InputError, match="made for the base model tiny"):
        load_predictor(str(an_adapter_file), str(tmp_path / "other.safetensors"), CPU)


def test_a_3d_network_segments_volumes_and_answers_no_clicks(a_3d_network: str) -> None:
    predictor = load_any_predictor(a_3d_network, "no such base model", CPU)  # which means nothing to it
    assert isinstance(predictor, VolumePredictor)
    assert predictor.adapter.structures == {1: "disc"}
    with pytest.raises(InputError, match=r"network\.safetensors is a 3-D network, .* does not take clicks"):
        load_predictor(a_3d_network, None, CPU)


def test_whatever_answers_clicks_is_loaded_by_either(an_adapter_file: Path) -> None:
    one, other = (load(str(an_adapter_file), None, CPU) for load in (load_predictor, load_any_predictor))
    assert type(one) is type(other) is Predictor
    assert one.identity == other.identity


def test_a_support_set_in_a_file_is_looked_at_again(a_tiny_base: str, an_exemplar: Exemplar, tmp_path: Path) -> None:
    adapter = support_adapter([an_exemplar], load_base(a_tiny_base), recipe=SupportRecipe(pictures=2, pixels=500))
    save_adapter(adapter, tmp_path / "support.safetensors")
    predictor = load_predictor(str(tmp_path / "support.safetensors"), None, CPU)
    assert isinstance(predictor, SupportPredictor)
    assert predictor.knows(1)


def test_a_support_set_is_read_with_its_recipe_and_the_scale_of_its_base(
    a_tiny_base: str, an_exemplar: Exemplar, a_listener: Listener
) -> None:
    window = IntensitySpec("window", -50, 150, "unit")
    options = {"pictures": 2, "pixels": 500}
    predictor = load_support_predictor([an_exemplar], None, a_tiny_base, CPU, options, window, a_listener)
    assert predictor.adapter is not None
    assert (predictor.adapter.recipe["pictures"], predictor.adapter.recipe["pixels"]) == (2, 500)
    assert predictor.adapter.intensity == replace(window, scale=predictor.network.scale)
    assert predictor.adapter.structures == an_exemplar.structures
    images = predictor.adapter.tensors["images"]
    expected = (an_exemplar.volume.array[[1, 3]].clip(-50, 150) + 50) / 200  # 64 voxels on 64 pixels
    np.testing.assert_allclose(np.sort(images, axis=0), np.sort(expected, axis=0), atol=1e-5)
    with pytest.raises(InputError, match='did you mean "pictures"'):
        load_support_predictor([an_exemplar], None, a_tiny_base, CPU, {"pictrues": 2})


def test_a_support_set_goes_with_no_adapter_that_knows_its_structures_by_name(
    an_adapter_file: Path, an_exemplar: Exemplar
) -> None:
    with pytest.raises(InputError, match=r"has learned disc, square: .* Leave one of the two out"):
        load_support_predictor([an_exemplar], str(an_adapter_file), None, CPU, {})
