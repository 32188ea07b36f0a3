"""Affines and transforms of any kind, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from Testing.Extension.nodes import (
    affineOf,
    rotation,
)

fewExamples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


angles = st.floats(-180, 180)


spacings = st.floats(0.2, 8)


offsets = st.floats(-300, 300)


@st.composite
def anyAffine(draw):
    """Turned, anisotropic, maybe flipped, maybe sheared."""
    axis = draw(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1))
    flips = np.diag(draw(st.tuples(*[st.sampled_from([-1, 1])] * 3)))
    shear = np.eye(3)
    shear[0, 1], shear[1, 2] = draw(st.floats(-0.3, 0.3)), draw(st.floats(-0.3, 0.3))
    directions = rotation(axis, draw(angles)) @ flips @ shear
    return affineOf(directions, [draw(spacings) for _ in range(3)], [draw(offsets) for _ in range(3)])


@st.composite
def anyTransform(draw):
    """Turned, moved, maybe mirrored and scaled, as a (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((1, -2, 0.5), draw(angles)) * [draw(st.sampled_from([-1, 1])), 1, draw(st.floats(0.5, 2))]
    matrix[:3, 3] = [draw(offsets) for _ in range(3)]
    return matrix
