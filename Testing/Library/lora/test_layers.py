"""LoRA's layers against peft, closed forms and finite differences."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.lora.layers import LooseLowRank, LoraLinear, LoraQKV, LoraSpec
from Testing.Library.lora.miniatures import generator

# --- start and learning


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


def test_blocks_may_come_from_json() -> None:
    assert LoraSpec(encoder_blocks=json.loads("[0, 1]")) == LoraSpec(encoder_blocks=(0, 1))


# --- saving and merging


def test_the_dense_weight_is_the_base_plus_block_products() -> None:
    base = nn.Linear(6, 18)
    module = LoraQKV(base, LoraSpec(rank=2), generator())
    with torch.no_grad():
        module.lora_q.B.normal_(generator=generator(1))
        module.lora_v.B.normal_(generator=generator(2))
    zero = torch.zeros(6, 6)
    expected = base.weight + torch.cat([module.lora_q.B @ module.lora_q.A, zero, module.lora_v.B @ module.lora_v.A])
    torch.testing.assert_close(module.weight, expected)


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
    peft = pytest.importorskip("peft")
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
