"""Encode and decode against the stock modules of segment_anything."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.modeling import PromptEncoder
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    NEGATIVE,
    PADDING,
    POSITIVE,
    Embedding,
    PromptableNetwork,
    PromptBatch,
)

SIZE = 64
IMAGES, PROMPTS = 2, 3


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.fixture
def embedding(a_tiny_sam: PromptableNetwork, generator: torch.Generator) -> Embedding:
    with torch.inference_mode():
        return a_tiny_sam.encode(a_tiny_sam.normalize(torch.rand(IMAGES, SIZE, SIZE, generator=generator)))


def some_points(generator: torch.Generator, count: int, points: int) -> tuple[Tensor, Tensor]:
    coords = SIZE * torch.rand(count, points, 2, generator=generator)
    return coords, torch.randint(0, 2, (count, points), generator=generator)


def some_boxes(generator: torch.Generator, count: int) -> Tensor:
    low = 0.5 * SIZE * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 20], 1)


def stock(network: PromptableNetwork, features: Tensor, points, boxes, masks) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """segment_anything's own way for one image."""
    sparse, dense = network.prompt_encoder(points, boxes, masks)
    return network.mask_decoder.predict_masks(features, network.prompt_encoder.get_dense_pe(), sparse, dense)


def joined(coords: Tensor, labels: Tensor, boxes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points, then the box as two corners or one padding point, as a PromptBatch has them."""
    count = len(coords)
    if boxes is None:
        return (
            torch.cat([coords, torch.zeros(count, 1, 2)], 1),
            torch.cat([labels, torch.full((count, 1), PADDING)], 1),
        )
    corners = torch.tensor([[BOX_CORNER_LOW, BOX_CORNER_HIGH]]).expand(count, -1)
    return torch.cat([coords, boxes.view(count, 2, 2)], 1), torch.cat([labels, corners], 1)


@pytest.mark.parametrize("with_box", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_prompts_of_several_images_are_answered_as_segment_anything_answers_them_one_image_at_a_time(
    a_tiny_sam: PromptableNetwork, embedding: Embedding, generator: torch.Generator, with_box: bool, with_mask: bool
) -> None:
    count = IMAGES * PROMPTS
    coords, labels = some_points(generator, count, 2)
    boxes = some_boxes(generator, count) if with_box else None
    masks = 4 * torch.randn(count, 1, 32, 32, generator=generator) if with_mask else None
    with torch.inference_mode():
        logits, iou = a_tiny_sam.decode(embedding, PromptBatch(*joined(coords, labels, boxes), masks))
        for image in range(IMAGES):
            rows = slice(image * PROMPTS, (image + 1) * PROMPTS)
            part = lambda tensor, rows=rows: None if tensor is None else tensor[rows]  # noqa: E731
            expected, expected_iou = stock(
                a_tiny_sam,
                embedding.features[image : image + 1],
                (coords[rows], labels[rows]),
                part(boxes),
                part(masks),
            )
            torch.testing.assert_close(logits[rows], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(iou[rows], expected_iou, rtol=1e-4, atol=1e-5)
    assert logits.shape == (count, 4, 32, 32)


def test_a_box_alone_and_a_mask_alone_are_answered_as_by_segment_anything(
    a_tiny_sam: PromptableNetwork, embedding: Embedding, generator: torch.Generator
) -> None:
    one, boxes = embedding.one(1), some_boxes(generator, 2)
    masks = torch.randn(2, 1, 32, 32, generator=generator)
    nothing = torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.long)
    with torch.inference_mode():
        logits, _ = a_tiny_sam.decode(one, PromptBatch(*joined(*nothing, boxes)))
        torch.testing.assert_close(logits, stock(a_tiny_sam, one.features, None, boxes, None)[0], rtol=1e-4, atol=1e-5)
        logits, _ = a_tiny_sam.decode(one, PromptBatch(*nothing, masks))
        torch.testing.assert_close(logits, stock(a_tiny_sam, one.features, None, None, masks)[0], rtol=1e-4, atol=1e-5)


def test_a_mask_counts_only_in_the_rows_that_mean_it(
    a_tiny_sam: PromptableNetwork, embedding: Embedding, generator: torch.Generator
) -> None:
    one = embedding.one(0)
    coords, labels = joined(*some_points(generator, 2, 1), None)
    masks = torch.randn(2, 1, 32, 32, generator=generator)
    with torch.inference_mode():
        plain, _ = a_tiny_sam.decode(one, PromptBatch(coords, labels))
        masked, _ = a_tiny_sam.decode(one, PromptBatch(coords, labels, masks))
        mixed, _ = a_tiny_sam.decode(one, PromptBatch(coords, labels).with_masks(masks, torch.tensor([True, False])))
    torch.testing.assert_close(mixed, torch.stack([masked[0], plain[1]]))
    assert not torch.allclose(masked[1], plain[1], atol=1e-3)


def test_structure_tokens_are_further_sparse_prompts(
    a_tiny_sam: PromptableNetwork, embedding: Embedding, generator: torch.Generator
) -> None:
    one, coords, labels = embedding.one(0), *some_points(generator, 2, 1)
    tokens = torch.randn(2, 3, 32, generator=generator)
    with torch.inference_mode():
        logits, _ = a_tiny_sam.decode(one, PromptBatch(*joined(coords, labels, None), tokens=tokens))
        sparse, dense = a_tiny_sam.prompt_encoder((coords, labels), None, None)
        expected, _ = a_tiny_sam.mask_decoder.predict_masks(
            one.features, a_tiny_sam.prompt_encoder.get_dense_pe(), torch.cat([sparse, tokens], 1), dense
        )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_normalizing_equals_the_preprocessing_of_segment_anything(
    a_tiny_sam: PromptableNetwork, generator: torch.Generator
) -> None:
    package = PromptEncoder.__module__.rpartition(".")[0]
    theirs = importlib.import_module(f"{package}.sam").Sam(
        a_tiny_sam.image_encoder, a_tiny_sam.prompt_encoder, a_tiny_sam.mask_decoder
    )
    grey = torch.rand(2, SIZE, SIZE, generator=generator)
    expected = torch.stack([theirs.preprocess(255 * image.expand(3, -1, -1)) for image in grey])
    torch.testing.assert_close(a_tiny_sam.normalize(grey), expected)
    assert torch.equal(a_tiny_sam.normalize(grey, "unit"), grey[:, None].expand(-1, 3, -1, -1))


def test_parameters_are_named_as_in_official_checkpoints(a_tiny_sam: PromptableNetwork) -> None:
    names = a_tiny_sam.state_dict().keys()
    assert {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.neck.3.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.point_embeddings.3.weight",
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.v_proj.bias",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
    } <= set(names)
    assert not any(name.startswith("pixel_") for name in names)


# --- prompts drawn as an image --------------------------------------------------------------------------------------


def drawn(network: PromptableNetwork, coords: list[tuple[float, float]], labels: list[int]) -> np.ndarray:
    return network.prompt_map(PromptBatch(torch.tensor([coords]), torch.tensor([labels])))[0].numpy()


def centres(network: PromptableNetwork) -> np.ndarray:
    """Network pixel coordinates of the centres of the map's pixels: 0.5, 2.5, 4.5, ..."""
    return np.arange(network.mask_input_size) * 2 + 0.5


def test_a_click_is_drawn_as_a_spot_one_map_pixel_wide(a_tiny_sam: PromptableNetwork) -> None:
    x, y = 21.0, 40.5
    positive, negative, box = drawn(a_tiny_sam, [(x, y), (3.0, 5.0), (0.0, 0.0)], [POSITIVE, NEGATIVE, PADDING])
    axis = centres(a_tiny_sam)
    spot = lambda x, y: np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * 2.0**2))  # noqa: E731
    np.testing.assert_allclose(positive, spot(x, y), atol=1e-6)
    np.testing.assert_allclose(negative, spot(3.0, 5.0), atol=1e-6)
    assert not box.any()
    assert np.unravel_index(positive.argmax(), positive.shape) == (20, 10)


