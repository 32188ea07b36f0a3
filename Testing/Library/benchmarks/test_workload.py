"""What the benchmarks of speed measure on."""

from __future__ import annotations

import numpy as np
import torch

from FewShotSegLib.benchmarks.plain import plain_copy
from FewShotSegLib.benchmarks.workload import ANNOTATED, Size, a_square, an_exemplar, encoded, lesson_of, source_of
from FewShotSegLib.sam.network import PromptableNetwork

SMALL = Size(1, (64,), 64, 6)


def test_the_exemplar_has_the_slices_that_show_most_structures() -> None:
    exemplar = an_exemplar(SMALL)
    counts = [len(np.unique(labels)) for labels in exemplar.labelmap]
    assert len(exemplar.annotated_slices) == ANNOTATED
    assert min(counts[k] for k in exemplar.annotated_slices) == sorted(counts)[-ANNOTATED]


def test_a_lesson_asks_by_clicks_and_by_name_and_is_the_same_every_time() -> None:
    first, second = (lesson_of(source_of(SMALL, 64), 2) for _ in range(2))
    assert len(first[0]) == 2
    assert [query.structures is None for query in first[1]] == [True, False]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first[0], second[0], strict=True))


def test_encoding_is_that_of_the_network_without_gradients(a_tiny_sam: PromptableNetwork) -> None:
    square = a_square(SMALL, 3, a_tiny_sam.image_size)
    images = a_tiny_sam.normalize(torch.from_numpy(square)[None])
    features = encoded(a_tiny_sam, images, False)
    assert features.is_inference()
    torch.testing.assert_close(features, encoded(plain_copy(a_tiny_sam), images, False), atol=1e-4, rtol=1e-4)
