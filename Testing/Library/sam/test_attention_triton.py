"""The attention's Triton kernels against the sum written out, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from Testing.Library.kernels import assert_agree, needs_kernels, run_by_interpreter, with_gradients, without_gpu

pytest.importorskip("triton")


def written_out(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
    return torch.softmax(scale * q @ k.transpose(1, 2) + bias, -1) @ v


@needs_kernels
@pytest.mark.parametrize(
    ("count", "height", "width", "channels"), [(2, 3, 14, 16), (1, 14, 14, 64), (3, 5, 32, 20), (1, 9, 64, 80)]
)
def test_the_kernels_agree_with_the_formula(count: int, height: int, width: int, channels: int) -> None:
    from FewShotSegLib.sam.attention_triton import TritonAttention

    generator, scale = torch.Generator().manual_seed(0), channels**-0.5
    widths = (channels, channels, channels, height, width)
    given = [torch.randn(count, height * width, n, generator=generator) for n in widths]
    reference = with_gradients(lambda *values: written_out(*values, scale), [value.double() for value in given])
    assert_agree(with_gradients(lambda *values: TritonAttention.apply(*values, scale), given), reference)


@without_gpu
def test_the_interpreter_runs_the_kernels() -> None:
    run_by_interpreter(__file__, passed=4)
