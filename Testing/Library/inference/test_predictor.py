"""Encode once, decode often: user prompts in network pixels, adapters on and off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.devices import encoding_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import SliceFrame, frame_of
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.predictor import MASK_LOGIT, Masks, Predictor
from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.layers import LoraSpec
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
from Testing.conftest import sha256_of_network

SIZE = 64
STRUCTURES = {2: "liver", 5: "spleen"}


def an_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def frame() -> SliceFrame:
    """A slice of 32 x 16 voxels of 1 x 2 mm: one voxel is 2 x 4 network pixels."""
    return frame_of(Volume(np.zeros((3, 32, 16), np.int16), np.diag([2.0, 1.0, 5.0, 1.0])), 0, 1, SIZE)


@pytest.fixture
def adapter(a_tiny_sam: PromptableNetwork) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    spec = AdaptationSpec(LoraSpec(rank=2, alpha=4), tokens=3)
    adaptation = Adaptation(a_tiny_sam, spec, sorted(STRUCTURES), generator=generator)
    with adaptation.applied(a_tiny_sam) as parameters, torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Adapter(
        adaptation.tensors(a_tiny_sam),
        "lora",
        {},
        a_tiny_sam.name,
        a_tiny_sam.sha256,
        STRUCTURES,
        IntensitySpec("window", 0, 1, "unit"),
        SIZE,
        0,
        0,
        architecture={"lora": to_dict(spec.lora), "tokens": 3, "full_decoder": False},
    )


@pytest.fixture
def encoded(a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes the encoder has seen."""
    seen: list[int] = []
    original = a_tiny_sam.encode

    def encode(images: torch.Tensor) -> Embedding:
        seen.append(len(images))
        return original(images)

    monkeypatch.setattr(a_tiny_sam, "encode", encode)
    return seen


def click(x: float = 5, y: float = 7) -> Prompt:
    return Prompt(0, 1, np.array([[x, y, 1.0]]), np.array([1]))


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_slice_is_encoded_once(a_tiny_sam: PromptableNetwork, encoded: list[int]) -> None:
    predictor = Predictor(a_tiny_sam)
    first = predictor.encode([an_image(0), an_image(1)])
    second = predictor.encode([an_image(1), an_image(2), an_image(0)])
    assert encoded == [2, 1]
    assert torch.equal(second[0].features, first[1].features)
    assert torch.equal(second[2].features, first[0].features)
    assert second[0].features.shape == (1, 32, 8, 8)


def test_predictors_can_share_one_cache_from_the_start(a_tiny_sam: PromptableNetwork, encoded: list[int]) -> None:
    cache = EmbeddingCache()
    Predictor(a_tiny_sam, cache=cache).encode([an_image(0)])
    Predictor(a_tiny_sam, cache=cache).encode([an_image(0)])
    assert encoded == [1]
    assert len(cache) == 1


def test_base_and_adapter_and_the_two_scales_never_share_an_embedding(
    a_tiny_sam: PromptableNetwork, adapter: Adapter, encoded: list[int]
) -> None:
    cache = EmbeddingCache()
    for predictor in (
        Predictor(a_tiny_sam, cache=cache),
        Predictor(a_tiny_sam, scale="unit", cache=cache),
        Predictor(a_tiny_sam, adapter, cache=cache),
    ):
        predictor.encode([an_image(0)])
    assert encoded == [1, 1, 1]
    assert len(cache) == 3


# --- user prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_points", [1, 2])
def test_clicks_become_network_pixels_with_padding_after_the_first(
    a_tiny_sam: PromptableNetwork, frame: SliceFrame, padding_points: int
) -> None:
    a_tiny_sam.padding_points = padding_points
    prompt = Prompt(0, 1, np.array([[3.0, 10.0, 1.0], [0.0, 31.0, 1.0]]), np.array([1, 0]))
    batch = Predictor(a_tiny_sam).user_prompt(prompt, frame)
    # Column 3 covers x = 12 .. 15, row 10 covers y = 20 and 21.
    assert batch.coords[0, [0, -1]].tolist() == [[13.5, 20.5], [1.5, 62.5]]
    assert batch.labels[0].tolist() == [POSITIVE, *[PADDING] * padding_points, NEGATIVE]
    assert batch.masks is None


def test_the_first_positive_point_comes_first_and_a_box_right_after_it(
    a_tiny_sam: PromptableNetwork, frame: SliceFrame
) -> None:
    points = np.array([[0.0, 31.0, 1.0], [3.0, 10.0, 1.0], [5.0, 12.0, 1.0]])
    box = np.array([[2.0, 4.0, 1.0], [9.0, 20.0, 1.0]])
    batch = Predictor(a_tiny_sam).user_prompt(Prompt(0, 1, points, np.array([0, 1, 1]), box_ijk=box), frame)
    assert batch.labels[0].tolist() == [POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH, NEGATIVE, POSITIVE]
    assert batch.coords[0, 0].tolist() == [13.5, 20.5]


