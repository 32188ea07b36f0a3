"""Labels of the most similar annotated slice."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.benchmarks.label_transfer import body_box, transferred
from Testing.conftest import dice


def a_slice(top: int, left: int, size: int, organ: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """A body with an organ in its upper left quarter."""
    image, labels = np.zeros((64, 64)), np.zeros((64, 64), int)
    image[top : top + size, left : left + size] = 0.5
    part = np.s_[top + size // 8 : top + size // 2, left + size // 8 : left + size // 2]
    image[part], labels[part] = organ, 3
    return image, labels


def test_labels_follow_the_body_to_its_place_and_size() -> None:
    image, truth = a_slice(20, 10, 32)
    support = a_slice(4, 14, 48)
    found = transferred(image, [support])
    assert dice(found == 3, truth == 3) > 0.9


def test_the_support_that_looks_most_alike_lends_its_labels() -> None:
    image, _ = a_slice(8, 8, 40)
    alike, other = a_slice(8, 8, 40), a_slice(8, 8, 40, organ=0.1)
    marked = np.where(other[1] == 3, 7, 0)
    assert set(np.unique(transferred(image, [(other[0], marked), alike]))) == {0, 3}
    assert set(np.unique(transferred(other[0], [(other[0], marked), alike]))) == {0, 7}


def test_of_a_dark_slice_all_is_body() -> None:
    low, high = body_box(np.zeros((20, 30)))
    assert (low.tolist(), high.tolist()) == ([0, 0], [19, 29])
