"""The scan's Triton kernels against the scan in plain torch, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest

from FewShotSegLib.networks import scan
from FewShotSegLib.networks.scan import directional_scans
from Testing.Library.kernels import assert_agree, needs_kernels, run_by_interpreter, with_gradients, without_gpu
from Testing.Library.networks.sequences import DIRECTIONS, directional_arguments

pytest.importorskip("triton")


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "width", "states"), [((1, 1, 1, 1), 3, 2), ((2, 3, 4, 5), 20, 8), ((1, 2, 7, 3), 33, 5)]
)
def test_the_kernels_agree_with_the_scan_in_torch(
    shape: tuple[int, int, int, int], width: int, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.networks import scan_triton

    monkeypatch.setattr(scan_triton, "_STATES", 2 * shape[1] * width * states)  # a few sequences at a time
    given = directional_arguments(shape, width, states)
    kernels = with_gradients(lambda *values: directional_scans(*values, DIRECTIONS), given)
    monkeypatch.setattr(scan, "_triton_scans", lambda device: None)
    assert_agree(kernels, with_gradients(lambda *values: directional_scans(*values, DIRECTIONS), given))


@without_gpu
def test_the_interpreter_runs_the_kernels() -> None:
    run_by_interpreter(__file__, passed=3)
