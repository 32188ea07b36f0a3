"""What every method of adaptation promises, tried on a miniature Segment Anything made of its own classes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.slice_frame import frame_of
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.methods import METHODS, Method, lora, method
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import DISC, Listener, dice, discs, sha256_of_network

QUICK = {
    "steps": 6,
    "batch_size": 1,
    "estimate_folds": 0,
    "guard": "off",
    "validate_every": 0,
    "encoder_blocks": -1,
    "pool_size": 0,
    "click_prompts": 2,
    "token_prompts": 2,
}

# Methods that learn from exemplars; what learns without any is tested beside itself.
FROM_EXEMPLARS = [name for name in METHODS if "exemplars" in method(name).NEEDS]
EVERY_METHOD = pytest.mark.parametrize("a_method", FROM_EXEMPLARS, indirect=True)
# Those whose adapter knows the exemplars' structures by name; the other learns slower, and is tested beside itself.
BY_NAME = pytest.mark.parametrize("a_method", [name for name in FROM_EXEMPLARS if name != "gmiseg"], indirect=True)
Adapt = Callable[..., Adapter]


@pytest.fixture
def a_method(request: pytest.FixtureRequest) -> Method:
    return method(request.param)


@pytest.fixture
def adapt(a_method: Method, a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> Adapt:
    """Run the method on the miniature with a short recipe; arguments replace parts of it."""

    def run(
        exemplars: Any = (an_exemplar,), *, seed: int = 0, report: Any = lambda progress: None, **options: Any
    ) -> Adapter:
        run = RunContext(np.random.default_rng(seed), report)
        return a_method.adapt(AdaptInputs(a_tiny_sam, exemplars), quick(a_method, **options), run)

    return run


def quick(a_method: Method, **options: Any) -> Any:
    """Options that the recipe has, as far as it allows them."""
    known = {field.name: field.metadata.get("max") for field in fields(a_method.Recipe)}
    wanted = {key: value for key, value in {**QUICK, **options}.items() if key in known}
    return from_dict(a_method.Recipe, {k: v if known[k] is None else min(v, known[k]) for k, v in wanted.items()})


def masks_of(network: PromptableNetwork, adapter: Adapter, volume: Volume) -> np.ndarray:
    prompts = [] if adapter.structures else [Prompt(0, 2, np.array([[20.0, 20.0, 2.0]]), np.array([1]))]
    return segment(volume, Predictor(network, adapter), prompts=prompts, options=SegmentOptions()).labelmap.volume.array


def logits_of(network: PromptableNetwork, adapter: Adapter) -> bytes:
    predictor = Predictor(network, adapter)
    image = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    embedding, structures = predictor.encode([image])[0], sorted(adapter.structures)
    prompt = Prompt(0, 0, np.array([[20.0, 20.0, 0.0]]), np.array([1]))
    frame = frame_of(Volume(image[None], np.eye(4)), 0, 0, 64)
    if structures:
        masks = predictor.decode_structures(embedding, structures)
    else:
        masks = predictor.answer(embedding, prompt, frame)
    return masks.logits.tobytes() + masks.iou.tobytes()


def test_methods_are_found_by_name_and_unknown_ones_refused() -> None:
    assert method("lora") is lora
    with pytest.raises(InputError, match=f"Unknown method 'magic'.*{METHODS[0]}"):
        method("magic")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_what_it_needs(name: str) -> None:
    module = method(name)
    assert module.LABEL
    assert set(module.NEEDS) <= {"exemplars", "targets", "auxiliary", "source"}
    assert module.__doc__
    assert module.needs_base(module.Recipe()) in (True, False)


@BY_NAME
def test_the_loss_falls(adapt: Adapt) -> None:
    listener = Listener()
    adapt(report=listener, steps=40)
    losses = [p.metrics["loss"] for p in listener.heard if "loss" in p.metrics]
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


@EVERY_METHOD
def test_the_base_model_is_bit_identical_afterwards(adapt: Adapt, a_tiny_sam: PromptableNetwork) -> None:
    before, parts = sha256_of_network(a_tiny_sam), [id(module) for module in a_tiny_sam.modules()]
    adapt()
    assert sha256_of_network(a_tiny_sam) == before
    assert [id(module) for module in a_tiny_sam.modules()] == parts
    assert not any(parameter.requires_grad for parameter in a_tiny_sam.parameters())


@EVERY_METHOD
@pytest.mark.parametrize("error", [Cancelled("enough"), RuntimeError("a defect"), KeyboardInterrupt()])
def test_the_base_model_is_bit_identical_after_an_error(
    error: BaseException, adapt: Adapt, a_tiny_sam: PromptableNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, parts = sha256_of_network(a_tiny_sam), [id(module) for module in a_tiny_sam.modules()]
    with pytest.raises(type(error)):
        adapt(report=Listener(2, error))
    assert sha256_of_network(a_tiny_sam) == before
    assert [id(module) for module in a_tiny_sam.modules()] == parts
    assert list(tmp_path.iterdir()) == []


@EVERY_METHOD
def test_cancelling_is_heard_within_one_step(adapt: Adapt) -> None:
    listener = Listener(2, Cancelled())
    with pytest.raises(Cancelled):
        adapt(report=listener)
    assert listener.heard[-1].step == 2


@EVERY_METHOD
def test_an_adapter_reproduces_its_masks_after_it_went_through_a_file(
    adapt: Adapt, a_tiny_sam: PromptableNetwork, a_volume: Volume, tmp_path: Path
) -> None:
    adapter = adapt()
    save_adapter(adapter, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert loaded.digest == adapter.digest
    assert logits_of(a_tiny_sam, loaded) == logits_of(a_tiny_sam, adapter)
    assert np.array_equal(masks_of(a_tiny_sam, loaded, a_volume), masks_of(a_tiny_sam, adapter, a_volume))


@EVERY_METHOD
def test_an_adapter_changes_the_answer_and_leaves_no_trace_in_the_network(
    adapt: Adapt, a_tiny_sam: PromptableNetwork
) -> None:
    first, second = adapt(seed=1), adapt(seed=2)
    alone = logits_of(a_tiny_sam, first)
    assert alone != logits_of(a_tiny_sam, second)
    assert alone == logits_of(a_tiny_sam, first)


@EVERY_METHOD
def test_the_same_seed_gives_the_same_bytes(adapt: Adapt, tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        save_adapter(adapt(seed=seed, validate_every=2), tmp_path / f"{name}.safetensors")
        contents.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


@EVERY_METHOD
def test_global_random_numbers_decide_nothing(adapt: Adapt) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        adapter = adapt()
        torch.default_generator.manual_seed(12345)
        assert adapt().digest == adapter.digest


@EVERY_METHOD
def test_a_recipe_survives_json(a_method: Method) -> None:
    recipe = quick(a_method)
    assert from_dict(a_method.Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


@EVERY_METHOD
def test_every_option_is_explained(a_method: Method) -> None:
    assert [field.name for field in fields(a_method.Recipe) if not field.metadata.get("help")] == []


@EVERY_METHOD
def test_without_exemplars_there_is_nothing_to_learn(adapt: Adapt) -> None:
    with pytest.raises(InputError, match="At least one exemplar"):
        adapt(())


@EVERY_METHOD
def test_an_exemplar_whose_labels_do_not_fit_its_image_is_named(adapt: Adapt, an_exemplar: Exemplar) -> None:
    with pytest.raises(InputError, match="the odd one"):
        adapt([Exemplar(an_exemplar.volume, np.zeros((6, 64, 63), np.uint8), {1: "disc"}, 0, (1,), name="the odd one")])


@EVERY_METHOD
def test_a_structure_that_no_exemplar_shows_is_named(adapt: Adapt, an_exemplar: Exemplar) -> None:
    missing = {**an_exemplar.structures, 7: "pancreas"}
    with pytest.raises(InputError, match="pancreas"):
        adapt([Exemplar(an_exemplar.volume, an_exemplar.labelmap, missing, 0, (1, 3))])


@BY_NAME
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_exemplars_gives_an_adapter_with_an_honest_estimate(
    count: int, adapt: Adapt, an_rng: np.random.Generator
) -> None:
    exemplars = []
    for number in range(count):
        volume, labels = discs(an_rng)
        known = np.zeros_like(labels)
        known[2] = labels[2]
        exemplars.append(Exemplar(volume, known, {1: "disc", 2: "square"}, 0, (2,), name=f"case {number}"))
    metrics = adapt(exemplars, estimate_folds=2).metrics
    if count == 1:
        assert metrics["estimated_dice"] is None
        assert "not estimable" in metrics["estimate"]
    else:
        assert set(metrics["estimated_dice"]) == {"disc", "square"}


@BY_NAME
def test_slices_of_one_exemplar_are_left_out_in_turn(adapt: Adapt) -> None:
    metrics = adapt(estimate_folds=2).metrics
    assert set(metrics["estimated_dice"]) == {"disc", "square"}
    assert "same patient" in metrics["estimate"]


@EVERY_METHOD
def test_no_socket_is_opened(
    adapt: Adapt, a_tiny_sam: PromptableNetwork, a_volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **rest: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    masks_of(a_tiny_sam, adapt(), a_volume)


@pytest.mark.parametrize("a_method", ["lora"], indirect=True)
def test_a_held_out_disc_is_found_with_one_click(adapt: Adapt, a_tiny_sam: PromptableNetwork) -> None:
    """The smoke test of the method as a whole: an untrained network learns what a click on a disc means.

    Of `asap`, asap/test_method.py shows that it is the same to the bit without auxiliary data.
    """
    volume, labels = discs(np.random.default_rng(99))
    adapter = adapt(steps=100, learning_rate=3e-3, batch_size=2, click_prompts=2, token_prompts=1, full_decoder=True)
    scores = []
    for index in range(volume.shape[0]):
        truth = labels[index] == DISC
        i, j = centre_click(truth)
        prompt = Prompt(0, index, np.array([[i, j, index]]), np.array([1]), structure="disc")
        options = SegmentOptions(propagate=False)
        found = segment(volume, Predictor(a_tiny_sam, adapter), prompts=[prompt], options=options)
        mask = found.labelmap.volume.array[index] == DISC
        scores.append(dice(mask, truth))
    assert np.mean(scores) >= 0.8
