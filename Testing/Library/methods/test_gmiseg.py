"""GMISeg: many tasks, one adapter without structures; slices of three planes; the seed's losses and flips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError, StopAndKeepBest
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.datasets import data_sets_in
from FewShotSegLib.methods import gmiseg
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import DISC, SQUARE, Listener, dice, discs, sha256_of_network, write_discs

WINDOW = IntensitySpec("window", -100.0, 200.0)


def adapt(network: PromptableNetwork, *exemplars: Exemplar, seed: int = 0, **options: object) -> Adapter:
    report = options.pop("report", lambda progress: None)
    auxiliary = options.pop("auxiliary", ())
    quick = {"steps": 3, "batch_size": 1, "validate_every": 0, "encoder_blocks": -1, "pool_size": 0}
    recipe = from_dict(gmiseg.Recipe, {**quick, **options})
    run = RunContext(np.random.default_rng(seed), report)  # type: ignore[arg-type]
    return gmiseg.adapt(AdaptInputs(network, exemplars, auxiliary), recipe, run)  # type: ignore[arg-type]


def another_task() -> Exemplar:
    """Label 1 is something else here, and brighter."""
    volume, labels = discs(np.random.default_rng(3))
    image = volume.array.astype(np.int16) + 40
    return Exemplar(volume.like(image), labels * (labels == SQUARE), {SQUARE: "tumour"}, 0, tuple(range(6)), name="b")


def test_tasks_may_call_the_same_label_by_different_names(a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> None:
    adapter = adapt(a_tiny_sam, an_exemplar, another_task())
    tasks = adapter.provenance["tasks"]
    assert [task["structures"] for task in tasks] == [["disc", "square"], ["tumour"]]
    assert adapter.structures == {}
    assert adapter.architecture is not None
    assert adapter.architecture["lora"]["kind"] == "loose"


def test_all_tasks_are_drawn_alike_however_large(a_tiny_sam: PromptableNetwork) -> None:
    class Source:
        notes: tuple[str, ...] = ()

        def __init__(self, name: str) -> None:
            self.name = name

        def draw(self, rng: np.random.Generator) -> str:
            return self.name

    mixture = gmiseg.Mixture([Source("a"), Source("b"), Source("c")])  # type: ignore[list-item]
    rng = np.random.default_rng(0)
    drawn = [str(mixture.draw(rng)) for _ in range(900)]
    assert all(abs(drawn.count(name) - 300) < 60 for name in "abc")


def test_the_loss_falls_and_a_click_on_an_unseen_case_finds_its_disc(a_tiny_sam: PromptableNetwork) -> None:
    listener, tasks = Listener(), []
    for seed, names in enumerate((("disc", "square"), ("disc", "square"), ("cell", "plate"))):
        volume, labels = discs(np.random.default_rng(seed))
        tasks.append(Exemplar(volume, labels, dict(zip((DISC, SQUARE), names, strict=True)), 0, tuple(range(6))))
    adapter = adapt(
        a_tiny_sam, *tasks, steps=140, learning_rate=3e-3, batch_size=2, slices_per_plane=6, report=listener
    )
    losses = [p.metrics["loss"] for p in listener.heard if "loss" in p.metrics]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    volume, labels = discs(np.random.default_rng(99))
    scores = []
    for index in range(volume.shape[0]):
        truth = labels[index] == DISC
        i, j = centre_click(truth)
        prompt = Prompt(0, index, np.array([[i, j, index]], float), np.array([1]), structure="ball")
        found = segment(
            volume, Predictor(a_tiny_sam, adapter), prompts=[prompt], options=SegmentOptions(propagate=False)
        ).labelmap.volume.array[index]
        scores.append(dice(found == 1, truth))
    assert np.mean(scores) > 0.7


def test_the_base_is_bit_identical_afterwards_and_the_seed_decides(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar, tmp_path: Path
) -> None:
    before = sha256_of_network(a_tiny_sam)
    first, again, other = (adapt(a_tiny_sam, an_exemplar, seed=seed) for seed in (1, 1, 2))
    assert sha256_of_network(a_tiny_sam) == before
    assert first.digest == again.digest != other.digest
    save_adapter(first, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").digest == first.digest


def test_training_goes_on_from_an_earlier_adapter(a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> None:
    first = adapt(a_tiny_sam, an_exemplar)
    recipe = from_dict(gmiseg.Recipe, {**first.recipe, "steps": 1, "learning_rate": 1e-6, "warmup_steps": 0})
    inputs = AdaptInputs(a_tiny_sam, [an_exemplar], start=first)
    second = gmiseg.adapt(inputs, recipe, RunContext(np.random.default_rng(0)))
    for name, tensor in first.tensors.items():
        np.testing.assert_allclose(second.tensors[name], tensor, atol=1e-5)


def test_a_folder_of_data_sets_is_a_task_each(a_tiny_sam: PromptableNetwork, tmp_path: Path) -> None:
    for number, name in enumerate(("liver ct", "heart mr")):
        write_discs(tmp_path / name, "case", number)
        write_discs(tmp_path / name, "other", number + 7)
    adapter = adapt(a_tiny_sam, auxiliary=data_sets_in(tmp_path), max_cases=1)
    assert [task["name"] for task in adapter.provenance["tasks"]] == ["heart mr", "liver ct"]
    assert all(task["slices"] == ["case.nrrd k=2"] for task in adapter.provenance["tasks"])


def test_without_any_task_there_is_nothing_to_learn(a_tiny_sam: PromptableNetwork) -> None:
    with pytest.raises(InputError, match="At least one exemplar is needed, or a folder"):
        adapt(a_tiny_sam)


def test_a_structure_that_a_task_does_not_show_is_named(a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> None:
    with pytest.raises(InputError, match="pancreas"):
        adapt(a_tiny_sam, replace(an_exemplar, structures={**an_exemplar.structures, 7: "pancreas"}))


def test_a_recipe_survives_json_and_its_losses_weigh_the_same() -> None:
    recipe = gmiseg.Recipe()
    assert from_dict(gmiseg.Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert recipe.cross_entropy_weight == recipe.dice_weight == 1.0
    assert (recipe.kind, recipe.rank, recipe.full_decoder) == ("loose", 4, True)


@pytest.mark.parametrize(("name", "expected"), [("tumour", (True, True)), ("left kidney", (False, False))])
def test_flips_spare_what_is_left_or_right(name: str, expected: tuple[bool, bool]) -> None:
    volume, labels = discs(np.random.default_rng(0))
    case = Exemplar(volume, labels * (labels == DISC), {DISC: name}, 0, tuple(range(6)))
    recipe, inputs = gmiseg.Recipe(image_size=64), AdaptInputs(exemplars=[case], intensity=WINDOW)
    samples = gmiseg.training_samples(inputs, recipe, np.random.default_rng(0), 24)
    turned = np.array([sample.provenance["plan"]["scene"]["mirrored"] for sample in samples])
    assert tuple(turned.any(axis=0)) == expected


def test_what_trains_is_lora_in_the_encoder_and_prompt_encoder_and_decoder_in_full(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    names = set(adapt(a_tiny_sam, an_exemplar, encoder_blocks=-1).tensors)
    transformer = {f"mask_decoder.transformer.{n}" for n, _ in a_tiny_sam.mask_decoder.transformer.named_parameters()}
    assert transformer <= names
    assert any(name.startswith("prompt_encoder.") for name in names)
    in_full = ("mask_decoder.", "prompt_encoder.", "structure_tokens")
    others = {name for name in names if not name.startswith(in_full)}
    assert others
    assert all(name.startswith("image_encoder.") and "lora" in name for name in others)
    assert not any(name.startswith("locator.") for name in names)


def test_with_a_frozen_encoder_the_low_rank_update_is_in_the_decoders_attention(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    names = set(adapt(a_tiny_sam, an_exemplar, encoder_blocks=0).tensors)
    assert not any(name.startswith("image_encoder.") for name in names)
    updates = {name for name in names if "lora" in name}
    assert updates
    assert all(name.startswith("mask_decoder.transformer.") for name in updates)


@pytest.mark.parametrize(("family", "encoder_blocks"), [("compact", -1), ("tiny_vit", 0), ("sam", 0)])
def test_on_a_cpu_large_encoders_stay_frozen(family: str, encoder_blocks: int) -> None:
    assert gmiseg.resolve(gmiseg.Recipe(), family, torch.device("cpu")).encoder_blocks == encoder_blocks


def test_the_loss_is_focal_as_the_recipe_says(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def learning(lesson: Any, *more: Any, **options: Any) -> Any:
        given["lesson"] = lesson
        raise StopAndKeepBest

    monkeypatch.setattr(gmiseg, "learn", learning)
    with pytest.raises(StopAndKeepBest):
        adapt(a_tiny_sam, an_exemplar, focal_gamma=3.0)
    logits, targets = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[1.0, 1.0]]])
    p = torch.sigmoid(logits)
    expected = (-((1 - p) ** 3) * torch.log(p)).mean((-2, -1))
    torch.testing.assert_close(given["lesson"].pixel_loss(logits, targets), expected)
    assert given["lesson"].recipe.most_points == 3  # one or more


# --- middle slices


def a_block(annotated: tuple[int, ...], shape: tuple[int, int, int] = (24, 40, 32)) -> Exemplar:
    """Every voxel tells where it is; the structure is a box."""
    k, j, i = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    labels[6:18, 10:20, 4:12] = 1
    unknown = [index for index in range(shape[0]) if index not in annotated]
    labels[unknown] = 0
    affine = np.array([[1, 0, 0, 5], [0, 2, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]], float)
    return Exemplar(Volume((k + j + i).astype(np.int16), affine), labels, {1: "box"}, 0, annotated, name="block")


def test_a_whole_volume_gives_the_middle_slice_of_each_plane() -> None:
    found = gmiseg.middle_slices(a_block(tuple(range(24))), WINDOW, 64)
    assert [piece.source for piece in found] == ["block k=11", "block j=14", "block i=7"]
    assert [piece.frame.shape for piece in found] == [(40, 32), (24, 32), (24, 40)]
    assert all(piece.labels.any() for piece in found)


def test_single_annotated_slices_say_nothing_about_other_planes() -> None:
    found = gmiseg.middle_slices(a_block((7, 9, 11, 13, 15)), WINDOW, 64)
    assert [piece.source for piece in found] == ["block k=11"]


def test_other_planes_are_cut_through_the_longest_annotated_block() -> None:
    found = gmiseg.middle_slices(a_block((1, *range(4, 22))), WINDOW, 64)
    assert [piece.frame.shape for piece in found] == [(40, 32), (18, 32), (18, 40)]
    part = gmiseg._cut(a_block(tuple(range(24))), range(4, 22))
    world = a_block(tuple(range(24))).volume.affine @ [2, 3, 4 + 5, 1]
    np.testing.assert_allclose(part.volume.affine @ [2, 3, 5, 1], world)
    assert part.volume.array[5, 3, 2] == 9 + 3 + 2


def test_several_slices_per_plane_lie_around_the_middle() -> None:
    found = gmiseg.middle_slices(a_block(tuple(range(24))), WINDOW, 64, per_plane=3)
    assert [piece.source.split()[1] for piece in found][:3] == ["k=10", "k=11", "k=12"]
    assert len(found) == 9


def test_percentiles_are_those_of_the_whole_volume_on_every_plane() -> None:
    case = a_block((1, *range(4, 22)))
    percentile = IntensitySpec("percentile", 0.5, 99.5)
    low, high = percentile.range_of(case.volume.array)  # type: ignore[misc]
    window = IntensitySpec("window", low, high)
    for seen, expected in zip(
        gmiseg.middle_slices(case, percentile, 64), gmiseg.middle_slices(case, window, 64), strict=True
    ):
        np.testing.assert_allclose(seen.image, expected.image, atol=1e-6)


def test_volumes_that_are_read_alike_keep_their_rule_and_others_get_percentiles() -> None:
    assert gmiseg._common([WINDOW, WINDOW]) == WINDOW
    assert gmiseg._common([WINDOW, IntensitySpec("percentile", 1, 99)]).kind == "percentile"


def test_it_trains_as_long_on_every_family_and_offers_no_structure_maps() -> None:
    for family in ("compact", "tiny_vit"):
        assert gmiseg.resolve(gmiseg.Recipe(), family, torch.device("cpu")).steps == 400
    assert not hasattr(gmiseg.Recipe(), "structure_maps")
