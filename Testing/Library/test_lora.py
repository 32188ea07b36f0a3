"""LoRA against peft and finite differences; what is lent comes back bit by bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.lora.attach import (
    attach,
    attached,
    freeze,
    lora_modules,
    lora_parameters,
    lora_tensors,
)
from FewShotSegLib.lora.layers import LooseLowRank, LoraLinear, LoraQKV, LoraSpec
from FewShotSegLib.sam.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer

EVERY_KIND = pytest.mark.parametrize("kind", ["lora", "loose"])


class Network(nn.Module):
    """The parts of SAM that LoRA touches: encoder and decoder, run one after the other."""

    def __init__(self, *, image_size: int = 64, dim: int = 32, depth: int = 2, heads: int = 2, out: int = 32) -> None:
        super().__init__()
        self.image_encoder = ImageEncoderViT(
            img_size=image_size,
            patch_size=8,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            out_chans=out,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(depth - 1,),
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=out, num_heads=2, mlp_dim=64)
        self.mask_decoder = MaskDecoder(transformer_dim=out, transformer=transformer)

    def forward(self, images: Tensor) -> Tensor:
        features = self.image_encoder(images)
        points = features.mean((2, 3))[:, None].expand(-1, 3, -1)
        hidden, keys = self.mask_decoder.transformer(features, torch.zeros_like(features), points)
        return torch.cat([hidden.flatten(), keys.flatten()])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_network(**sizes: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(**sizes)


def some_images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=generator(7))


def train_a_little(network: nn.Module) -> None:
    """Give every adapter values away from zero."""
    with torch.no_grad():
        for seed, parameter in enumerate(lora_parameters(network).values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator(seed)))


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


def test_finite_differences_confirm_the_gradients() -> None:
    base = nn.Linear(5, 9, dtype=torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64, generator=generator(), requires_grad=True)
    for module in (
        LoraQKV(base, LoraSpec(rank=2, alpha=3.0), generator()),
        LoraLinear(base, LoraSpec(rank=2), generator()),
        LoraQKV(base, LoraSpec(rank=2, alpha=3.0, kind="loose"), generator()),
        LoraLinear(base, LoraSpec(rank=1, kind="loose"), generator()),
    ):
        names, values = zip(*((n, p) for n, p in module.named_parameters() if not n.startswith("base.")), strict=True)
        values = tuple(torch.randn_like(v).requires_grad_(True) for v in values)

        def run(x: Tensor, *values: Tensor, module: nn.Module = module, names: tuple[str, ...] = names) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *values))


def test_only_q_and_v_change_by_scaled_products() -> None:
    base = nn.Linear(6, 18)
    module = LoraQKV(base, LoraSpec(rank=2, alpha=6.0), generator())
    with torch.no_grad():
        module.lora_q.B.normal_(generator=generator(1))
        module.lora_v.B.normal_(generator=generator(2))
    x = torch.randn(2, 3, 4, 6, generator=generator(3))  # windows: four axes
    change = module(x) - base(x)
    expected_q = 3.0 * torch.einsum("...i,ri,or->...o", x, module.lora_q.A, module.lora_q.B)
    expected_v = 3.0 * torch.einsum("...i,ri,or->...o", x, module.lora_v.A, module.lora_v.B)
    torch.testing.assert_close(change[..., :6], expected_q, atol=1e-6, rtol=1e-5)
    assert not change[..., 6:12].any()
    torch.testing.assert_close(change[..., 12:], expected_v, atol=1e-6, rtol=1e-5)


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


def a_loose_adapter(base: nn.Linear, rank: int, alpha: float | None = None) -> LooseLowRank:
    """Of random values everywhere."""
    loose = LooseLowRank(base, base.out_features, LoraSpec(rank=rank, alpha=alpha, kind="loose"), generator())
    with torch.no_grad():
        loose.W.normal_(generator=generator(1))
    return loose


def test_a_loose_change_is_what_pooling_the_channels_of_four_layers_gives() -> None:
    loose = a_loose_adapter(nn.Linear(24, 40, dtype=torch.float64), rank=3, alpha=6.0)
    x = torch.randn(5, 7, 24, dtype=torch.float64, generator=generator(2))
    layers = [x @ loose.A1.T]
    for matrix in (loose.A2, loose.B1, loose.B2):
        layers.append(layers[-1] @ matrix.T)
    assert [layer.shape[-1] for layer in layers] == [12, 3, 12, 40]
    z = torch.cat([F.adaptive_avg_pool1d(layer, 3) for layer in layers], -1)
    torch.testing.assert_close(loose(x), 2.0 * z @ loose.W.T)
    torch.testing.assert_close(loose(x), x @ loose.delta().T)


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_a_loose_change_has_twice_the_rank(rank: int) -> None:
    loose = a_loose_adapter(nn.Linear(64, 48, dtype=torch.float64), rank)
    assert torch.linalg.matrix_rank(loose.delta()).item() == 2 * rank


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
    ("make", "message"),
    [
        (lambda: LoraSpec(rank=0), "rank 0 is not allowed"),
        (lambda: LoraSpec(rank=-2), "rank -2 is not allowed"),
        (lambda: LoraSpec(rank=2.5), "rank 2.5 is not allowed"),  # type: ignore[arg-type]
        (lambda: LoraSpec(alpha=0.0), "alpha 0.0 is not allowed"),
        (lambda: LoraSpec(alpha=float("nan")), "alpha nan is not allowed"),
        (lambda: LoraSpec(kind="dora"), "'dora' is unknown: choose one of 'lora', 'loose'"),
        (lambda: LoraSpec(encoder=False, decoder=False), "no target"),
        (lambda: LoraSpec(encoder=False, mlp=True), "encoder=False"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(make: Callable[[], LoraSpec], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


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


def test_blocks_may_come_from_json() -> None:
    assert LoraSpec(encoder_blocks=json.loads("[0, 1]")) == LoraSpec(encoder_blocks=(0, 1))


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


def test_the_dense_weight_is_the_base_plus_block_products() -> None:
    base = nn.Linear(6, 18)
    module = LoraQKV(base, LoraSpec(rank=2), generator())
    with torch.no_grad():
        module.lora_q.B.normal_(generator=generator(1))
        module.lora_v.B.normal_(generator=generator(2))
    zero = torch.zeros(6, 6)
    expected = base.weight + torch.cat([module.lora_q.B @ module.lora_q.A, zero, module.lora_v.B @ module.lora_v.A])
    torch.testing.assert_close(module.weight, expected)


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


def test_bfloat16_autocast_keeps_float32_adapters_and_stays_close() -> None:
    linear = nn.Linear(32, 96)
    module = LoraQKV(linear, LoraSpec(), generator())
    with torch.no_grad():
        module.lora_q.B.normal_(std=0.05, generator=generator(1))
    x = 0.5 * torch.randn(4, 9, 32, generator=generator(2))
    with torch.autocast("cpu", torch.bfloat16):
        low = module(x)
    low.float().sum().backward()
    assert low.dtype is torch.bfloat16
    assert module.lora_q.A.dtype is torch.float32
    assert (low.float() - module(x)).abs().max() < 1e-2


# --- peft as oracle

peft = pytest.importorskip("peft")


class SplitAttentionInput(nn.Module):
    """q, k and v as three Linears, as peft wants them."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        for name, weight, bias in zip("qkv", fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
            linear = nn.Linear(fused.in_features, fused.out_features // 3)
            linear.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.children()], -1)


