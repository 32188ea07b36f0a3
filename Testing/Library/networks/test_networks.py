"""The four networks: known sizes, any patch, every parameter in use, and what cannot be built."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import nn

from FewShotSegLib import networks
from FewShotSegLib.errors import InputError
from FewShotSegLib.networks import NETWORKS, build, parameter_count
from FewShotSegLib.networks.small import supervised
from FewShotSegLib.networks.weights import weights_of
from Testing.Library.networks.ball import EVERY_NETWORK, a_ball

PAPER_PATCH = (32, 240, 240)


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
