"""LoRA put on a network: which layers get it, what learns, and what is lent comes back bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.lora.attach import attach, attached, freeze, lora_modules, lora_parameters, lora_tensors
from FewShotSegLib.lora.layers import LoraSpec
from Testing.Library.lora.miniatures import EVERY_KIND, Network, a_network, generator, some_images, train_a_little


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


# --- start and learning


@EVERY_KIND
def test_attaching_changes_no_output_bit(kind: str) -> None:
    network = a_network()
    with torch.inference_mode():
        before = network(some_images())
        with attached(network, LoraSpec(mlp=True, kind=kind), generator=generator()):
            assert torch.equal(network(some_images()), before)


@pytest.mark.parametrize(("kind", "moving"), [("lora", ".B"), ("loose", ".W")])
def test_the_first_step_moves_the_last_matrix_alone(kind: str, moving: str) -> None:
    network = a_network()
    with attached(network, LoraSpec(mlp=True, kind=kind), generator=generator()):
        network(some_images()).square().sum().backward()
        for name, parameter in lora_parameters(network).items():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) is name.endswith(moving), name


def test_a_starts_as_kaiming_uniform_from_the_generator_alone() -> None:
    global_state = torch.get_rng_state()
    starts = []
    for seed in (3, 3, 4):
        network = a_network(dim=64)
        attach(network, LoraSpec(rank=16, decoder=False), generator=generator(seed))
        starts.append(lora_tensors(network)["image_encoder.blocks.1.attn.qkv.lora_v.A"])
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    bound = 1 / 64**0.5
    assert 0.9 * bound < starts[0].abs().max() <= bound
    assert starts[0].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


# --- counts and targets


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "expected"), [(768, 12, 12, 147_456), (1024, 24, 16, 393_216), (1280, 32, 16, 655_360)]
)
def test_the_encoder_adapters_of_the_official_sizes_have_the_known_counts(
    dim: int, depth: int, heads: int, expected: int
) -> None:
    with torch.device("meta"):
        network = Network(image_size=32, dim=dim, depth=depth, heads=heads, out=256)
    attach(network, LoraSpec(rank=4, decoder=False), generator=generator())
    assert sum(p.numel() for p in lora_parameters(network).values()) == expected


def test_the_decoder_gets_fourteen_adapters_of_the_known_count() -> None:
    with torch.device("meta"):
        network = Network(out=256)
    attach(network, LoraSpec(rank=4, encoder=False), generator=generator())
    assert len(lora_modules(network)) == 14
    assert sum(p.numel() for p in lora_parameters(network).values()) == 23_552


@pytest.mark.parametrize(("dim", "depth", "heads", "each"), [(768, 12, 12, 36_992), (1024, 24, 16, 49_280)])
def test_a_loose_projection_of_the_official_sizes_has_the_known_count(
    dim: int, depth: int, heads: int, each: int
) -> None:
    with torch.device("meta"):
        network = Network(image_size=32, dim=dim, depth=depth, heads=heads, out=256)
    attach(network, LoraSpec(rank=4, decoder=False, kind="loose"), generator=generator())
    assert sum(p.numel() for p in lora_parameters(network).values()) == each * 2 * depth


def test_targets_are_chosen_independently() -> None:
    cases: dict[LoraSpec, tuple[int, int, int]] = {
        LoraSpec(): (2, 0, 14),
        LoraSpec(encoder=False): (0, 0, 14),
        LoraSpec(decoder=False, encoder_blocks=(1,)): (1, 0, 0),
        LoraSpec(decoder=False, encoder_blocks=(1,), mlp=True): (1, 2, 0),
    }
    for spec, expected in cases.items():
        network = a_network()
        with attached(network, spec, generator=generator()):
            names = list(lora_modules(network))
            found = (
                sum(name.endswith("attn.qkv") for name in names),
                sum(".mlp." in name for name in names),
                sum(name.startswith("mask_decoder.") for name in names),
            )
        assert found == expected
        assert all("k_proj" not in name and "out_proj" not in name for name in names)


def test_names_are_stable() -> None:
    network = a_network()
    attach(network, LoraSpec(), generator=generator())
    names = set(lora_tensors(network))
    assert "image_encoder.blocks.0.attn.qkv.lora_q.A" in names
    assert "mask_decoder.transformer.layers.1.cross_attn_image_to_token.v_proj.lora.B" in names
    assert "mask_decoder.transformer.final_attn_token_to_image.q_proj.lora.A" in names
    assert names == set(lora_parameters(network))


def test_freeze_lets_nothing_but_the_adapters_learn() -> None:
    network = a_network()
    attach(network, LoraSpec(), generator=generator())
    freeze(network)
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning == set(lora_parameters(network))
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    for part in ("pos_embed", "rel_pos_h", "neck.0.weight", "attn.qkv.base.weight", "iou_token.weight"):
        assert any(name.endswith(part) for name in frozen), part


# --- bad input


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoraSpec(rank=33), "rank 33 is too large for .* choose a rank from 1 to 16"),
        (LoraSpec(encoder_blocks=(1, 2, 5)), "block 2, 5, but this image encoder has blocks 0, 1:"),
        (LoraSpec(encoder_blocks=(-1,)), "block -1, but this image encoder has blocks 0, 1:"),
        (LoraSpec(encoder_blocks=()), "an empty list of blocks"),
    ],
)
def test_a_spec_that_does_not_fit_the_network_is_refused_and_nothing_is_attached(spec: LoraSpec, message: str) -> None:
    network = a_network()
    with pytest.raises(InputError, match=message):
        attach(network, spec, generator=generator())
    assert not lora_modules(network)


def test_a_second_adapter_is_refused() -> None:
    network = a_network()
    attach(network, LoraSpec(), generator=generator())
    with pytest.raises(InputError, match="already"):
        attach(network, LoraSpec(), generator=generator())


# --- giving back


@pytest.mark.parametrize("failure", [None, RuntimeError, Cancelled, KeyboardInterrupt])
def test_the_base_comes_back_bit_by_bit(failure: type[BaseException] | None) -> None:
    network = a_network()
    network.image_encoder.neck.requires_grad_(False)
    modules = dict(network.named_modules())
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    before = bits(network)

    def work() -> None:
        with attached(network, LoraSpec(mlp=True), generator=generator()):
            optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                network(some_images()).square().mean().backward()
                optimizer.step()
            if failure is not None:
                raise failure

    if failure is None:
        work()
    else:
        with pytest.raises(failure):
            work()
    assert bits(network) == before
    assert {name: p.requires_grad for name, p in network.named_parameters()} == flags
    after = dict(network.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert all(p.grad is None for p in network.parameters())


def test_detaching_twice_is_harmless() -> None:
    network = a_network()
    handle = attach(network, LoraSpec(), generator=generator())
    handle.detach()
    handle.detach()
    assert not lora_modules(network)


# --- saving and merging


@EVERY_KIND
def test_saved_tensors_reproduce_the_output_in_another_network(kind: str) -> None:
    network, twin = a_network(), a_network()
    attach(network, LoraSpec(rank=2, kind=kind), generator=generator())
    train_a_little(network)
    attach(twin, LoraSpec(rank=2, kind=kind), generator=generator(5))
    with torch.no_grad():
        for name, parameter in lora_parameters(twin).items():
            parameter.copy_(lora_tensors(network)[name])
    with torch.inference_mode():
        assert torch.equal(twin(some_images()), network(some_images()))


def test_saved_tensors_are_copies() -> None:
    network = a_network()
    attach(network, LoraSpec(), generator=generator())
    tensors = lora_tensors(network)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    train_a_little(network)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


@EVERY_KIND
def test_the_dense_weights_give_the_same_output(kind: str) -> None:
    network, plain = a_network(), a_network()
    attach(network, LoraSpec(mlp=True, alpha=8.0, kind=kind), generator=generator())
    train_a_little(network)
    with torch.no_grad():
        for name, module in lora_modules(network).items():
            plain.get_submodule(name).weight.copy_(module.weight)
    with torch.inference_mode():
        found, expected = plain(some_images()), network(some_images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_of_an_adapted_network_stands_alone() -> None:
    network = a_network()
    attach(network, LoraSpec(), generator=generator())
    train_a_little(network)
    twin = copy.deepcopy(network)
    with torch.inference_mode():
        before = twin(some_images())
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(twin(some_images()), before)


# --- peft as oracle


@EVERY_KIND
def test_training_with_adapters_lowers_the_loss(kind: str) -> None:
    network, images = a_network(), some_images()
    target = torch.randn(network(images).shape, generator=generator(4))
    with attached(network, LoraSpec(kind=kind), generator=generator()):
        optimizer = torch.optim.AdamW(lora_parameters(network).values(), lr=1e-2)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.mse_loss(network(images), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
