"""Digests see what means something and nothing else."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.digests import sha256_of_array


def test_the_checksum_of_an_array_sees_values_shape_and_type_only():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    same = [np.asfortranarray(array), array.astype(">f4"), np.repeat(array, 2, axis=0)[::2]]
    assert {sha256_of_array(other) for other in same} == {sha256_of_array(array)}
    different = [array.reshape(4, 3, 2), array.astype(np.float64), array + 1, array.view(np.int32), array[:0]]
    assert len({sha256_of_array(other) for other in [array, *different]}) == 6
