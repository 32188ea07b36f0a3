"""Training of a promptable model on prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slices import labelled_slices
from FewShotSegLib.methods import lora
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.synthesis.plan import SynthesisRecipe
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.prompted import adapt_prompted, synthesizer_of, training_samples, typical_clicks
from FewShotSegLib.training.prompted_recipe import PromptedRecipe
from Testing.conftest import DISC, QUICK, SQUARE, Listener, discs

WINDOW = IntensitySpec("window", -200, 200)


def test_a_picture_comes_with_every_look_at_held_back_samples(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    listener = Listener()
    recipe = lora.Recipe(**{**QUICK, "steps": 4, "validate_every": 2})
    lora.adapt(AdaptInputs(a_tiny_sam, [an_exemplar]), recipe, RunContext(np.random.default_rng(0), listener))
    shown = {p.step: p.picture.shape for p in listener.heard if p.picture is not None}
    assert shown == {2: (64, 4 * 64, 3), 4: (64, 4 * 64, 3)}


def test_a_synthesizer_is_given_what_is_annotated_empty_and_near(an_exemplar: Exemplar) -> None:
    exemplar = replace(an_exemplar, empty_slices=(0, 5))

    def source(**options: object):
        recipe = PromptedRecipe(synthesizer=SynthesisRecipe(**options))
        return synthesizer_of([exemplar], WINDOW, 64, recipe, dict(exemplar.structures))

    assert [piece.frame.index for piece in source().slices] == [1, 3]
    assert [piece.frame.index for piece in source().backgrounds] == [0, 5]
    assert source().neighbours == []
    assert {piece.frame.index for piece in source(background="neighbour").neighbours} == {2, 4}
    assert source().image_size == 64


def test_without_synthesis_the_exemplar_slices_are_shown_as_they_are(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    recipe = PromptedRecipe(image_size=64, synthesis=False)
    samples = training_samples(AdaptInputs(exemplars=[an_exemplar]), recipe, np.random.default_rng(0), 20)
    intensity = IntensitySpec.auto(an_exemplar.volume)
    pieces = labelled_slices(an_exemplar, intensity, 64)
    shown = {piece.image.tobytes() + piece.labels.astype(np.int32).tobytes() for piece in pieces}
    assert {sample.image.tobytes() + sample.labels.tobytes() for sample in samples} == shown
    assert all(sample.known is None for sample in samples)
    with pytest.raises(TypeError, match="not resolved"):
        training_samples(AdaptInputs(exemplars=[an_exemplar]), PromptedRecipe(), np.random.default_rng(0), 1)


def test_structures_that_cannot_be_pasted_are_shown_without_synthesis(an_exemplar: Exemplar) -> None:
    black = Volume(np.minimum(an_exemplar.volume.array, -1000), an_exemplar.volume.affine)
    exemplar = replace(an_exemplar, volume=black)
    recipe = PromptedRecipe(image_size=64, synthesizer=SynthesisRecipe(composite="paper"))
    names = dict(exemplar.structures)
    with pytest.raises(InputError, match="structures are all black"):
        synthesizer_of([exemplar], WINDOW, 64, recipe, names)
    shown = synthesizer_of([exemplar], WINDOW, 64, replace(recipe, synthesis=False), names)
    assert len(shown.slices) == 2


@pytest.mark.parametrize("synthesis", [True, False])
def test_that_something_is_pasted_is_said_only_where_it_is(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar, synthesis: bool
) -> None:
    listener = Listener()
    recipe = lora.Recipe(**{**QUICK, "steps": 1, "synthesis": synthesis})
    lora.adapt(AdaptInputs(a_tiny_sam, [an_exemplar]), recipe, RunContext(np.random.default_rng(0), listener))
    assert any("pasted" in progress.message for progress in listener.heard) == synthesis


def test_tokens_start_from_clicks_spread_over_the_slices_that_show_a_structure(an_exemplar: Exemplar) -> None:
    source = synthesizer_of([an_exemplar], WINDOW, 64, PromptedRecipe(), dict(an_exemplar.structures))
    labels = [piece.labels for piece in source.slices]
    clicks = typical_clicks(labels, tuple(source.structures), 6, np.random.default_rng(0))
    assert clicks.keys() == {DISC, SQUARE}
    for value, points in clicks.items():
        for at, (x, y) in enumerate(points):
            assert source.slices[at % 2].labels[int(y), int(x)] == value


def test_a_base_model_is_needed(an_exemplar: Exemplar) -> None:
    with pytest.raises(TypeError, match="none was given"):
        adapt_prompted(
            AdaptInputs(exemplars=[an_exemplar]), PromptedRecipe(), RunContext(np.random.default_rng(0)), method="lora"
        )


def test_a_third_of_the_time_is_for_the_estimate_and_the_rest_for_the_adapter(
    a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, float | None, int]] = []
    real = adapt_prompted.__globals__["learn"]

    def learn(lesson, run, stage, **options):
        given.append((stage, run.max_seconds, lesson.recipe.steps))
        return real(lesson, replace(run, max_seconds=None), stage, **options)

    monkeypatch.setitem(adapt_prompted.__globals__, "learn", learn)
    exemplars = [
        Exemplar(
            volume, np.where(np.arange(6)[:, None, None] == 2, labels, 0), {1: "disc", 2: "square"}, 0, (2,), name=n
        )
        for n in "ab"
        for volume, labels in [discs(np.random.default_rng(ord(n)))]
    ]
    recipe = PromptedRecipe(**{**QUICK, "steps": 3, "estimate_folds": 2})
    run = RunContext(np.random.default_rng(0), max_seconds=600.0)
    adapter = adapt_prompted(AdaptInputs(a_tiny_sam, exemplars), recipe, run, method="lora")
    assert given == [("estimating 1/2", 100.0, 1), ("estimating 2/2", 100.0, 1), ("adapting", 400.0, 3)]
    assert set(adapter.metrics["estimated_dice"]) <= {"disc", "square"}
