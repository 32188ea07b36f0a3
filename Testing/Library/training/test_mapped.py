"""Adapting with a frozen encoder: what is learned, what is left alone, and what an adapter of it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.inference import structure_maps
from FewShotSegLib.inference.load import predictor_of
from FewShotSegLib.inference.predictor import Masks
from FewShotSegLib.inference.segment import segment
from FewShotSegLib.inference.structure_maps import BOX, MapPredictor, learned_shares, maps_of
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.methods import lora
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    NEGATIVE,
    PADDING,
    POSITIVE,
    PromptableNetwork,
    PromptBatch,
    mask_prompts,
)
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.mapped import map_samples
from FewShotSegLib.visualization.contact_sheet import contact_sheet
from Testing.conftest import DISC, QUICK, SQUARE, Listener, dice, discs

RECIPE = lora.Recipe(
    **{**QUICK, "steps": 3, "structure_maps": True, "pictures": 4, "guard": "off", "estimate_folds": 0}
)


def cases(count: int = 2) -> list[Exemplar]:
    found = []
    for seed in range(count):
        volume, labels = discs(np.random.default_rng(seed))
        known = np.zeros_like(labels)
        known[2] = labels[2]
        found.append(Exemplar(volume, known, {DISC: "disc", SQUARE: "square"}, 0, (2,), name=f"case {seed}"))
    return found


def adapted(network: PromptableNetwork, exemplars: list[Exemplar], report=None, start=None, **options) -> Adapter:
    run = RunContext(np.random.default_rng(0), report or Listener())
    return lora.adapt(AdaptInputs(network, exemplars, start=start), replace(RECIPE, **options), run)


def test_an_unseen_case_is_segmented_without_clicks_and_the_base_is_untouched(a_tiny_sam: PromptableNetwork) -> None:
    before = {name: value.clone() for name, value in a_tiny_sam.state_dict().items()}
    adapter = adapted(a_tiny_sam, cases(4))
    volume, labels = discs(np.random.default_rng(42))
    found = segment(volume, predictor_of(a_tiny_sam, adapter)).labelmap
    for value in (DISC, SQUARE):
        assert dice(found.volume.array == value, labels == value) > 0.75
    assert all(torch.equal(value, before[name]) for name, value in a_tiny_sam.state_dict().items())


def test_an_adapter_holds_numbers_and_no_picture(a_tiny_sam: PromptableNetwork) -> None:
    adapter = adapted(a_tiny_sam, cases())
    image = cases()[0].volume.array
    assert max(tensor.size for name, tensor in adapter.tensors.items() if name.startswith("maps.")) < 5000
    assert not any(tensor.shape[-2:] == image.shape[-2:] for tensor in adapter.tensors.values() if tensor.ndim > 1)
    assert adapter.architecture is not None
    assert adapter.architecture["maps"]["ways"]
    assert not any(name.startswith("locator.") for name in adapter.tensors)


def test_it_answers_the_same_from_a_file(a_tiny_sam: PromptableNetwork, tmp_path: Path) -> None:
    adapter = adapted(a_tiny_sam, cases())
    save_adapter(adapter, tmp_path / "organs.safetensors")
    image = np.random.default_rng(0).uniform(0, 1, (64, 64)).astype(np.float32)
    first, second = (predictor_of(a_tiny_sam, one) for one in (adapter, load_adapter(tmp_path / "organs.safetensors")))
    answers = [p.decode_structures(p.encode([image])[0], [DISC, SQUARE]).logits for p in (first, second)]
    assert np.array_equal(*answers)
    assert first.identity == second.identity


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(a_tiny_sam: PromptableNetwork) -> None:
    first, again = (adapted(a_tiny_sam, cases()) for _ in range(2))
    assert first.digest == again.digest


def test_the_trained_decoder_answers_clicks_on_what_it_learned_beside_the_base(a_tiny_sam: PromptableNetwork) -> None:
    adapter = adapted(a_tiny_sam, cases(), steps=6)
    predictor = predictor_of(a_tiny_sam, adapter)
    assert isinstance(predictor, MapPredictor)
    image = cases()[0].volume.array[2].astype(np.float32)
    embedding = predictor.encode([(image - image.min()) / np.ptp(image)])[0]
    predictor.maps = replace(predictor.maps, ways=(BOX, BOX))
    click = PromptBatch(torch.tensor([[[20.0, 20.0]]]), torch.tensor([[POSITIVE]]))
    known, other = (predictor.decode_known(embedding, click, structures).logits for structures in ([DISC], []))
    free = predictor.decode_structures(embedding, [DISC]).logits
    predictor.trained = None
    assert not np.allclose(predictor.decode_known(embedding, click, [DISC]).logits, known)
    # What was not learned is answered without it.
    assert np.array_equal(predictor.decode_known(embedding, click, []).logits, other)
    assert not np.allclose(predictor.decode_structures(embedding, [DISC]).logits, free)


def test_half_of_an_answer_to_a_click_is_the_base_models(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of(a_tiny_sam, adapted(a_tiny_sam, cases(), steps=6))
    assert isinstance(predictor, MapPredictor)
    image = cases()[0].volume.array[2].astype(np.float32)
    embedding = predictor.encode([(image - image.min()) / np.ptp(image)])[0]
    click = PromptBatch(torch.tensor([[[20.0, 20.0]]]), torch.tensor([[POSITIVE]]))
    maps = predictor.maps.log_odds(maps_of(embedding), [DISC])
    with_map = click.with_masks(mask_prompts(maps, a_tiny_sam.mask_input_size))
    plain, mapped = (predictor.decode(embedding, prompts) for prompts in (click, with_map))
    trained = predictor._decode_trained(embedding, with_map, [DISC])
    for agreed, learned in ((0.0, 1 / 2), (1.1, 1 / 3)):  # the learned masks count as agreeing, and not
        monkeypatch.setattr(structure_maps, "AGREED", agreed)
        answer = predictor.decode_known(embedding, click, [DISC])
        for kind in ("logits", "iou"):
            parts = (getattr(masks, kind) for masks in (plain, mapped, trained))
            shares = (1 - learned, learned / 2, learned / 2)
            expected = sum(share * part for share, part in zip(shares, parts, strict=True))
            np.testing.assert_allclose(getattr(answer, kind), expected, rtol=1e-5, atol=1e-5)
    # One mask agrees with itself; the mask that is corrected takes the map's place.
    monkeypatch.setattr(structure_maps, "AGREED", 1.0)
    corrected = predictor.decode_known(embedding, with_map, [DISC])
    np.testing.assert_allclose(corrected.logits, 0.5 * (mapped.logits + trained.logits), rtol=1e-5, atol=1e-5)


def test_only_the_base_model_corrects_its_mask_point_by_point(a_tiny_sam: PromptableNetwork) -> None:
    """A poor map or decoder does not mislead the following steps, and is mixed in once, at the end."""
    predictor = predictor_of(a_tiny_sam, adapted(a_tiny_sam, cases(), steps=6))
    assert isinstance(predictor, MapPredictor)
    reader = SliceReader(cases()[0].volume, IntensitySpec.auto(cases()[0].volume), predictor.image_size)
    embedding, frame = predictor.encode([reader.square(2)])[0], reader.frame(2)
    points = np.array([[12.0, 12.0, 2.0], [14.0, 11.0, 2.0], [30.0, 30.0, 2.0]])
    prompt = Prompt(0, 2, points_ijk=points, point_labels=np.array([1, 1, 0]))
    plain = predictor.answer(embedding, prompt, frame)
    maps = predictor._as_prompts(predictor.maps.log_odds(maps_of(embedding), [DISC]))
    with_map = predictor.user_prompt(prompt, frame).with_masks(maps)
    mapped = predictor.decode(embedding, with_map)
    trained = predictor._decode_trained(embedding, with_map, [DISC])
    share = learned_shares(with_map.labels.numpy(), [mapped.logits > 0, trained.logits > 0])[0]
    known = predictor.answer(embedding, prompt, frame, [DISC])
    expected = (1 - share) * plain.logits + share * (mapped.logits + trained.logits) / 2
    np.testing.assert_allclose(known.logits, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(known.logits, plain.logits, atol=1e-3)


def test_the_mask_of_a_prompt_takes_the_place_of_the_map(a_tiny_sam: PromptableNetwork) -> None:
    """As when a structure is propagated from slice to slice: the trained decoder sees it with all points."""
    predictor = predictor_of(a_tiny_sam, adapted(a_tiny_sam, cases(), steps=6))
    assert isinstance(predictor, MapPredictor)
    volume, labels = discs(np.random.default_rng(0))
    reader = SliceReader(volume, IntensitySpec.auto(volume), predictor.image_size)
    embedding, frame = predictor.encode([reader.square(2)])[0], reader.frame(2)
    points = np.array([[12.0, 12.0, 2.0], [14.0, 11.0, 2.0]])
    prompt = Prompt(0, 2, points_ijk=points, point_labels=np.array([1, 1]), mask=labels[2] == DISC)
    plain = predictor.answer(embedding, prompt, frame)
    trained = predictor._decode_trained(embedding, predictor.user_prompt(prompt, frame), [DISC])
    known = predictor.answer(embedding, prompt, frame, [DISC])
    np.testing.assert_allclose(known.logits, 0.5 * (plain.logits + trained.logits), rtol=1e-5, atol=1e-5)
    assert not np.allclose(known.logits, plain.logits, atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "agreed", "share"),
    [
        ([POSITIVE, PADDING], 6, 1 / 2),
        ([POSITIVE, NEGATIVE, POSITIVE, POSITIVE, NEGATIVE], 6, 1 / 2),
        ([POSITIVE, PADDING], 5, 1 / 3),
        ([POSITIVE, NEGATIVE, POSITIVE, POSITIVE, NEGATIVE], 5, 1 / 2),
        ([POSITIVE, PADDING, NEGATIVE], 5, 1 / 2),
        ([BOX_CORNER_LOW, BOX_CORNER_HIGH], 6, 1 / 8),
        ([BOX_CORNER_LOW, BOX_CORNER_HIGH, POSITIVE], 5, 1 / 8),
    ],
)
def test_half_of_an_answer_is_learned_a_third_of_a_click_in_doubt_and_an_eighth_in_a_box(
    labels: list[int], agreed: int, share: float, a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learned masks have `agreed` of ten rows in common."""
    predictor = predictor_of(a_tiny_sam, adapted(a_tiny_sam, cases(), steps=1))
    plain, mapped, trained = np.zeros((1, 10, 4)), np.ones((1, 10, 4)), np.ones((1, 10, 4))
    trained[:, agreed:] = -1
    answers = iter([Masks(logits, logits[:, 0, 0]) for logits in (plain, mapped, trained)])
    monkeypatch.setattr(predictor, "decode", lambda *given: next(answers))
    embedding = predictor.encode([np.zeros((a_tiny_sam.image_size,) * 2, np.float32)])[0]
    prompts = PromptBatch(torch.full((1, len(labels), 2), 9.0), torch.tensor([labels]))
    answer = predictor.decode_known(embedding, prompts, [DISC])
    np.testing.assert_allclose([answer.logits[0, 0, 0], answer.iou[0]], share, rtol=1e-6)


