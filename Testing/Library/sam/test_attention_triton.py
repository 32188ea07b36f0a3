"""The attention's Triton kernels against the sum written out, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

BY_INTERPRETER = """
import pytest, sys
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", "-k", "kernels_agree", sys.argv[1]]))
"""


def written_out(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
    return torch.softmax(scale * q @ k.transpose(1, 2) + bias, -1) @ v


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or Triton's interpreter, which the test below starts",
)
@pytest.mark.parametrize(
    ("count", "height", "width", "channels"), [(2, 3, 14, 16), (1, 14, 14, 64), (3, 5, 32, 20), (1, 9, 64, 80)]
)
def test_the_kernels_agree_with_the_formula(count: int, height: int, width: int, channels: int) -> None:
    from FewShotSegLib.sam.attention_triton import TritonAttention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    tokens, scale = height * width, channels**-0.5
    widths = (channels, channels, channels, height, width)
    results = []
    for attend, dtype in ((TritonAttention.apply, torch.float32), (written_out, torch.float64)):
        generator.manual_seed(0)
        given = [torch.randn(count, tokens, n, generator=generator).to(device, dtype).requires_grad_() for n in widths]
        out = attend(*given, scale)
        weights = torch.linspace(-1, 2, out.numel(), device=device, dtype=dtype).view_as(out)
        results.append([out, *torch.autograd.grad((weights * out).sum(), given)])
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves ran")
def test_the_interpreter_runs_the_kernels() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", BY_INTERPRETER, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