def test_further_points_are_answered_as_corrections_of_the_mask_before(
    a_tiny_sam: PromptableNetwork, adapter: Adapter, frame: SliceFrame
) -> None:
    """Against the same chain spelled out: with structures the mean of the answers with and without their tokens."""
    points = np.array([[3.0, 10.0, 1.0], [0.0, 31.0, 1.0], [9.0, 20.0, 1.0]])
    prompt = Prompt(0, 1, points, np.array([1, 0, 1]))
    for predictor, structures in ((Predictor(a_tiny_sam), []), (Predictor(a_tiny_sam, adapter), [5])):
        embedding = predictor.encode([an_image(0)])[0]
        found = predictor.answer(embedding, prompt, frame, structures)
        whole, side = predictor.user_prompt(prompt, frame), a_tiny_sam.mask_input_size
        masks = None
        for end in (2, 3, 4):  # first point and padding, then one point more each time
            batch = PromptBatch(whole.coords[:, :end], whole.labels[:, :end])
            if masks is not None:
                logits = torch.from_numpy(masks.logits)[None]
                batch = batch.with_masks(torch.nn.functional.interpolate(logits, (side, side), mode="bilinear"))
            answers = [predictor.decode(embedding, batch, asked) for asked in ([], structures)]
            masks = Masks(*(np.mean([getattr(a, name) for a in answers], axis=0) for name in ("logits", "iou")))
        assert masks is not None
        np.testing.assert_allclose(found.logits, masks.logits, rtol=1e-6)
        np.testing.assert_allclose(found.iou, masks.iou, rtol=1e-6)
        at_once = predictor.decode(embedding, whole, structures)
        assert np.abs(at_once.logits - found.logits).max() > 1e-4


@pytest.mark.parametrize("padding_points", [0, 1, 2])
def test_one_more_point_or_one_less_repeats_no_step(
    a_tiny_sam: PromptableNetwork,
    adapter: Adapter,
    frame: SliceFrame,
    monkeypatch: pytest.MonkeyPatch,
    padding_points: int,
) -> None:
    a_tiny_sam.padding_points = padding_points
    points = np.array([[3.0, 10.0, 1.0], [0.0, 31.0, 1.0], [9.0, 20.0, 1.0], [5.0, 12.0, 1.0]])
    labels = np.array([1, 0, 1, 1])
    predictor, images = Predictor(a_tiny_sam, adapter), [an_image(0), an_image(1)]
    steps, plain = [], Predictor.decode_known
    monkeypatch.setattr(
        Predictor, "decode_known", lambda self, *given: steps.append(len(given[1].labels[0])) or plain(self, *given)
    )
    box = np.array([[2.0, 4.0, 1.0], [9.0, 20.0, 1.0]])

    def asked(image: int, prompt: Prompt, structures: list[int]) -> int:
        """Steps taken; the answer must be that of a predictor that has answered nothing before."""
        steps.clear()
        found = predictor.answer(predictor.encode([images[image]])[0], prompt, frame, structures)
        taken, fresh = len(steps), Predictor(a_tiny_sam, adapter)
        expected = fresh.answer(fresh.encode([images[image]])[0], prompt, frame, structures)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.iou, expected.iou)
        return taken

    def clicks(count: int, **more: Any) -> Prompt:
        return Prompt(0, 1, points[:count], labels[:count], **more)

    assert [asked(0, clicks(count), [5]) for count in (1, 2, 4)] == [1, 1, 2]
    assert [asked(0, clicks(count), [5]) for count in (4, 3, 4)] == [0, 0, 1]  # the same again, undone, redone
    assert asked(0, clicks(4), []) == 4
    assert asked(0, clicks(4), [5]) == 4
    assert asked(1, clicks(4), [5]) == 4
    assert asked(1, Prompt(0, 1, points[[0, 1, 3]], labels[[0, 1, 3]]), [5]) == 1
    assert asked(1, Prompt(0, 1, points[:3], np.array([1, 1, 1])), [5]) == 2
    assert asked(1, clicks(3, box_ijk=box), [5]) == 3
    assert asked(1, clicks(1), [5]) == 1  # the first point as before, but without the box
    assert asked(1, clicks(1, box_ijk=box), [5]) == 1
    assert asked(1, clicks(2), [5]) == 2
    mask = np.zeros((32, 16), bool)
    mask[8:20, 4:10] = True
    assert asked(1, clicks(2, mask=mask), [5]) == 2
    assert asked(1, clicks(3, mask=~mask), [5]) == 3
    assert asked(1, clicks(3), [5]) == 3
    predictor.forget_images()
    assert asked(1, clicks(3), [5]) == 3


