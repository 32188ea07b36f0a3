"""An oblique image with two annotated structures."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from FewShotSegLib.data.volume import Volume

SHAPE = (8, 12, 14)


def geometry(spacing=(1, 1, 5), angle=25, origin=(10, 20, 30)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [angle, -10, 5], degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def an_image():
    return Volume(np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16), geometry())


def labels():
    """Label 1 on slices 2 and 3, label 6 on slices 3 and 4."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:4, 2:6, 2:6] = 1
    array[3:5, 7:10, 7:12] = 6
    return array
