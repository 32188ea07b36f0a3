"""The four networks: known sizes, any patch, every parameter in use, and weights that fit or are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from safetensors.torch import save_file
from torch import Tensor, nn

from FewShotSegLib import networks
from FewShotSegLib.errors import InputError
from FewShotSegLib.networks import NETWORKS, build, parameter_count
from FewShotSegLib.networks.shape import kernels_of, strides_of
from FewShotSegLib.networks.small import supervised
from FewShotSegLib.networks.weights import load_weights, weights_of

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)
PAPER_PATCH = (32, 240, 240)


def a_ball(patch: tuple[int, int, int], channels: int = 1) -> tuple[Tensor, Tensor]:
    """Images (1, channels, D, H, W) with a bright ball in noise, and the ball."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in patch), indexing="ij")
    ball = sum((axis - 0.2) ** 2 for axis in axes) < 0.3
    noise = np.random.default_rng(0).normal(0, 0.1, (1, channels, *patch))
    return torch.from_numpy((ball + noise).astype(np.float32)), torch.from_numpy(ball)[None]


# ---------------------------------------------------------------------------------------------------------------- size


def test_the_table_of_parameter_counts_is_right() -> None:
    rows = re.findall(r"^\| (\w+) +\| .* \| +([\d,]+) \| +([\d,]+) \|$", str(networks.__doc__), re.MULTILINE)
    table = {name: [int(count.replace(",", "")) for count in counts] for name, *counts in rows}
    found = {
        name: [parameter_count(build(name, patch=PAPER_PATCH, size=size)) for size in networks.SIZES] for name in table
    }
    assert found == table
    assert set(table) == set(NETWORKS)


