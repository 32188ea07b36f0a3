"""What the benchmarks of speed measure on."""

from __future__ import annotations

import functools

import numpy as np
import torch

from FewShotSegLib.benchmarks.plain import plain_copy
from FewShotSegLib.benchmarks.workload import (
    ANNOTATED,
    Size,
    a_square,
    an_exemplar,
    as_if_replayed,
    encoded,
    lesson_of,
    lora_gradient,
    operators,
    source_of,
)
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.sam import presets
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch

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


def test_operators_that_compute_or_copy_are_counted_and_views_are_not() -> None:
    x, layer = torch.rand(4, 4), torch.nn.Linear(4, 4)
    assert operators(lambda: x.view(16)[2:].unsqueeze(0)) == 0
    assert operators(lambda: torch.relu(x + x).view(16)) == 2
    with torch.inference_mode():
        assert 1 <= operators(lambda: layer(x)) <= 2  # a copy of the bias, and the product


def test_encoding_and_answering_take_no_more_operators_than_they_did() -> None:
    for name, most, most_of_click in (("bundled-small", 280, 280), ("bundled", 560, 195)):
        network = load_base(name)
        images = network.normalize(torch.rand(1, network.image_size, network.image_size), network.scale)
        assert operators(lambda: encoded(network, images, False)) <= most  # noqa: B023 - called at once
        predictor = Predictor(network)
        embedding = predictor.encode([images[0, 0].clamp(0, 1).numpy()])[0]
        coords, labels = torch.full((1, 2, 2), network.image_size / 2), torch.tensor([[POSITIVE, PADDING]])
        click = functools.partial(predictor.decode, embedding, PromptBatch(coords, labels))
        assert operators(click) <= most_of_click


def test_with_graphs_at_most_a_quarter_of_a_training_step_is_left_to_launch() -> None:
    network = load_base("bundled-small")
    lesson = lesson_of(source_of(SMALL, network.image_size), 2)
    with lora_gradient(network, presets.COMPACT, lesson, None) as gradient:
        eager = operators(gradient)
        with as_if_replayed(network):
            assert operators(gradient) < eager / 4
        assert operators(gradient) == eager  # the network is as before
