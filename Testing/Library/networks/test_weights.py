"""Weights fit, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import load_weights, weights_of
from Testing.Library.networks.ball import EVERY_NETWORK, a_ball


def changed(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(0.9).add_(0.01)
    return network


def same_weights(one: nn.Module, other: nn.Module, *, but: tuple[str, ...] = ("nothing",)) -> bool:
    mine, theirs = weights_of(one), weights_of(other)
    return all(np.array_equal(mine[key], theirs[key]) for key in mine if not key.startswith(but))


@EVERY_NETWORK
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_survive_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    network = changed(build(name, patch=(8, 32, 32)))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":  # as a training program would leave them
        state = {f"module.{key}": value for key, value in network.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        save_file({key: torch.from_numpy(value) for key, value in weights_of(network).items()}, path)
    fresh = build(name, patch=(8, 32, 32))
    assert not same_weights(fresh, network)
    load_weights(fresh, path)
    assert same_weights(fresh, network)
    image = a_ball((8, 32, 32))[0]
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(image), network.eval()(image))


@EVERY_NETWORK
def test_weights_for_other_structures_leave_the_last_layer_as_it_was(name: str) -> None:
    network, source = build(name, patch=(8, 32, 32)), changed(build(name, patch=(8, 32, 32), out_channels=5))
    before = weights_of(network)
    with pytest.raises(InputError, match="if only the last layer differs, leave that out"):
        load_weights(network, weights_of(source))
    assert all(np.array_equal(before[key], value) for key, value in weights_of(network).items())
    load_weights(network, weights_of(source), head=False)
    after = weights_of(network)
    assert same_weights(network, source, but=network.HEAD)
    assert all(np.array_equal(before[key], after[key]) for key in after if key.startswith(network.HEAD))


def test_weights_that_do_not_belong_are_refused_with_a_sentence(tmp_path: Path) -> None:
    network = build("unet", patch=(8, 32, 32))
    with pytest.raises(InputError, match="does not exist"):
        load_weights(network, tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"of \d+ parameters \d+ are missing, first .* Choose the file"):
        load_weights(network, weights_of(build("dynunet", patch=(8, 32, 32))))
    more = weights_of(network) | {"extra.weight": np.zeros(3, np.float32)}
    with pytest.raises(InputError, match=r"1 are not known to it, first extra\.weight"):
        load_weights(network, more)
    with pytest.raises(InputError, match=r"has the shape .* Build the network with the patch"):
        load_weights(network, weights_of(build("unet", patch=(8, 32, 32), size="paper")))
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(InputError, match="not a readable file of weights"):
            load_weights(network, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no table of weights"):
        load_weights(network, tmp_path / "list.pt")


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save(build("unet", patch=(1, 16, 16)), tmp_path / "module.pt")  # a whole module, pickled
    with pytest.raises(InputError, match="holds more than weights"):
        load_weights(build("unet", patch=(1, 16, 16)), tmp_path / "module.pt")
