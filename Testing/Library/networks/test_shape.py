"""Which axes a network halves, and sizes that do not divide by that."""

from __future__ import annotations

import pytest

from FewShotSegLib.networks.shape import kernels_of, strides_of


@pytest.mark.parametrize(
    ("patch", "spacing", "strides"),
    [
        ((64, 64, 64), None, [(2, 2, 2)] * 4),
        ((32, 240, 240), None, [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((32, 128, 192), (4.0, 1.2, 1.2), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),  # FLARE 2022
        ((240, 240, 32), (1, 1, 5), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),  # sagittal slices
        ((1, 64, 64), None, [(1, 2, 2)] * 4),
        ((6, 20, 20), None, [(1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)]),  # 4 voxels stay
    ],
)
def test_thick_slices_are_halved_when_their_pixels_have_become_as_large(
    patch: tuple[int, int, int], spacing: tuple[float, float, float] | None, strides: list[tuple[int, int, int]]
) -> None:
    assert strides_of(patch, 4, spacing) == tuple(strides)


def test_kernels_reach_across_thick_slices_only_where_the_pixels_are_as_large() -> None:
    assert kernels_of((16, 128, 128), strides_of((16, 128, 128), 4))[:4] == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert kernels_of((1, 64, 64), [(1, 2, 2)]) == ((1, 3, 3), (1, 3, 3))
    assert kernels_of((64, 64, 64), [(2, 2, 2)]) == ((3, 3, 3), (3, 3, 3))
