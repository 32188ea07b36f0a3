"""Two structures on a small grid, and rows of scores of them."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.evaluation.scoring import evaluate_case

AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0])
NAMES = {1: "liver", 2: "spleen"}


def labels(*, shift: int = 0, extra_slice: bool = False) -> np.ndarray:
    array = np.zeros((8, 20, 24), dtype=np.uint8)
    array[2:6, 4:14, 3 + shift : 12 + shift] = 1
    array[3:5, 6:12, 16:21] = 2
    if extra_slice:
        array[7, 4:8, 4:8] = 1  # a false positive where the reference holds nothing
    return array


def labelmap(array: np.ndarray, names=NAMES, affine=AFFINE) -> Labelmap:
    return Labelmap(Volume(array, affine), names)


def some_rows():
    rows = evaluate_case(labelmap(labels(shift=1)), labelmap(labels()), case="a, with comma")
    return rows + evaluate_case(labelmap(labels(shift=3)), labelmap(labels()), case="b")
