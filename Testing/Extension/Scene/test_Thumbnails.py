"""Slices turned as radiologists look at them."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.volume import ras_from_ijk
from FewShotSegSlicer.Scene.Thumbnails import asOnScreen, thumbnail

# Where the upper left corner of the picture must lie, as signs of RAS, by the anatomical axis across the slices.
UPPER_LEFT = {0: (0, 1, 1), 1: (1, 0, 1), 2: (1, 1, 0)}


def affines() -> dict[str, np.ndarray]:
    turned = np.eye(4)
    turned[:3, :3] = np.array([[0, 0, 2.0], [-3.0, 0, 0], [0, 4.0, 0]])  # i along -A, j along S, k along R
    return {
        "as most CT files": np.diag([-1.0, -1.0, 3.0, 1.0]),
        "flipped along every axis": np.diag([1.0, 1.0, -3.0, 1.0]),
        "left-handed": np.diag([-1.0, 1.0, 3.0, 1.0]),
        "sagittal series": turned,
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("affine", affines().values(), ids=affines().keys())
def test_right_is_on_the_left_and_anterior_or_superior_on_top(affine: np.ndarray, axis: int) -> None:
    shape = (5, 6, 7)
    k, j, i = np.indices(shape)
    points = ras_from_ijk(affine, np.stack([i, j, k], axis=-1).reshape(-1, 3)).reshape(*shape, 3)
    centred = np.moveaxis(points - points.reshape(-1, 3).mean(0), axis, 0)[2]  # (rows, columns, RAS)
    normal = int(np.abs(affine[:3, 2 - axis]).argmax())
    corner = asOnScreen(centred, axis, affine, size=50)[0, 0]
    signs = np.sign(np.round(corner, 6)) * (np.array(UPPER_LEFT[normal]) != 0)
    assert tuple(signs) == UPPER_LEFT[normal]


def test_pixels_become_square_and_the_longer_side_gets_the_size() -> None:
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    sagittal = np.zeros((20, 100), np.uint8)  # 20 slices of 5 mm, 100 rows of 1 mm
    assert asOnScreen(sagittal, 2, affine, 64).shape == (64, 64)
    assert asOnScreen(np.zeros((50, 100, 3)), 0, affine, 64).shape == (32, 64, 3)


def test_structures_are_coloured_over_the_grey_image() -> None:
    image, labels = np.full((8, 8), 50.0), np.zeros((8, 8), np.uint16)
    labels[2:4, 2:4] = 1
    picture = thumbnail(image, labels, {1: "liver"}, (0.0, 100.0), 0, np.diag([-1.0, -1.0, 1.0, 1.0]), size=8)
    assert (picture[labels == 0] == 128).all()
    red, green, blue = picture[2, 2]
    assert red > green > blue  # as Slicer colours livers