@pytest.mark.parametrize("alpha", [4.0, 16.0])
def test_fused_qkv_equals_peft_on_split_linears_exactly(alpha: float) -> None:
    base = nn.Linear(32, 96)
    ours = LoraQKV(base, LoraSpec(rank=4, alpha=alpha), generator())
    with torch.no_grad():
        ours.lora_q.B.normal_(generator=generator(1))
        ours.lora_v.B.normal_(generator=generator(2))
    config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q", "v"], lora_dropout=0.0)
    theirs = peft.get_peft_model(SplitAttentionInput(base), config)
    for name in ("q", "v"):
        layer = getattr(theirs.base_model.model, name)
        layer.lora_A["default"].weight.data.copy_(getattr(ours, f"lora_{name}").A)
        layer.lora_B["default"].weight.data.copy_(getattr(ours, f"lora_{name}").B)
    x = torch.randn(2, 49, 32, generator=generator(3))
    assert (ours(x) - theirs(x)).abs().max() == 0.0
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name in ("q", "v"):
        layer = getattr(theirs.base_model.model, name)
        torch.testing.assert_close(getattr(ours, f"lora_{name}").A.grad, layer.lora_A["default"].weight.grad)
        torch.testing.assert_close(getattr(ours, f"lora_{name}").B.grad, layer.lora_B["default"].weight.grad)


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