def test_a_box_becomes_its_low_and_high_corner_whatever_way_it_was_dragged(
    a_tiny_sam: PromptableNetwork, frame: SliceFrame
) -> None:
    prompt = Prompt(0, 1, box_ijk=np.array([[9.0, 4.0, 1.0], [2.0, 20.0, 1.0]]))
    batch = Predictor(a_tiny_sam).user_prompt(prompt, frame)
    assert batch.labels.tolist() == [[BOX_CORNER_LOW, BOX_CORNER_HIGH]]
    assert batch.coords.tolist() == [[[9.5, 8.5], [37.5, 40.5]]]
    a_tiny_sam.padding_points = 0
    assert Predictor(a_tiny_sam).user_prompt(prompt, frame).labels.tolist() == batch.labels.tolist()
    a_tiny_sam.padding_points = 2  # trained with a place for the click, taken or not
    batch = Predictor(a_tiny_sam).user_prompt(prompt, frame)
    assert batch.labels.tolist() == [[PADDING, BOX_CORNER_LOW, BOX_CORNER_HIGH]]
    assert batch.coords[:, 1:].tolist() == [[[9.5, 8.5], [37.5, 40.5]]]


def test_a_mask_becomes_logits_at_the_size_of_mask_prompts(a_tiny_sam: PromptableNetwork, frame: SliceFrame) -> None:
    mask = np.zeros((32, 16), bool)
    mask[8:20, 4:10] = True
    batch = Predictor(a_tiny_sam).user_prompt(Prompt(0, 1, mask=mask), frame)
    assert batch.masks is not None
    logits = batch.masks[0, 0].numpy()
    assert logits.shape == (32, 32)
    # Two network pixels per mask pixel: rows as the voxels, two mask pixels per column.
    np.testing.assert_allclose(logits[10:18, 10:18], MASK_LOGIT)
    np.testing.assert_allclose(logits[:6], -MASK_LOGIT)
    np.testing.assert_array_equal(logits > 0, np.repeat(mask, 2, axis=1))


def test_masks_come_back_on_the_voxels(a_tiny_sam: PromptableNetwork, frame: SliceFrame) -> None:
    logits = np.full((2, 32, 32), -4.0, np.float32)
    logits[1, 8:20, 8:20] = 4
    voxels = Predictor(a_tiny_sam).on_voxels(Masks(logits, np.zeros(2, np.float32)), frame)
    expected = np.zeros((2, 32, 16), bool)
    expected[1, 8:20, 4:10] = True
    np.testing.assert_array_equal(voxels > 0, expected)


# --- adapters -------------------------------------------------------------------------------------------------------


def test_a_saved_adapter_gives_the_masks_it_was_trained_to_give(
    a_tiny_sam: PromptableNetwork, adapter: Adapter, frame: SliceFrame
) -> None:
    predictor = Predictor(a_tiny_sam, adapter)
    embedding = predictor.encode([an_image(0)])[0]
    found = predictor.decode(embedding, predictor.user_prompt(click(), frame), [5])
    generator = torch.Generator().manual_seed(77)  # another start: everything has to come from the tensors
    adaptation = Adaptation(a_tiny_sam, AdaptationSpec(LoraSpec(rank=2, alpha=4), 3), [2, 5], generator=generator)
    adaptation.load(a_tiny_sam, dict(adapter.tensors))
    with adaptation.applied(a_tiny_sam), torch.inference_mode():
        image = a_tiny_sam.normalize(torch.from_numpy(an_image(0))[None], "unit")
        with encoding_precision(a_tiny_sam.device):
            theirs = a_tiny_sam.encode(image)
        theirs = theirs.to(torch.float32)
        prompts = adaptation.structure_prompts(a_tiny_sam, theirs, predictor.user_prompt(click(), frame), [5])
        logits, iou = a_tiny_sam.decode(theirs, prompts)
    np.testing.assert_array_equal(found.logits, (logits[:, 1] - logits[:, 0]).float().numpy())
    np.testing.assert_array_equal(found.iou, iou[:, 1].float().numpy())
    assert found.logits.dtype == found.iou.dtype == np.float32


