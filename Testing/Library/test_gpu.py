"""What only a GPU can show: `pytest -m gpu`, or `Testing/gpu_check.sh` with the measurements."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.methods import gmiseg, lora
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.networks.scan import _Scan, selective_scan
from FewShotSegLib.progress import silent
from FewShotSegLib.sam.cuda_graphs import graphed_training
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch
from FewShotSegLib.training import prompted_recipe
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.fit import Schedule, fit
from FewShotSegLib.training.lesson import Lesson
from FewShotSegLib.training.prompted import synthesizer_of
from Testing.conftest import QUICK
from Testing.Library.networks.sequences import arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"),
]
CUDA = torch.device("cuda")


@pytest.fixture(params=["bundled-small", "bundled"])
def base(request: pytest.FixtureRequest) -> PromptableNetwork:
    """A base model on the GPU."""
    return load_base(request.param, device="cuda")


def a_run(seed: int = 0) -> RunContext:
    return RunContext(np.random.default_rng(seed), device=CUDA)


def prompts(size: int, points: int = 1) -> PromptBatch:
    coords = torch.full((1, points + 2, 2), size / 2.0)
    labels = torch.full((1, points + 2), PADDING)
    labels[:, :points] = POSITIVE
    return PromptBatch(coords.to(CUDA), labels.to(CUDA))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def test_a_click_on_the_gpu_gives_the_mask_that_the_processor_gives(base: PromptableNetwork) -> None:
    image = np.zeros((base.image_size, base.image_size), np.float32)
    image[base.image_size // 4 : -base.image_size // 4, base.image_size // 3 : -base.image_size // 3] = 0.7
    on_gpu = Predictor(base)
    answers = [on_gpu.decode(on_gpu.encode([image])[0], prompts(base.image_size)).logits > 0]
    on_cpu = Predictor(load_base(base.name))
    asked = prompts(base.image_size)
    asked = PromptBatch(asked.coords.cpu(), asked.labels.cpu())
    answers.append(on_cpu.decode(on_cpu.encode([image])[0], asked).logits > 0)
    assert answers[1].any()
    assert overlap(*answers) > 0.97


def test_graphs_answer_as_the_network_does(base: PromptableNetwork) -> None:
    predictor, plain = Predictor(base), Predictor(base)
    plain.graphs = None
    rng = np.random.default_rng(0)
    for turn in range(4):  # the first is as it is, the second is recorded, later ones are replayed
        image = rng.random((base.image_size,) * 2, np.float32)
        embedding, wanted = predictor.encode([image])[0], plain.encode([image])[0]
        assert torch.allclose(embedding.features, wanted.features, atol=1e-5), turn
        asked = prompts(base.image_size, points=1 + turn % 2)
        found, right = predictor.decode(wanted, asked), plain.decode(wanted, asked)
        np.testing.assert_allclose(found.logits, right.logits, atol=1e-4, err_msg=str(turn))
    assert predictor.graphs is not None
    assert len(predictor.graphs) == 3  # encoding, and clicks of one and of two points


def test_what_a_graph_returned_stays_as_it_is(base: PromptableNetwork) -> None:
    predictor = Predictor(base)
    images = [np.full((base.image_size,) * 2, value, np.float32) for value in (0.1, 0.3, 0.5, 0.9)]
    embeddings = [predictor.encode([image])[0] for image in images]
    kept = [embedding.features.clone() for embedding in embeddings]
    predictor.encode([np.full((base.image_size,) * 2, 0.7, np.float32)])
    assert all(torch.equal(e.features, k) for e, k in zip(embeddings, kept, strict=True))
    assert not torch.equal(kept[2], kept[3])


@pytest.mark.parametrize(("amp", "accumulate"), [(None, 1), (torch.bfloat16, 1), (torch.bfloat16, 3)])
def test_steps_by_graphs_learn_what_steps_without_learn(
    base: PromptableNetwork,
    an_exemplar: Exemplar,
    amp: torch.dtype | None,
    accumulate: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    losses = {}
    for graphs in (False, True):
        recipe = prompted_recipe.resolve(lora.Recipe(**{**QUICK, "image_size": None}), base.family, CUDA)
        recipe = replace(recipe, structure_maps=False, encoder_blocks=-1, correction_probability=0.5)
        spec = prompted_recipe.adaptation_spec(recipe, base)
        adaptation = Adaptation(base, spec, (1, 2), generator=torch.Generator().manual_seed(0))
        intensity = AdaptInputs(base, [an_exemplar]).intensity_of_exemplars()
        source = synthesizer_of([an_exemplar], intensity, base.image_size, recipe, an_exemplar.structures)
        lesson = Lesson(base, adaptation, source, recipe, base.scale, 0)
        with adaptation.applied(base) as parameters, graphed_training(base, wanted=graphs) as begin:
            lesson.begin = begin
            schedule = Schedule(12, 1e-4, warmup_steps=1, accumulate=accumulate)
            fitted = fit(parameters, lesson.loss_at, schedule, report=silent, amp=amp)
        losses[graphs] = [entry["loss"] for entry in fitted.history]
    assert not caplog.records  # nothing fell back
    assert "encode" not in vars(base)
    np.testing.assert_allclose(losses[True], losses[False], rtol=0.03)


def learned(method: Any, recipe: Any, network: PromptableNetwork | None, exemplar: Exemplar) -> Adapter:
    return method.adapt(AdaptInputs(network, [exemplar]), recipe, a_run())


def test_lora_learns_and_its_base_is_as_before(base: PromptableNetwork, an_exemplar: Exemplar) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    recipe = lora.Recipe(**{**QUICK, "image_size": None, "steps": 8, "guard": "warn"})
    adapter = learned(lora, recipe, base, an_exemplar)
    assert adapter.metrics["steps"] == 8
    assert all(np.isfinite(value).all() for value in adapter.tensors.values())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_gmiseg_learns(an_exemplar: Exemplar) -> None:
    recipe = gmiseg.Recipe(**{**QUICK, "image_size": None, "steps": 4, "token_prompts": 0})
    assert learned(gmiseg, recipe, load_base("bundled-small", device="cuda"), an_exemplar).metrics["steps"] == 4


@pytest.mark.parametrize("network", ["unet", "swinunet", "mambaunet"])
def test_a_3d_network_learns(network: str, an_exemplar: Exemplar) -> None:
    recipe = asap.Recipe(network=network, steps=3, patch=(4, 64, 64), estimate_folds=0, validate_every=0)
    assert learned(asap, recipe, None, an_exemplar).metrics


def test_the_scan_on_the_gpu_is_the_scan_in_torch() -> None:
    values = [value.detach().float().to(CUDA).requires_grad_() for value in arguments(3, 70, 24, 8)]
    u, delta, decay, write, read, skip = values
    results = []
    for y in (selective_scan(*values), _Scan.apply(u, delta, write, read, decay, 70) + skip * u):
        weights = torch.linspace(-1, 2, y.numel(), device=CUDA).view_as(y)
        results.append([y, *torch.autograd.grad((weights * y).sum(), values)])
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()
