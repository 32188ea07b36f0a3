"""What is computed in one pass and in strips equals PyTorch's layers one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from FewShotSegLib.sam import fused


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.requires_grad_(False)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_gelu_of_a_layer(bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_onednn", lambda: onednn)
    linear = seeded(nn.Linear(8, 16, bias=bias))
    conv = seeded(nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=2, bias=bias))
    with torch.inference_mode():
        assert torch.allclose(fused.gelu_of(linear, some(2, 5, 8)), F.gelu(linear(some(2, 5, 8))), atol=1e-5)
        maps = some(2, 8, 7, 6)
        assert torch.allclose(fused.gelu_of(conv, maps), F.gelu(conv(maps)), atol=1e-5)
        narrow = F.gelu(F.conv2d(maps, conv.weight, conv.bias, 2, (0, 1), 1, 2))  # type: ignore[arg-type]
        assert torch.allclose(fused.gelu_of(conv, maps, padding=(0, 1)), narrow, atol=1e-5)


def test_a_wrapped_layer_keeps_what_it_adds() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = seeded(Doubled(8, 8))
    with torch.inference_mode():
        assert torch.allclose(fused.gelu_of(layer, some(3, 8)), F.gelu(layer(some(3, 8))))


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