def test_base_and_adapter_take_turns_on_one_network(
    a_tiny_sam: PromptableNetwork, adapter: Adapter, frame: SliceFrame
) -> None:
    base, adapted = Predictor(a_tiny_sam), Predictor(a_tiny_sam, adapter)

    def answer(predictor: Predictor) -> np.ndarray:
        embedding = predictor.encode([an_image(3)])[0]
        return predictor.decode(embedding, predictor.user_prompt(click(), frame)).logits

    alone = answer(base)
    changed = answer(adapted)
    np.testing.assert_array_equal(answer(base), alone)
    np.testing.assert_array_equal(answer(adapted), changed)
    assert np.abs(alone - changed).max() > 1e-3
    assert sha256_of_network(a_tiny_sam) == a_tiny_sam.sha256


def test_the_adapter_is_put_in_place_once_for_a_whole_block(a_tiny_sam: PromptableNetwork, adapter: Adapter) -> None:
    predictor, own = Predictor(a_tiny_sam, adapter), a_tiny_sam.mask_decoder
    with predictor.ready():
        inside = a_tiny_sam.mask_decoder
        assert inside is not own
        predictor.decode_structures(predictor.encode([an_image(0)])[0], [2])
        with predictor.ready():
            pass
        assert a_tiny_sam.mask_decoder is inside
    assert a_tiny_sam.mask_decoder is own
    with pytest.raises(RuntimeError), predictor.ready():
        raise RuntimeError
    assert a_tiny_sam.mask_decoder is own
    assert sha256_of_network(a_tiny_sam) == a_tiny_sam.sha256


def test_structures_asked_for_together_are_answered_as_each_alone(
    a_tiny_sam: PromptableNetwork, adapter: Adapter
) -> None:
    predictor = Predictor(a_tiny_sam, adapter)
    embedding = predictor.encode([an_image(0)])[0]
    both = predictor.decode_structures(embedding, [5, 2])
    for row, value in enumerate([5, 2]):
        alone = predictor.decode_structures(embedding, [value])
        np.testing.assert_allclose(both.logits[row], alone.logits[0], atol=0.02)  # half precision, where it pays
    assert np.abs(both.logits[0] - both.logits[1]).max() > 1e-3


def test_a_base_model_knows_no_structures(a_tiny_sam: PromptableNetwork, adapter: Adapter) -> None:
    base = Predictor(a_tiny_sam)
    assert not base.knows(2)
    with pytest.raises(InputError, match="has no named structures"):
        base.decode_structures(base.encode([an_image(0)])[0], [2])
    assert [Predictor(a_tiny_sam, adapter).knows(value) for value in (2, 3, 5)] == [True, False, True]


def test_an_adapter_of_another_base_is_refused_with_both_names(a_tiny_sam: PromptableNetwork, adapter: Adapter) -> None:
    with pytest.raises(InputError, match=r"vit_b.*tiny_sam"):
        Predictor(a_tiny_sam, replace(adapter, base_model="vit_b", base_sha256="0" * 64))


def test_the_intensity_scale_is_that_of_the_adapter(a_tiny_sam: PromptableNetwork, adapter: Adapter) -> None:
    assert Predictor(a_tiny_sam, adapter, scale="sam").scale == "unit"
    assert Predictor(a_tiny_sam).scale == "sam"


def test_without_an_adapter_the_scale_is_the_one_the_base_was_trained_with(a_tiny_sam: PromptableNetwork) -> None:
    a_tiny_sam.scale = "unit"  # as MedSAM's
    assert Predictor(a_tiny_sam).scale == "unit"
    assert Predictor(a_tiny_sam, scale="sam").scale == "sam"


@pytest.mark.parametrize(
    ("name", "seconds", "found"),
    [
        (
            "tiny",
            2.5,
            "takes 2.5 s for a slice with the base model tiny. The base model bundled-small is less",
        ),
        ("tiny", 1.9, ""),
        ("bundled-small", 9.0, ""),
    ],
)
def test_who_waits_long_for_a_slice_is_told_of_the_small_base_model(
    a_tiny_sam: PromptableNetwork, name: str, seconds: float, found: str
) -> None:
    predictor = Predictor(a_tiny_sam)
    assert predictor.advice == ""
    predictor.network.name = name
    predictor.slice_seconds = seconds
    assert (found in predictor.advice) if found else predictor.advice == ""


def test_how_long_a_slice_took_is_known(a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("FewShotSegLib.inference.predictor.time.perf_counter", lambda: next(clock))
    predictor = Predictor(a_tiny_sam)
    images = [np.full((a_tiny_sam.image_size,) * 2, value, np.float32) for value in (0.2, 0.8)]
    predictor.encode(images)
    assert predictor.slice_seconds == 3.0
    predictor.encode(images)  # both are known, and nothing is measured
    assert predictor.slice_seconds == 3.0