def test_the_published_sizes_are_met() -> None:
    # MONAI's own examples, and the small network of FLARE 2022 and 2024, in its table of 13 organs: 5.64 million.
    stock = nets.UNet(3, 1, 2, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    assert parameter_count(build("unet", patch=PAPER_PATCH, size="paper")) == parameter_count(stock) == 4_806_481
    flare = build("dynunet", out_channels=14, patch=(40, 224, 192), spacing=(2.5, 0.81, 0.81), size="paper")
    assert parameter_count(flare) == 5_642_600


@pytest.mark.parametrize(
    ("patch", "spacing", "strides"),
    [
        ((64, 64, 64), None, [(2, 2, 2)] * 4),
        ((32, 240, 240), None, [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((32, 128, 192), (4.0, 1.2, 1.2), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),  # FLARE 2022
        ((240, 240, 32), (1, 1, 5), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),  # sagittal slices
        ((1, 64, 64), None, [(1, 2, 2)] * 4),
        ((6, 20, 20), None, [(1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)]),  # 4 voxels stay
    ],
)
def test_thick_slices_are_halved_when_their_pixels_have_become_as_large(
    patch: tuple[int, int, int], spacing: tuple[float, float, float] | None, strides: list[tuple[int, int, int]]
) -> None:
    assert strides_of(patch, 4, spacing) == tuple(strides)


def test_kernels_reach_across_thick_slices_only_where_the_pixels_are_as_large() -> None:
    assert kernels_of((16, 128, 128), strides_of((16, 128, 128), 4))[:4] == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert kernels_of((1, 64, 64), [(1, 2, 2)]) == ((1, 3, 3), (1, 3, 3))
    assert kernels_of((64, 64, 64), [(2, 2, 2)]) == ((3, 3, 3), (3, 3, 3))


# -------------------------------------------------------------------------------------------------------------- forward


@EVERY_NETWORK
@pytest.mark.parametrize("patch", [(1, 32, 32), (3, 24, 40), (8, 32, 32), (32, 16, 16)])
def test_patches_of_any_thickness_pass_and_reach_every_parameter(name: str, patch: tuple[int, int, int]) -> None:
    network = build(name, in_channels=2, out_channels=3, patch=patch)
    logits = network(a_ball(patch, channels=2)[0])
    depths = [3, *patch] if name != "dynunet" else [4, 3, *patch]
    assert list(logits.shape) == [1, *depths]
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    lost = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert lost == []
    silent = [key for key, value in network.named_parameters() if not value.grad.any()]
    # What instance norm takes away again, and keys of attention that all tokens share, cannot matter.
    assert [key for key in silent if not key.endswith("bias")] == []


@EVERY_NETWORK
def test_other_sizes_than_the_patch_are_padded_and_cropped(name: str) -> None:
    network: Any = build(name, patch=(4, 16, 16)).eval()
    image = a_ball((5, 19, 33))[0]
    margins = [(0, -size % step) for size, step in zip((5, 19, 33), network.multiple, strict=True)]
    repeated = torch.from_numpy(np.pad(image[0, 0].numpy(), margins, mode="edge"))[None, None]
    with torch.inference_mode():
        logits, whole = network(image), network(repeated)
    assert logits.shape == (1, 2, 5, 19, 33) != whole.shape
    torch.testing.assert_close(logits, whole[..., :5, :19, :33], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "steps"), [("unet", 25), ("swinunet", 10), ("mambaunet", 14), ("dynunet", 12)])
def test_a_few_steps_teach_a_ball(name: str, steps: int) -> None:
    image, ball = a_ball((4, 24, 24))
    network = build(name, patch=(4, 24, 24))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        parts = supervised(network(image))
        loss = sum((w * nn.functional.cross_entropy(logits, ball.long()) for w, logits in parts), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network.eval()(image).argmax(1) == 1
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.95


def test_where_all_axes_are_halved_alike_swin_is_that_of_monai() -> None:
    network = build("swinunet", patch=(64, 64, 64)).eval()
    stock = nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)).eval()
    stock.load_state_dict(network.state_dict())
    image = a_ball((32, 32, 64))[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(image), stock(image), rtol=0, atol=0)


def test_deep_supervision_weighs_each_resolution_half_as_much_as_the_finer_one() -> None:
    logits = torch.randn(2, 4, 3, 1, 5, 5)
    parts = supervised(logits)
    np.testing.assert_allclose([weight for weight, _ in parts], np.array([8, 4, 2, 1]) / 15)
    assert all(torch.equal(part, logits[:, depth]) for depth, (_, part) in enumerate(parts))
    assert supervised(logits[:, 0])[0][0] == 1


def test_mamba_sees_the_whole_slice_and_the_slices_around() -> None:
    network = build("mambaunet", patch=(4, 32, 32)).eval()
    image = a_ball((4, 32, 32))[0].requires_grad_()
    corner = network(image)[0, 1, 0, 0, 0]
    (reach,) = torch.autograd.grad(corner, image)
    assert (reach[0, 0].abs().amax((1, 2)) > 0).all()
    assert (reach[0, 0, 0, -4:, -4:] != 0).any()


# ------------------------------------------------------------------------------------------------------------ the same


@EVERY_NETWORK
def test_the_same_arguments_give_the_same_weights_and_nothing_else_is_touched(name: str) -> None:
    before = torch.random.get_rng_state()
    arguments: dict[str, Any] = {"name": name, "patch": [8, 32, 32], "spacing": [3, 1, 1], "out_channels": 2}
    first, again = (weights_of(build(**json.loads(json.dumps(arguments)))) for _ in range(2))
    other = weights_of(build(**arguments, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.keys() == again.keys() == other.keys()
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


# ------------------------------------------------------------------------------------------------------------- weights


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


# --------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vnet"}, 'no network "vnet"; choose unet, swinunet, mambaunet, dynunet'),
        ({"size": "huge"}, 'one of small, paper, got "huge"'),
        ({"patch": (32, 32)}, "three whole numbers"),
        ({"patch": (1, 2, 32)}, "two of them at least 4"),
        ({"patch": (8, 32.0, 32)}, "three whole numbers"),
        ({"in_channels": 0}, "in_channels of a network is a whole number from 1, got 0"),
        ({"spacing": (1, 1)}, "three lengths above 0"),
        ({"spacing": (1, 1, 0)}, "three lengths above 0"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**{"name": "unet", "patch": (8, 32, 32)} | arguments)
