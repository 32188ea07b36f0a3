"""What is computed in one pass and in strips equals PyTorch's layers one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from FewShotSegLib.sam import fused
from FewShotSegLib.sam.modeling import LayerNorm2d


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.requires_grad_(False)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_a_linear_layer(bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_onednn", lambda: onednn)
    linear = seeded(nn.Linear(8, 16, bias=bias))
    with torch.inference_mode():
        assert torch.allclose(fused.linear_of(linear, some(2, 5, 8)), linear(some(2, 5, 8)), atol=1e-5)


def mlp_of(width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return seeded(nn.LayerNorm(width)), seeded(nn.Linear(width, 24)), seeded(nn.Linear(24, width))


@pytest.mark.parametrize("portion", [1, 4, 100])
@pytest.mark.parametrize("onednn", [True, False])
def test_portions_of_an_mlp_are_the_whole(portion: int, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_onednn", lambda: onednn)
    monkeypatch.setattr(fused, "PORTION", portion)
    norm, widen, narrow = mlp_of(6)
    x = some(2, 6, 3, 5).permute(0, 2, 3, 1)  # tokens of a map that is not contiguous
    expected = x + narrow(F.gelu(widen(norm(x))))
    with torch.inference_mode():
        assert torch.allclose(fused.mlp(x, norm, widen, narrow), expected, atol=1e-5)


def test_an_mlp_in_half_precision_is_close_and_stays_so() -> None:
    norm, widen, narrow = mlp_of(6)
    x = some(2, 9, 6)
    expected = fused.mlp(x, norm, widen, narrow)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = fused.mlp(x.bfloat16(), norm, widen, narrow)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.1)


def test_double_precision_is_kept() -> None:
    layer = seeded(nn.Linear(8, 8)).double()
    x = some(3, 8).double()
    with torch.inference_mode():
        assert torch.equal(fused.linear_of(layer, x), layer(x))


def test_a_wrapped_layer_keeps_what_it_adds() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = seeded(Doubled(8, 8))
    norm, widen, _ = mlp_of(8)
    narrow = seeded(Doubled(24, 8))
    with torch.inference_mode():
        assert torch.allclose(fused.linear_of(layer, some(3, 8)), layer(some(3, 8)))
        x = some(3, 8)
        expected = x + narrow(F.gelu(widen(norm(x))))
        assert torch.allclose(fused.mlp(x, norm, widen, narrow), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("height", [1, 7, 16, 33])
@pytest.mark.parametrize("stride", [1, 2])
def test_strips_meet_without_a_seam(rows: int, height: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "STRIP_ROWS", rows)
    expand, project = seeded(nn.Conv2d(4, 16, 1)), seeded(nn.Conv2d(16, 4, 1))
    depthwise = seeded(nn.Conv2d(16, 16, 3, stride, 1, groups=16))
    x = some(2, 4, height, 6).contiguous(memory_format=torch.channels_last)
    y = project(F.gelu(depthwise(F.gelu(expand(x)))))
    expected = F.gelu(x + y) if stride == 1 else y
    with torch.inference_mode():
        found = fused.bottleneck(x, expand, depthwise, project, residual=stride == 1)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channel_norm_is_that_of_sam(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    stock, ours = LayerNorm2d(6), fused.ChannelNorm(6)
    ours.load_state_dict(seeded(stock).state_dict())
    x = some(2, 6, 4, 5).to(dtype).contiguous(memory_format=memory_format)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = ours(x)
        assert found.dtype == stock(x).dtype
        assert torch.allclose(found, stock(x.float()), atol=1e-5)
