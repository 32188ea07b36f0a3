"""How Triton kernels are tested: on a GPU, or by Triton's interpreter in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or Triton's interpreter, which another test of the file starts",
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves ran")

BY_INTERPRETER = """
import pytest, sys
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", "-k", "kernels_agree", sys.argv[1]]))
"""


def run_by_interpreter(file: str, passed: int) -> None:
    """The tests `kernels_agree` of a file, in another process: Triton decides when it is imported whether it
    interprets.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", BY_INTERPRETER, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout


def with_gradients(call: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """What a call returns, and the gradients of a weighted sum of it."""
    given = [value.detach().to(DEVICE).requires_grad_() for value in given]
    result = call(*given)
    weights = torch.linspace(-1, 2, result.numel(), device=result.device, dtype=result.dtype).view_as(result)
    return [result, *torch.autograd.grad((weights * result).sum(), given)]


def assert_agree(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    for mine, right in zip(ours, reference, strict=True):
        assert (mine - right).abs().max() <= 1e-4 * right.abs().max()
