"""ASAP on cases of discs: 3-D networks and the promptable model, beside auxiliary data sets on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.volume import Labelmap
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.load import load_predictor
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.datasets import data_sets_in
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_volume
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods import lora
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.methods.asap import networks
from FewShotSegLib.methods.asap.networks import _Start
from FewShotSegLib.methods.asap.schedulers import SCHEDULERS
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import weights_of
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.patches import PatchSource
from Testing.conftest import DISC, QUICK, SQUARE, Listener, write_discs
from Testing.Library.examples import an_adapter

NETWORK: dict[str, Any] = {
    "network": "unet",
    "steps": 6,
    "patch": [4, 32, 32],
    "batch_size": 1,
    "estimate_folds": 0,
    "steps_per_turn": 2,
    "measured_steps": 1,
    "probe_batches": 1,
    "pretraining_steps": 2,
    "validate_every": 3,
}


@pytest.fixture(autouse=True)
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def an_auxiliary_folder(tmp_path: Path) -> Path:
    """Two data sets with two structures each: four arms."""
    for number, name in enumerate(("north", "south")):
        for case in range(2):
            write_discs(tmp_path / "auxiliary" / name, f"case {case}", 10 * number + case)
    return tmp_path / "auxiliary"


@pytest.fixture
def a_job(tmp_path: Path, an_auxiliary_folder: Path, a_home: Path) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "patient", 5)
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices="all", structures={DISC: "disc"})
    return AdaptJob(
        str(tmp_path / "disc.safetensors"),
        method="asap",
        exemplars=(exemplar,),
        auxiliary_folder=str(an_auxiliary_folder),
        recipe=NETWORK,
        device="cpu",
    )


def segmented(job: AdaptJob, folder: Path) -> np.ndarray:
    run(SegmentJob((job.exemplars[0].image,), str(folder), adapter=job.out))
    return load_labelmap(folder / "patient.seg.nrrd").volume.array


@pytest.mark.parametrize("network", ["unet", "swinunet", "mambaunet"])
def test_a_network_is_trained_kept_and_segments(a_job: AdaptJob, tmp_path: Path, network: str) -> None:
    record = run(replace(a_job, recipe={**NETWORK, "network": network, "patch": [4, 32, 32]}))
    adapter = load_adapter(a_job.out)
    assert (adapter.method, adapter.base_model, adapter.architecture["network"]["name"]) == ("asap", "", network)  # type: ignore[index]
    assert record["metrics"]["auxiliary"]["arms"] == ["north: disc", "north: square", "south: disc", "south: square"]
    labels = segmented(a_job, tmp_path / "out")
    volume = load_volume(a_job.exemplars[0].image)
    found = VolumePredictor(adapter, "cpu").segment(volume)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.labelmap.volume.array, labels)
    assert labels.shape == volume.shape


def test_the_same_job_gives_the_same_bytes_with_and_without_a_warm_cache(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)
    again = replace(a_job, out=str(tmp_path / "again.safetensors"))
    run(again)
    assert Path(a_job.out).read_bytes() == Path(again.out).read_bytes()


PLAYED = {"asap": 3, "direct": 0, "gms": 3, "mtl": 0, "dal_ucb1": 3, "dal_exp3": 3, "random": 3}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_way_of_choosing_plays_and_measures_what_it_says(a_job: AdaptJob, scheduler: str) -> None:
    options = {"scheduler": scheduler, "finish": 0.0, "pretraining": "none", "bandit": {"abstain": False}}
    record = run(replace(a_job, recipe={**NETWORK, **options}))
    rows = record["metrics"].get("auxiliary", {"turns": []})["turns"]
    looks, rows = [row for row in rows if row["turn"] == 0], [row for row in rows if row["turn"] > 0]
    assert len(rows) == PLAYED[scheduler]  # all arms at once are no choice
    assert {row["arm"] for row in looks} == ({0, 1, 2, 3} if scheduler in ("asap", "gms", "dal_ucb1") else set())
    measured = [row for row in rows[:-1] if row["cosine"] is not None]  # the last is not over
    assert len(measured) == (2 if scheduler in ("asap", "dal_ucb1", "dal_exp3") else 0)
    assert all(abs(row["cosine"]) > 0 for row in measured)
    if scheduler == "gms":
        (arm,) = {row["arm"] for row in rows}
        similarity = {row["arm"]: row["cosine"] for row in looks}
        assert similarity[arm] == max(similarity.values())


def test_what_the_arms_show_is_learned(a_job: AdaptJob, tmp_path: Path) -> None:
    """The auxiliary loss reaches the weights: other auxiliary images, another adapter."""
    options = {**NETWORK, "scheduler": "random", "pretraining": "none", "finish": 0.0}
    run(replace(a_job, recipe=options))
    before = load_adapter(a_job.out).tensors
    for case in range(2):
        for name in ("north", "south"):
            write_discs(tmp_path / "auxiliary" / name, f"case {case}", 77 + case)
    run(replace(a_job, out=str(tmp_path / "other.safetensors"), recipe=options))
    after = load_adapter(tmp_path / "other.safetensors").tensors
    assert not all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("scheduler", "pretraining", "chooser"),
    [
        ("asap", "chosen", "bandit"),
        ("asap", "by lot", "lots"),
        ("asap", "none", None),
        ("direct", "chosen", None),
        ("direct", "by lot", "lots"),
    ],
)
def test_what_a_network_starts_from_is_chosen_as_the_recipe_says(
    a_job: AdaptJob, scheduler: str, pretraining: str, chooser: str | None
) -> None:
    options = {"scheduler": scheduler, "pretraining": pretraining, "pretraining_steps": 8, "steps_per_turn": 1}
    record = run(replace(a_job, recipe={**NETWORK, **options}))
    found = record["metrics"].get("pretraining_of")
    if chooser is None:
        assert found is None
        return
    rows = found["disc"]["turns"]
    looks = [row for row in rows if row["turn"] == 0]
    assert len(looks) == (4 if chooser == "bandit" else 0)
    # A quarter of the steps is by lot before the bandit looks, and another one its own; then it has decided.
    assert len(rows) - len(looks) == (2 if chooser == "bandit" else 8)
    assert ("best" in found["disc"]) == (chooser == "bandit")


@pytest.mark.parametrize("best", [2, None])
def test_asap_starts_from_fresh_weights_trained_on_the_best_arm_alone(
    a_job: AdaptJob, best: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    class Watched(networks._Learner):
        def _arm_loss(self, network: nn.Module, source: PatchSource, arm: int, rng: np.random.Generator) -> Tensor:
            drawn.append(arm)
            return super()._arm_loss(network, source, arm, rng)

    monkeypatch.setattr(networks, "_Learner", Watched)
    monkeypatch.setattr(networks.Asap, "best", lambda self: best)
    fresh = []
    monkeypatch.setattr(
        networks, "_Start", lambda weights, chosen=None: (fresh.append(weights), _Start(weights, chosen))[1]
    )
    options = {**NETWORK, "pretraining_steps": 8, "steps_per_turn": 1, "finish": 1.0}
    record = run(replace(a_job, recipe=options))
    assert record["metrics"]["auxiliary"]["left_out"] == {}
    found = record["metrics"]["pretraining_of"]["disc"]
    assert found["best"] == (None if best is None else "south: disc")
    looks = 4
    assert len(drawn) == 4 + looks + (8 if best is not None else 0)
    assert set(drawn[4 + looks :]) == ({best} if best is not None else set())
    (start,) = fresh
    network = build(**load_adapter(a_job.out).architecture["network"], seed=load_adapter(a_job.out).seed % 2**31)
    random = weights_of(network)
    assert all(np.array_equal(start[name], random[name]) for name in random) == (best is None)


def test_after_a_start_from_the_best_arm_no_other_is_measured_or_pulled(
    a_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks.Asap, "best", lambda self: 2)
    options = {"steps_per_turn": 1, "pretraining_steps": 4, "finish": 0.0, "bandit": {"abstain": False}}
    record = run(replace(a_job, recipe={**NETWORK, **options}))
    rows = record["metrics"]["auxiliary"]["turns"]
    assert [(row["turn"], row["name"]) for row in rows] == [(turn, "south: disc") for turn in range(7)]


@pytest.mark.parametrize("reading", ["paper", "log", "released"])
def test_in_the_readings_of_the_paper_other_arms_compete_with_the_best_one(
    a_job: AdaptJob, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks.Asap, "best", lambda self: 2)
    options = {"steps_per_turn": 1, "pretraining_steps": 4, "finish": 0.0, "steps": 8, "reading": reading}
    record = run(replace(a_job, recipe={**NETWORK, **options}))
    assert record["metrics"]["pretraining_of"]["disc"]["best"] == "south: disc"
    assert {row["name"] for row in record["metrics"]["auxiliary"]["turns"] if row["turn"] > 0} > {"south: disc"}


def test_pretraining_follows_the_auxiliary_data_alone(a_job: AdaptJob, tmp_path: Path) -> None:
    """Without a measurement the target's images have no influence on what the network starts from."""
    options = {**NETWORK, "steps": 1, "learning_rate": 1e-6, "scheduler": "direct", "pretraining": "by lot"}
    starts = []
    for seed in (5, 6):
        image, labelmap = write_discs(tmp_path / str(seed), "patient", seed)
        exemplar = replace(a_job.exemplars[0], image=str(image), labelmap=str(labelmap))
        out = str(tmp_path / f"{seed}.safetensors")
        run(replace(a_job, out=out, exemplars=(exemplar,), recipe=options))
        starts.append(load_adapter(out).tensors)
    assert all(np.allclose(starts[0][name], starts[1][name], atol=1e-4) for name in starts[0])


