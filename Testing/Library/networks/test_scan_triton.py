"""The scan's Triton kernels against the scan in plain torch, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest

from FewShotSegLib.networks.scan import _Scan
from Testing.Library.kernels import assert_agree, needs_kernels, run_by_interpreter, with_gradients, without_gpu
from Testing.Library.networks.sequences import arguments

pytest.importorskip("triton")


@needs_kernels
@pytest.mark.parametrize(("batch", "length", "width", "states"), [(1, 1, 3, 2), (3, 37, 20, 8), (2, 64, 33, 5)])
def test_the_kernels_agree_with_the_scan_in_torch(
    batch: int, length: int, width: int, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.networks import scan_triton

    monkeypatch.setattr(scan_triton, "_STATES", length * width * states)  # one sequence at a time
    u, delta, decay, write, read, _ = (x.detach().float() for x in arguments(batch, length, width, states))
    given = u, delta, write, read, decay
    reference = with_gradients(lambda *values: _Scan.apply(*values, length), given)
    assert_agree(with_gradients(scan_triton.TritonScan.apply, given), reference)


@without_gpu
def test_the_interpreter_runs_the_kernels() -> None:
    run_by_interpreter(__file__, passed=3)
