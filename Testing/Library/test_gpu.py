"""What only a GPU can show: `pytest -m gpu`, or `Testing/gpu_check.sh` with the measurements."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.inference.load import predictor_of
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.inference.support import SupportPredictor, SupportRecipe, support_adapter
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.jobs.notes import Notes
from FewShotSegLib.jobs.run import run
from FewShotSegLib.jobs.segment import segmentation_of
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.methods import gmiseg, lora
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.methods.uda.translation import train_translator
from FewShotSegLib.networks import scan
from FewShotSegLib.networks.scan import directional_scans
from FewShotSegLib.progress import silent
from FewShotSegLib.sam import presets, registry
from FewShotSegLib.sam.cuda_graphs import graphed_training
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch
from FewShotSegLib.training import prompted_recipe
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.fit import Schedule, fit
from FewShotSegLib.training.lesson import Lesson
from FewShotSegLib.training.prompted import synthesizer_of
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import DISC, QUICK, write_discs
from Testing.Library.kernels import assert_agree, with_gradients
from Testing.Library.methods.uda.conftest import job_in, other_kind
from Testing.Library.methods.uda.toys import TINY, noise
from Testing.Library.networks.sequences import DIRECTIONS, directional_arguments
from Testing.Library.worker.conftest import a_click, answer_to, ask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"),
]
CUDA = torch.device("cuda")
MEMORY = {"24GB": presets.Preset(presets.ALL_BLOCKS, 160, 24, False), "12GB": presets.Preset(0, 160, 1, False)}


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
    side = base.image_size
    y, x = np.mgrid[:side, :side] / side - 0.5
    image = np.where(x**2 + y**2 < 0.04, 0.7, 0.25) + np.random.default_rng(0).normal(0, 0.02, (side, side))
    image = image.astype(np.float32)
    on_gpu = Predictor(base)
    answers = [on_gpu.decode(on_gpu.encode([image])[0], prompts(base.image_size)).logits > 0]
    on_cpu = Predictor(load_base(base.name))
    asked = prompts(base.image_size)
    asked = PromptBatch(asked.coords.cpu(), asked.labels.cpu())
    answers.append(on_cpu.decode(on_cpu.encode([image])[0], asked).logits > 0)
    assert 0.1 < answers[1].mean() < 0.15  # the disc
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
    # In bfloat16 a weight changed by 1e-6 moves a late loss by 3 %: corrective clicks fall elsewhere.
    np.testing.assert_allclose(losses[True], losses[False], rtol=0.03 if amp is None else 0.08)


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


def test_the_default_recipe_learns_on_the_gpu_what_the_processor_then_finds(
    base: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    adapter = learned(lora, lora.Recipe(steps=40, estimate_folds=0), base, an_exemplar)
    on_gpu = segment(an_exemplar.volume, predictor_of(base, adapter)).labelmap.volume.array
    on_cpu = segment(an_exemplar.volume, predictor_of(load_base(base.name), adapter)).labelmap.volume.array
    for value in an_exemplar.structures:
        assert overlap(on_gpu == value, on_cpu == value) > 0.95, value
    assert on_gpu.any()


def test_one_seed_gives_one_run(base: PromptableNetwork, an_exemplar: Exemplar) -> None:
    recipe = lora.Recipe(**{**QUICK, "image_size": None, "steps": 8})
    first, again = (learned(lora, recipe, base, an_exemplar).tensors for _ in range(2))
    for name, value in first.items():
        np.testing.assert_allclose(value, again[name], atol=2e-3, err_msg=name)


@pytest.mark.parametrize("network", ["unet", "swinunet", "mambaunet"])
def test_a_3d_network_learns_and_both_devices_find_the_same(network: str, an_exemplar: Exemplar) -> None:
    recipe = asap.Recipe(network=network, steps=30, patch=(4, 64, 64), estimate_folds=0, validate_every=0)
    adapter = learned(asap, recipe, None, an_exemplar)
    found = [
        VolumePredictor(adapter, device).segment(an_exemplar.volume, options=SegmentOptions()).labelmap.volume.array
        for device in (CUDA, torch.device("cpu"))
    ]
    for value in an_exemplar.structures:
        assert (found[0] == value).any() == (found[1] == value).any()
    assert (found[0] != found[1]).mean() < 0.01


def test_a_support_set_answers_on_the_gpu_as_on_the_processor(base: PromptableNetwork, an_exemplar: Exemplar) -> None:
    support = support_adapter([an_exemplar], base, recipe=SupportRecipe(pictures=4, pixels=4000))
    found = [
        segment(an_exemplar.volume, SupportPredictor(network, support)).labelmap.volume.array
        for network in (base, load_base(base.name))
    ]
    for value in an_exemplar.structures:
        assert overlap(*(labels == value for labels in found)) > 0.95, value
    assert found[0].any()


def a_lesson_in_files(folder: Path) -> dict[str, Any]:
    """A patient, and two auxiliary data sets: what a job of `asap` needs."""
    pytest.importorskip("SimpleITK", reason="jobs read files")
    image, labelmap = write_discs(folder, "patient", 5)
    for number, name in enumerate(("north", "south")):
        write_discs(folder / "auxiliary" / name, "case", 10 * number)
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices="all", structures={DISC: "disc"})
    return {"exemplars": (exemplar,), "auxiliary_folder": str(folder / "auxiliary"), "device": CUDA.type}


@pytest.mark.parametrize("network", ["unet", "sam"])
def test_asap_chooses_auxiliary_data_and_one_seed_gives_one_run(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = a_lesson_in_files(tmp_path)
    recipe: dict[str, Any] = {"network": network, "steps": 6, "batch_size": 1, "estimate_folds": 0, "validate_every": 0}
    recipe |= {"steps_per_turn": 2, "measured_steps": 1, "probe_batches": 1}
    recipe |= {} if network == "sam" else {"patch": [4, 32, 32], "pretraining_steps": 2}
    tensors, chosen = [], []
    for attempt in ("first", "again"):
        monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / attempt))
        out = str(tmp_path / f"{attempt}.safetensors")
        record = run(AdaptJob(out, method="asap", base="bundled-small", recipe=recipe, **given))
        metrics = record["metrics"]
        summaries = [metrics["auxiliary"], *(metrics.get("pretraining_of") or {}).values()]
        chosen.append([[row["arm"] for row in summary["turns"]] for summary in summaries])
        tensors.append(load_adapter(out).tensors)
    assert any(chosen[0])
    assert chosen[0] == chosen[1]
    for name, value in tensors[0].items():
        np.testing.assert_allclose(value, tensors[1][name], atol=2e-3, err_msg=name)


def test_uda_goes_its_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("SimpleITK", reason="jobs read files")
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "cache"))
    job = job_in(tmp_path)
    record = run(replace(job, recipe={**job.recipe, "space": "intensity"}, device=CUDA.type))
    assert {"matching", "filter"} <= set(record["metrics"]["stages"])
    volume, _ = other_kind(9)
    found = [VolumePredictor(load_adapter(job.out), device).segment(volume) for device in (CUDA, torch.device("cpu"))]
    labels = [part.labelmap.volume.array for part in found]
    assert (labels[0] != labels[1]).mean() < 0.01


def test_training_steps_down_to_the_preset_that_fits(
    tmp_path: Path, a_short_gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = a_lesson_in_files(tmp_path)
    del given["auxiliary_folder"]
    registered = registry.find("bundled-small")[0]
    monkeypatch.setattr(prompted_recipe, "preset_of", lambda family, name, device: MEMORY[name])
    needs = {}
    for preset in MEMORY:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        recipe = {**QUICK, "image_size": None, "batch_size": None, "preset": preset}
        job = AdaptJob(str(tmp_path / f"{preset}.safetensors"), base=registered.name, recipe=recipe, **given)
        run(job)
        needs[preset] = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    assert needs["24GB"] > 1.2 * needs["12GB"]
    a_short_gpu((needs["24GB"] + needs["12GB"]) // 2)
    record = run(replace(job, out=str(tmp_path / "short.safetensors"), recipe={**recipe, "preset": "24GB"}))
    assert any("starting again with the preset 12GB" in warning for warning in record["warnings"])


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_images_learn_to_be_translated(amp: torch.dtype | None) -> None:
    volumes = [[noise(3, 40, 40, seed=seed) for seed in seeds] for seeds in ((0, 1), (2, 3))]
    translators = [
        train_translator(volumes[0], volumes[1], replace(TINY, steps=6), device=device, amp=used)
        for device, used in ((CUDA, amp), ("cpu", None))
    ]
    for entry, wanted in zip(translators[0].history, translators[1].history, strict=True):
        assert entry == pytest.approx(wanted, rel=0.05, abs=0.02)
    assert translators[0].translate(volumes[0][0]).shape == (3, 40, 40)


def test_a_worker_answers_a_click_on_the_gpu(an_exemplar: Exemplar, tmp_path: Path) -> None:
    volume = an_exemplar.volume
    where = {"adapter": None, "base": "bundled", "mask_path": str(tmp_path / "mask.npy")}
    masks = []
    with WorkerClient() as client:
        answer_to(client, client.send_volume("v", volume.array, volume.affine))
        for device in ("cuda", "cpu"):
            answer = ask(client, op="predict", volume="v", prompt=a_click(structure=None), device=device, **where)
            assert answer["type"] == "result", answer
            masks.append(np.load(tmp_path / "mask.npy"))
    assert masks[0].any()
    assert overlap(*masks) > 0.95


def test_where_the_memory_is_too_small_for_a_batch_slices_come_one_by_one(
    an_exemplar: Exemplar, a_short_gpu: Callable[[int], None]
) -> None:
    adapter = learned(
        lora, lora.Recipe(**{**QUICK, "image_size": None}), load_base("bundled", device="cuda"), an_exemplar
    )
    needs = {}
    for batch_slices in (1, 6):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        predictor = Predictor(load_base("bundled", device="cuda"), adapter)
        wanted = segment(an_exemplar.volume, predictor, options=SegmentOptions(batch_slices=batch_slices))
        needs[batch_slices] = torch.cuda.max_memory_reserved()
        del predictor
        gc.collect()
    torch.cuda.empty_cache()
    assert needs[6] > 1.2 * needs[1]
    a_short_gpu((needs[1] + needs[6]) // 2)
    notes = Notes(silent)
    predictor = Predictor(load_base("bundled", device="cuda"), adapter)
    found = segmentation_of(an_exemplar.volume, [], predictor, SegmentOptions(batch_slices=6), notes)
    assert "Out of GPU memory; going on with one slice at a time." in notes.warnings
    assert (found.labelmap.volume.array != wanted.labelmap.volume.array).mean() < 0.01


@pytest.fixture
def a_short_gpu() -> Iterator[Callable[[int], None]]:
    """A function that leaves PyTorch so many bytes of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    yield lambda size: torch.cuda.set_per_process_memory_fraction(size / total)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_the_scan_on_the_gpu_is_the_scan_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    given = directional_arguments((2, 3, 8, 9), 24, 8)
    found = with_gradients(lambda *values: directional_scans(*values, DIRECTIONS), given)
    monkeypatch.setattr(scan, "_triton_scans", lambda device: None)
    assert_agree(found, with_gradients(lambda *values: directional_scans(*values, DIRECTIONS), given))
