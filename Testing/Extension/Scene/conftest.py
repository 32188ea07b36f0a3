"""A volume in each of the geometries."""

from __future__ import annotations

import numpy as np
import pytest

from Testing.Extension.nodes import (
    GEOMETRIES,
    SHAPE,
    addVolume,
)


@pytest.fixture(params=GEOMETRIES)
def aVolumeNode(request, scene):
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return addVolume(values, GEOMETRIES[request.param])