def test_arms_do_not_show_the_exemplars_own_scans(a_job: AdaptJob, tmp_path: Path) -> None:
    for case in range(2):
        write_discs(tmp_path / "auxiliary" / "north", f"case {case}", 5)  # the exemplar's image
    record = run(a_job)
    assert set(record["metrics"]["auxiliary"]["left_out"]) == {"north: disc", "north: square"}


def test_the_paper_s_preset_is_the_paper_and_leaves_what_was_set() -> None:
    recipe = asap.resolve(asap.Recipe(preset="paper", network="unet"), "compact", torch.device("cpu"))
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size) == (3e-4, 1e-7, 4)
    assert (recipe.patch, recipe.size, recipe.reading, recipe.finish) == ((32, 240, 240), "paper", "paper", 0.0)
    assert recipe.steps // recipe.steps_per_turn == 400  # epochs are turns
    assert (recipe.estimate_folds, recipe.preset) == (5, "paper")
    assert asap._turn_recipe(recipe).gradients == "batches"
    whole = -(-recipe.max_cases // recipe.batch_size)  # batches of a whole data set, as in Algorithm 1
    assert (recipe.probe_batches, recipe.reward_batches) == (whole, whole)
    own = asap.resolve(asap.Recipe(preset="paper", network="unet", steps=7), "compact", torch.device("cpu"))
    assert (own.steps, own.learning_rate) == (7, 3e-4)
    with pytest.raises(InputError, match="choose network=unet"):
        asap.resolve(asap.Recipe(preset="paper"), "compact", torch.device("cpu"))


@pytest.mark.parametrize(
    ("reading", "gradients", "expected"),
    [
        ("default", "as reading", "running mean"),
        ("paper", "as reading", "batches"),
        ("released", "as reading", "batches"),
        ("default", "step", "step"),
        ("paper", "running mean", "running mean"),
    ],
)
def test_what_is_compared_follows_the_reading_unless_it_is_chosen(reading: str, gradients: str, expected: str) -> None:
    assert asap._turn_recipe(asap.Recipe(reading=reading, gradients=gradients)).gradients == expected


def test_every_structure_of_the_exemplars_gets_a_network(a_job: AdaptJob, tmp_path: Path, a_listener: Listener) -> None:
    both = replace(a_job.exemplars[0], structures={DISC: "disc", SQUARE: "square"})
    run(replace(a_job, exemplars=(both,)), a_listener)
    adapter = load_adapter(a_job.out)
    assert {name.split("/")[0] for name in adapter.tensors} == {"1", "2"}
    assert set(np.unique(segmented(a_job, tmp_path / "out"))) <= {0, DISC, SQUARE}
    shares = [progress.metrics["done"] for progress in a_listener.heard if "done" in progress.metrics]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_exemplars_left_out_in_turn_say_how_long_to_train(a_job: AdaptJob, tmp_path: Path) -> None:
    image, labelmap = write_discs(tmp_path, "second", 6)
    second = replace(a_job.exemplars[0], image=str(image), labelmap=str(labelmap))
    record = run(replace(a_job, exemplars=(*a_job.exemplars, second), recipe={**NETWORK, "estimate_folds": 2}))
    training = record["metrics"]["structures"]["disc"]
    assert training["best_step"] in (3, 6)
    assert training["steps"] == training["best_step"]
    assert 0 <= record["metrics"]["estimated_dice"]["disc"] <= 1
    assert "left-out exemplars" in record["metrics"]["estimate"]


@pytest.mark.parametrize("finish", [0.0, 1.0])
def test_the_choices_are_drawn_beside_the_adapter(a_job: AdaptJob, finish: float) -> None:
    """Also if they were all made before the target."""
    listener = Listener()
    record = run(replace(a_job, recipe={**NETWORK, "pretraining_steps": 4, "finish": finish}), listener)
    best = record["metrics"]["pretraining_of"]["disc"]["best"]
    assert any(message.startswith(f"disc: pretraining on {best}, ") for message in listener.messages)
    picture = Path(a_job.out).with_name(record["report"])
    assert picture.name == "disc.report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.name in record["outputs"]


def test_a_killed_run_goes_on_to_the_same_bytes(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)

    class KilledError(RuntimeError):
        pass

    again = replace(a_job, out=str(tmp_path / "again.safetensors"), recipe={**NETWORK, "checkpoint_seconds": 0.0})
    whole = replace(again, out=str(tmp_path / "whole.safetensors"))
    run(whole)
    with pytest.raises(KilledError):
        run(again, Killer(3, KilledError()))
    assert list(tmp_path.glob("again.checkpoint*.pt"))
    run(again)
    assert Path(again.out).read_bytes() == Path(whole.out).read_bytes()
    assert not list(tmp_path.glob("again.checkpoint*.pt"))


class Killer(Listener):
    """Stops the final training at a step."""

    def __call__(self, progress: Any) -> None:
        self.heard.append(progress)
        if progress.message == "adapting" and progress.step == self.at_step and self.error is not None:
            raise self.error


def test_a_damaged_file_leaves_its_data_set_out_and_says_so(a_job: AdaptJob) -> None:
    folder = Path(a_job.auxiliary_folder or "")
    (folder / "south" / "case 1.nrrd").write_bytes(b"not an image")
    record = run(a_job)
    assert set(record["metrics"]["auxiliary"]["left_out"]) == {"south: disc", "south: square"}
    assert any("south: disc" in warning for warning in record["warnings"])


def test_an_arm_can_be_left_out_by_name(a_job: AdaptJob) -> None:
    record = run(replace(a_job, recipe={**NETWORK, "exclude": "north: disc; south: disc"}))
    assert record["metrics"]["auxiliary"]["arms"] == ["north: square", "south: square"]


def test_the_promptable_model_learns_beside_clicked_auxiliary_slices(
    a_job: AdaptJob, a_tiny_base: str, tmp_path: Path
) -> None:
    recipe = {**QUICK, "steps_per_turn": 2, "probe_batches": 1, "steps": 6, "finish": 0.0}
    record = run(replace(a_job, base=a_tiny_base, recipe=recipe))
    adapter = load_adapter(a_job.out)
    assert (adapter.method, adapter.base_model) == ("asap", "tiny")
    rows = record["metrics"]["auxiliary"]["turns"]
    assert [row["turn"] for row in rows] == [0, 0, 0, 0, 1, 2, 3]
    assert any(abs(row["cosine"]) > 0 for row in rows if row["cosine"] is not None)
    assert segmented(replace(a_job, base=a_tiny_base), tmp_path / "out").shape == (6, 64, 64)


def test_without_auxiliary_data_it_is_lora_to_the_bit(a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar) -> None:
    options = {**QUICK, "steps": 3, "encoder_blocks": -1}
    size = options.pop("image_size")
    assert size == a_tiny_sam.image_size
    one, other = (
        module.adapt(
            AdaptInputs(a_tiny_sam, [an_exemplar]),
            module.Recipe(**options, weight_decay=0.0),
            RunContext(np.random.default_rng(3)),
        )
        for module in (lora, asap)
    )
    assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_auxiliary_data_for_a_method_without_use_for_them_are_refused(a_job: AdaptJob, a_tiny_base: str) -> None:
    with pytest.raises(InputError, match="does not use auxiliary data"):
        run(replace(a_job, method="lora", base=a_tiny_base, recipe=QUICK))


def test_a_3d_network_answers_no_clicks_and_says_so(a_job: AdaptJob) -> None:
    import torch

    run(a_job)
    with pytest.raises(InputError, match="does not take clicks"):
        load_predictor(a_job.out, None, torch.device("cpu"))


def test_slices_of_auxiliary_data_have_the_scale_of_the_exemplars(an_exemplar: Exemplar) -> None:
    grid = asap._slice_grid(an_exemplar, 32)  # 64 x 64 voxels of 1 mm on 32 x 32 pixels
    assert grid.patch == (1, 32, 32)
    assert grid.spacing_mm == (2.0, 2.0, 4.0)


def test_data_sets_of_the_folder_are_found(an_auxiliary_folder: Path) -> None:
    assert [data_set.name for data_set in data_sets_in(an_auxiliary_folder)] == ["north", "south"]


def test_a_flipped_volume_is_segmented_in_its_own_voxels(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)
    volume = load_volume(a_job.exemplars[0].image)
    affine = volume.affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    affine[:3, 3] = (volume.affine @ [0, 0, volume.shape[0] - 1, 1])[:3]
    save_volume(type(volume)(volume.array[::-1], affine), tmp_path / "flipped.nrrd")
    predictor = VolumePredictor(load_adapter(a_job.out), "cpu")  # type: ignore[arg-type]
    one = predictor.segment(volume).labelmap
    other = predictor.segment(type(volume)(volume.array[::-1].copy(), affine)).labelmap
    assert isinstance(one, Labelmap)
    np.testing.assert_array_equal(one.volume.array[::-1], other.volume.array)


@pytest.mark.parametrize("network", ["sam", "unet"])
def test_samples_to_look_at_are_of_exemplars_and_arms(
    network: str, an_exemplar: Exemplar, an_auxiliary_folder: Path
) -> None:
    inputs = AdaptInputs(exemplars=[an_exemplar], auxiliary=data_sets_in(an_auxiliary_folder))
    recipe = asap.Recipe(network=network, patch=(4, 32, 32), image_size=64)
    recipe = asap.resolve(recipe, "compact", torch.device("cpu"))
    samples = asap.training_samples(inputs, recipe, np.random.default_rng(0), 5)
    captions = [sample.provenance.get("caption", "synthesized") for sample in samples]
    assert [caption.split(":")[0] for caption in captions[:3]] == (
        ["synthesized"] * 3 if network == "sam" else ["discs"] * 3
    )
    assert all(caption.startswith(("auxiliary: north: ", "auxiliary: south: ")) for caption in captions[3:])
    size = 64 if network == "sam" else 32
    assert {sample.image.shape for sample in samples} == {(size, size)}
    for sample in samples[3:]:
        ((value, _),) = sample.provenance["structures"].items()
        assert value > max(an_exemplar.structures)
        assert set(np.unique(sample.labels)) <= {0, value}
    alone = asap.training_samples(AdaptInputs(exemplars=[an_exemplar]), recipe, np.random.default_rng(0), 5)
    assert not any("auxiliary" in sample.provenance.get("caption", "") for sample in alone)


def test_a_3d_network_does_not_go_on_from_an_adapter(an_exemplar: Exemplar) -> None:
    inputs = AdaptInputs(exemplars=[an_exemplar], start=an_adapter())
    with pytest.raises(InputError, match="cannot continue from an adapter"):
        asap.adapt(inputs, asap.Recipe(network="unet"), RunContext(np.random.default_rng(0)))


@pytest.mark.parametrize(("network", "needed"), [("sam", True), ("unet", False), ("mambaunet", False)])
def test_only_the_promptable_network_needs_a_base_model(network: str, needed: bool) -> None:
    recipe = asap.Recipe(network=network)
    assert asap.needs_base(recipe) is needed
    resolved = asap.resolve(recipe, "sam", torch.device("cpu"))
    assert (resolved.pool_size > 0) is needed  # a frozen encoder keeps what it has seen; a 3-D network has none
