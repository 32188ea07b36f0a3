"""A support set: what must hold whatever the network, tried on an untrained miniature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import labelled_slices
from FewShotSegLib.inference.predictor import Masks, Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.inference.structure_maps import BOX, CLICK, MAP, MapPredictor, derived_prompts
from FewShotSegLib.inference.support import SupportPredictor, SupportRecipe, support_adapter
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.sam.network import POSITIVE, PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import DISC, SQUARE, dice, discs

FEW = SupportRecipe(pictures=4, pixels=4000)


def an_annotated_case(seed: int, slices: Sequence[int] = (2,)) -> Exemplar:
    volume, labels = discs(np.random.default_rng(seed))
    known = np.zeros_like(labels)
    known[list(slices)] = labels[list(slices)]
    return Exemplar(volume, known, {DISC: "disc", SQUARE: "square"}, 0, tuple(slices), name=f"case {seed}")


def a_support(network: PromptableNetwork, *exemplars: Exemplar, **options: Any) -> SupportPredictor:
    return SupportPredictor(network, support_adapter(exemplars, network, recipe=replace(FEW, **options)))


def a_query(predictor: Predictor, exemplar: Exemplar) -> np.ndarray:
    assert predictor.adapter is not None
    return labelled_slices(exemplar, predictor.adapter.intensity, predictor.image_size)[0].image


def logits_of(predictor: SupportPredictor, image: np.ndarray) -> np.ndarray:
    return predictor.decode_structures(predictor.encode([image])[0], [DISC, SQUARE]).logits


def test_the_order_of_the_supports_does_not_matter(a_tiny_sam: PromptableNetwork) -> None:
    cases = [an_annotated_case(seed) for seed in range(3)]
    forth, back = a_support(a_tiny_sam, *cases), a_support(a_tiny_sam, *reversed(cases))
    image = a_query(forth, an_annotated_case(9))
    np.testing.assert_allclose(logits_of(forth, image), logits_of(back, image), atol=1e-6)


def test_a_support_given_twice_counts_once(a_tiny_sam: PromptableNetwork) -> None:
    once, twice = (a_support(a_tiny_sam, *[an_annotated_case(0)] * count) for count in (1, 2))
    image = a_query(once, an_annotated_case(9))
    assert np.array_equal(logits_of(once, image), logits_of(twice, image))


def test_a_slice_that_is_its_own_support_gets_its_own_labels_back(a_tiny_sam: PromptableNetwork) -> None:
    case = an_annotated_case(0)
    predictor = a_support(a_tiny_sam, case)
    predictor.maps = replace(predictor.maps, ways=(MAP, MAP))
    maps = torch.from_numpy(logits_of(predictor, a_query(predictor, case)))
    truth = case.labelmap[2][1::2, 1::2]  # the grid is half as fine
    for row, value in enumerate((DISC, SQUARE)):
        assert dice(maps[row].numpy() > 0, truth == value) > 0.85
    coords, labels = derived_prompts(maps, [CLICK, BOX], 64)
    assert (labels[:, 0] == POSITIVE).all()
    for value, (x, y) in zip((DISC, SQUARE), coords[:, 0].round().astype(int), strict=True):
        assert case.labelmap[2][y, x] == value


def test_an_unseen_case_is_segmented_without_training_or_clicks(a_tiny_sam: PromptableNetwork) -> None:
    volume, labels = discs(np.random.default_rng(42))
    predictor = a_support(a_tiny_sam, *(an_annotated_case(seed) for seed in range(4)))
    before = [parameter.clone() for parameter in a_tiny_sam.parameters()]
    found = segment(volume, predictor).labelmap
    assert found.structures == {DISC: "disc", SQUARE: "square"}
    for value in (DISC, SQUARE):
        assert dice(found.volume.array == value, labels == value) > 0.8
    assert all(torch.equal(p, q) for p, q in zip(before, a_tiny_sam.parameters(), strict=True))


def test_nothing_is_found_where_nothing_is(a_tiny_sam: PromptableNetwork, an_rng: np.random.Generator) -> None:
    empty = Volume(an_rng.normal(0, 12, (2, 64, 64)).astype(np.int16), np.diag([-1.0, -1.0, 4.0, 1.0]))
    predictor = a_support(a_tiny_sam, *(an_annotated_case(seed) for seed in range(4)))
    assert (segment(empty, predictor).labelmap.volume.array > 0).mean() < 0.01


def test_slices_known_to_be_empty_are_learned_from(a_tiny_sam: PromptableNetwork) -> None:
    case = an_annotated_case(0)
    array = case.volume.array.copy()
    array[4] = np.random.default_rng(1).normal(0, 12, (64, 64))
    with_empty = Exemplar(case.volume.like(array), case.labelmap, case.structures, 0, (2,), (4,), "with an empty slice")
    assert support_adapter([with_empty], a_tiny_sam).tensors["images"].shape[0] == 2


# --- bad input


def test_an_empty_support_set_is_an_error(a_tiny_sam: PromptableNetwork) -> None:
    with pytest.raises(InputError, match="At least one exemplar"):
        support_adapter([], a_tiny_sam)


def test_a_structure_that_no_support_shows_is_named(a_tiny_sam: PromptableNetwork) -> None:
    case = an_annotated_case(0)
    with pytest.raises(InputError, match="No exemplar shows pancreas"):
        support_adapter([replace(case, structures={**case.structures, 7: "pancreas"})], a_tiny_sam)


def test_another_base_model_and_another_method_are_refused(a_tiny_sam: PromptableNetwork) -> None:
    support = support_adapter([an_annotated_case(0)], a_tiny_sam, recipe=FEW)
    with pytest.raises(InputError, match="other"):
        SupportPredictor(a_tiny_sam, replace(support, base_model="other", base_sha256="0" * 64))
    with pytest.raises(InputError, match="method 'lora'"):
        SupportPredictor(a_tiny_sam, replace(support, method="lora"))


# --- subsets


def test_the_mean_of_equal_answers_is_that_answer(a_tiny_sam: PromptableNetwork) -> None:
    case = an_annotated_case(0)
    predictor = a_support(a_tiny_sam, case)
    image = a_query(predictor, an_annotated_case(9))
    alone = logits_of(predictor, image)
    predictor.members = predictor.members * 4
    np.testing.assert_allclose(logits_of(predictor, image), alone, atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members_masks_and_not_a_mask_of_the_mean_map(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squared(self: Predictor, embedding: Any, prompts: Any, *given: Any) -> Masks:
        """A decoder that is far from linear, as a trained one is."""
        logits = prompts.masks[:, 0].numpy() ** 2 / 4
        return Masks(logits, np.zeros(len(logits), np.float32))

    monkeypatch.setattr(Predictor, "decode", squared)
    many = [an_annotated_case(seed) for seed in range(7)]
    predictor = a_support(a_tiny_sam, *many, subsets=3)
    predictor.maps = replace(predictor.maps, ways=(CLICK, CLICK))
    image = a_query(predictor, an_annotated_case(9))
    embedding = predictor.encode([image])[0]
    ensemble = predictor.decode_structures(embedding, (DISC, SQUARE)).logits
    alone = []
    for number in range(3):
        member = a_support(a_tiny_sam, *many, subsets=3)
        chosen = member.maps.classifiers[number : number + 1]
        member.maps = replace(predictor.maps, classifiers=chosen)
        member.members = [member.maps]
        alone.append(member.decode_structures(embedding, (DISC, SQUARE)).logits)
    np.testing.assert_allclose(ensemble, np.mean(alone, axis=0), atol=1e-4)
    of_mean_map = MapPredictor.decode_structures(predictor, embedding, (DISC, SQUARE)).logits
    assert np.abs(ensemble - of_mean_map).max() > 0.05
    assert not np.allclose(ensemble, alone[-1], atol=0.05)


def test_subsets_are_drawn_from_more_than_six_slices_and_always_the_same(a_tiny_sam: PromptableNetwork) -> None:
    few, many = an_annotated_case(0, (1, 3)), [an_annotated_case(seed) for seed in range(7)]
    assert len(a_support(a_tiny_sam, few, subsets=3).maps.classifiers) == 1
    first, again = (a_support(a_tiny_sam, *many, subsets=3) for _ in range(2))
    assert len(first.maps.classifiers) == 3
    image = a_query(first, an_annotated_case(9))
    assert np.array_equal(logits_of(first, image), logits_of(again, image))
    drawn = [classifier.firsts[0].of_seen for classifier in first.maps.classifiers]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))


def test_more_slices_than_wanted_are_thinned_without_losing_a_structure(a_tiny_sam: PromptableNetwork) -> None:
    volume, labels = discs(np.random.default_rng(0), (12, 64, 64))
    labels[labels == SQUARE] = 0
    labels[5, 40:44, 40:44] = SQUARE
    case = Exemplar(volume, labels, {DISC: "disc", SQUARE: "square"}, 0, tuple(range(12)))
    support = support_adapter([case], a_tiny_sam, recipe=SupportRecipe(most_slices=3))
    assert len(support.tensors["images"]) == 4
    assert SQUARE in support.tensors["labels"]


# --- as a predictor


def test_a_user_points_and_the_derived_prompts_stand_back(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = a_support(a_tiny_sam, an_annotated_case(0))
    asked = []
    decode = Predictor.decode

    def listening(self: Predictor, embedding: Any, prompts: Any, structures: Sequence[int] = ()) -> Any:
        asked.append(prompts)
        return decode(self, embedding, prompts, structures)

    monkeypatch.setattr(Predictor, "decode", listening)
    volume, _ = discs(np.random.default_rng(9))
    prompt = Prompt(0, 3, np.array([[50.0, 7.0, 3.0]]), np.array([1]), structure="disc")
    predictor.maps = replace(predictor.maps, ways=(MAP, MAP))  # of the derived ones nothing is asked
    segment(volume, predictor, prompts=[prompt], options=SegmentOptions(propagate=False))
    assert [batch.coords[0, 0].tolist() for batch in asked] == [[50.0, 7.0], [50.0, 7.0]]
    assert [batch.masks is None for batch in asked] == [True, False]


def test_a_support_set_survives_a_file(a_tiny_sam: PromptableNetwork, tmp_path: Path) -> None:
    support = support_adapter([an_annotated_case(0)], a_tiny_sam, recipe=FEW)
    save_adapter(support, tmp_path / "support.safetensors")
    loaded = load_adapter(tmp_path / "support.safetensors")
    first, second = SupportPredictor(a_tiny_sam, support), SupportPredictor(a_tiny_sam, loaded)
    image = a_query(first, an_annotated_case(9))
    assert np.array_equal(logits_of(first, image), logits_of(second, image))
    assert first.identity == second.identity != Predictor(a_tiny_sam).identity


def test_nothing_is_drawn_from_the_global_generators(a_tiny_sam: PromptableNetwork) -> None:
    before, state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - that it stays as it is
    a_support(a_tiny_sam, an_annotated_case(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_an_adapter_without_tokens_lends_its_eyes(a_tiny_sam: PromptableNetwork) -> None:
    from FewShotSegLib.methods import gmiseg

    recipe = gmiseg.Recipe(steps=2, batch_size=1, validate_every=0, encoder_blocks=-1, pool_size=0)
    case = an_annotated_case(0)
    run = RunContext(np.random.default_rng(0))
    trained: Adapter = gmiseg.adapt(AdaptInputs(a_tiny_sam, [case]), recipe, run)
    support = support_adapter([case], a_tiny_sam, recipe=FEW)
    plain, with_eyes = SupportPredictor(a_tiny_sam, support), SupportPredictor(a_tiny_sam, support, trained=trained)
    image = a_query(plain, an_annotated_case(9))
    seen = with_eyes.encode([image])[0].features
    assert torch.equal(seen, Predictor(a_tiny_sam, trained).encode([image])[0].features)
    assert not torch.equal(seen, plain.encode([image])[0].features)
    assert not np.array_equal(logits_of(plain, image), logits_of(with_eyes, image))
    assert plain.identity != with_eyes.identity