def test_learned_masks_that_are_all_empty_agree() -> None:
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    labels = np.array([[POSITIVE]])
    np.testing.assert_allclose(learned_shares(labels, [empty, empty]), 1 / 2)
    np.testing.assert_allclose(learned_shares(labels, [empty, full]), 1 / 3)
    np.testing.assert_allclose(learned_shares(labels, [empty]), 1 / 2)


def test_left_out_exemplars_are_estimated_and_a_hurried_run_says_that_it_did_not(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = adapted(a_tiny_sam, cases(3), estimate_folds=2).metrics
    assert set(metrics["estimated_dice"]) == {"disc", "square"}
    assert "left-out exemplars" in metrics["estimate"]
    assert metrics["in_one_piece"] == ["disc", "square"]
    assert metrics["shown_together"] == [["disc", "square"]]
    run = RunContext(np.random.default_rng(0), max_seconds=1e-3)
    hurried = lora.adapt(AdaptInputs(a_tiny_sam, cases()), replace(RECIPE, estimate_folds=2), run)
    assert hurried.metrics["estimated_dice"] is None
    assert hurried.metrics["estimate"] == "left out: the time was too short"


def test_a_slow_computer_is_offered_the_small_base_model(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, times in ((0.0, 1), (1e6, 0)):
        monkeypatch.setattr("FewShotSegLib.inference.predictor.SLOW_SLICE", limit)
        listener = Listener()
        adapted(a_tiny_sam, cases(), listener, steps=1)
        assert sum("for a slice with the base model" in message for message in listener.messages) == times


def test_the_guard_compares_clicks_with_the_base(a_tiny_sam: PromptableNetwork) -> None:
    guard = adapted(a_tiny_sam, cases(), guard="warn").metrics["guard"]
    assert {"base_dice", "adapted_dice", "click_sensitivity", "warnings"} == set(guard)
    assert guard["adapted_dice"] > guard["base_dice"]  # of an untrained network


def test_stopping_keeps_what_there_is_and_cancelling_raises(a_tiny_sam: PromptableNetwork) -> None:
    def at_the_first_step(error: Exception):
        def report(progress: Progress) -> None:
            if progress.can_stop:
                raise error

        return report

    stopped = adapted(a_tiny_sam, cases(), at_the_first_step(StopAndKeepBest()), steps=50)
    assert (stopped.metrics["steps"], stopped.metrics["stopped_by"]) == (1, "user")
    with pytest.raises(Cancelled):
        adapted(a_tiny_sam, cases(), at_the_first_step(Cancelled()), steps=50)


def test_going_on_needs_the_same_structures(a_tiny_sam: PromptableNetwork) -> None:
    first = adapted(a_tiny_sam, cases())
    more = adapted(a_tiny_sam, cases(), start=first)
    assert more.digest != first.digest
    other = [replace(case, structures={DISC: "liver", SQUARE: "spleen"}) for case in cases()]
    with pytest.raises(InputError, match="was trained on 1 = disc"):
        adapted(a_tiny_sam, other, start=first)


def test_the_preview_shows_slices_and_copies_of_them_or_slices_alone(tmp_path: Path) -> None:
    inputs = AdaptInputs(exemplars=cases())
    recipe = replace(RECIPE, image_size=64)
    drawn = map_samples(inputs, recipe, np.random.default_rng(0), 12)
    assert len(drawn) == 12
    assert len({sample.image.tobytes() for sample in drawn}) == 4
    plain = map_samples(inputs, replace(recipe, synthesis=False), np.random.default_rng(0), 12)
    assert len({sample.image.tobytes() for sample in plain}) == 2
    contact_sheet(drawn, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert {sample.provenance["caption"] for sample in plain} == {"slice 1", "slice 2"}
    with pytest.raises(TypeError, match="not resolved"):
        map_samples(inputs, replace(RECIPE, image_size=None), np.random.default_rng(0), 1)
