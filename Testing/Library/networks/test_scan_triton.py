"""The scan's Triton kernels against the scan in plain torch, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from FewShotSegLib.networks.scan import _Scan
from Testing.Library.networks.sequences import arguments

pytest.importorskip("triton")

BY_INTERPRETER = """
import pytest, sys
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", "-k", "kernels_agree", sys.argv[1]]))
"""


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or Triton's interpreter, which the test below starts",
)
@pytest.mark.parametrize(("batch", "length", "width", "states"), [(1, 1, 3, 2), (3, 37, 20, 8), (2, 64, 33, 5)])
def test_the_kernels_agree_with_the_scan_in_torch(
    batch: int, length: int, width: int, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.networks import scan_triton

    monkeypatch.setattr(scan_triton, "_STATES", length * width * states)  # one sequence at a time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    u, delta, decay, write, read, _ = (x.detach().float() for x in arguments(batch, length, width, states))
    results = []
    for scan in (scan_triton.TritonScan.apply, lambda *given: _Scan.apply(*given, length)):
        given = [x.to(device).requires_grad_() for x in (u, delta, write, read, decay)]
        y = scan(*given)
        weights = torch.linspace(-1, 2, y.numel(), device=device).view_as(y)
        results.append([y, *torch.autograd.grad((weights * y).sum(), given)])
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves ran")
def test_the_interpreter_runs_the_kernels() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", BY_INTERPRETER, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
