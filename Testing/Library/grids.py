"""Grids of every kind, and blocks of labels to put on them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation


def affine_of(angles=(0, 0, 0), spacing=(1.0, 1.0, 1.0), origin=(0, 0, 0), flips=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing) * flips
    affine[:3, 3] = origin
    return affine


GEOMETRIES = {
    "identity": affine_of(),
    "anisotropic": affine_of(spacing=(0.7, 0.9, 5.0), origin=(-120.5, 33.25, 1017.125)),
    "flipped": affine_of(spacing=(2, 3, 4), flips=(-1, -1, 1), origin=(90, 100, -50)),
    "left-handed": affine_of(spacing=(2, 3, 4), flips=(1, 1, -1), origin=(1, 2, 3)),
    "oblique": affine_of((17, -33, 50), (0.8, 1.1, 3.3), (-100.3, 22.2, 17.77)),
    "oblique left-handed": affine_of((-70, 15, 140), (1.5, 0.4, 6), (5, -6, 7), (-1, 1, 1)),
    "sagittal": affine_of()[:, [2, 0, 1, 3]] * [1, 2, 3, 1],
}
geometries = pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def blocks(shape=(5, 6, 7)):
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:4, 3:6] = 3
    labels[3, 1, 1] = 200
    return labels