def test_clicks_on_one_place_do_not_pile_up(a_tiny_sam: PromptableNetwork) -> None:
    positive, negative, _ = drawn(a_tiny_sam, [(20.5, 20.5)] * 3, [POSITIVE] * 3)
    assert positive.max() == 1
    assert not negative.any()


def test_a_box_is_drawn_where_pixel_centres_lie_inside_it(a_tiny_sam: PromptableNetwork) -> None:
    _, _, box = drawn(a_tiny_sam, [(9.0, 9.0), (8.5, 20.0), (30.4, 24.5)], [POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH])
    axis = centres(a_tiny_sam)
    inside_x, inside_y = (axis >= 8.5) & (axis <= 30.4), (axis >= 20.0) & (axis <= 24.5)
    np.testing.assert_array_equal(box, (inside_y[:, None] & inside_x[None]).astype(np.float32))


def test_only_the_rows_with_a_box_have_one_drawn(a_tiny_sam: PromptableNetwork) -> None:
    coords = torch.tensor([[[4.0, 4], [40, 40]], [[4.0, 4], [40, 40]]])
    labels = torch.tensor([[BOX_CORNER_LOW, BOX_CORNER_HIGH], [POSITIVE, PADDING]])
    boxes = a_tiny_sam.prompt_map(PromptBatch(coords, labels))[:, 2]
    assert boxes[0].any()
    assert not boxes[1].any()


def test_the_two_kinds_of_network_are_told_apart(a_tiny_sam: PromptableNetwork) -> None:
    with torch.random.fork_rng(devices=[]):
        compact = build_compact(CompactArchitecture(64, (8, 8, 16), 32, 4, 2, 32))
    assert compact.family == "compact"
    assert a_tiny_sam.family == "sam"
