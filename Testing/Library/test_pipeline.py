"""Jobs from files to files: what is written, what is refused, and what a kill or a cancel leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.inference.support import SupportRecipe, support_adapter
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.jobs import save_job
from FewShotSegLib.io.prompts import save_prompts
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_volume
from FewShotSegLib.jobs import adapt, seeding, segment
from FewShotSegLib.jobs.run import run
from FewShotSegLib.jobs.seeding import stage_rng
from FewShotSegLib.sam import presets, registry
from FewShotSegLib.sam.loading import load_base
from Testing.conftest import QUICK, Listener, save_tiny_compact, write_discs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def an_adapt_job(a_tiny_base: str, tmp_path: Path) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "exemplar case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    out = str(tmp_path / "out" / "organs.safetensors")
    return AdaptJob(out, exemplars=(files,), base=a_tiny_base, recipe=QUICK, seed=3, device="cpu")


@pytest.fixture
def a_segment_job(an_adapter_file: Path, tmp_path: Path) -> SegmentJob:
    images = tuple(str(write_discs(tmp_path, name, seed)[0]) for name, seed in (("p1", 1), ("p2", 2)))
    return SegmentJob(images, str(tmp_path / "segmented"), str(an_adapter_file), device="cpu")


def files_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


# ---------------------------------------------------------------------------------------------------------------- adapt


def test_adapting_writes_the_adapter_and_its_record_and_nothing_else(an_adapt_job: AdaptJob) -> None:
    record = run(an_adapt_job)
    out = Path(an_adapt_job.out)
    assert files_in(out.parent) == {"organs.safetensors", "organs.result.json"}
    assert json.loads((out.parent / "organs.result.json").read_text(encoding="utf-8")) == record
    assert record["job"]["seed"] == 3
    assert record["device"] == "cpu"
    assert record["adapter"]["digest"] == load_adapter(out).digest
    assert {"FewShotSegLib", "torch", "numpy", "python"} <= set(record["versions"])
    assert set(record["timings_s"]) == {"load", "adapt"}


def test_the_same_job_gives_the_same_bytes_and_another_seed_others(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    def bytes_of(name: str, seed: int) -> bytes:
        job = replace(an_adapt_job, out=str(tmp_path / f"{name}.safetensors"), seed=seed)
        run(job)
        return Path(job.out).read_bytes()

    assert bytes_of("a", 3) == bytes_of("b", 3)
    assert bytes_of("a", 3) != bytes_of("c", 4)


def test_the_random_state_of_the_caller_is_untouched(an_adapt_job: AdaptJob) -> None:
    before = torch.random.get_rng_state(), state_of_numpy()
    run(an_adapt_job)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert state_of_numpy() == before[1]


def state_of_numpy() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002 - the state to protect


def test_every_stage_draws_numbers_of_its_own() -> None:
    drawn = [stage_rng(5, stage).integers(2**31) for stage in seeding.STAGES]
    assert len(set(drawn)) == len(drawn)
    assert stage_rng(5, "segment").integers(2**31) == drawn[1]


def test_warnings_about_exemplars_are_reported_and_kept(an_adapt_job: AdaptJob, a_listener: Listener) -> None:
    image, labelmap = an_adapt_job.exemplars[0].image, an_adapt_job.exemplars[0].labelmap
    volume = load_volume(image)
    array = volume.array.copy()
    array[1] = 7
    save_volume(volume.like(array), image)
    record = run(replace(an_adapt_job, exemplars=(ExemplarFiles(image, labelmap, slices=(1, 3)),)), a_listener)
    assert any("constant" in warning for warning in record["warnings"])
    assert any(p.kind == "warning" and "constant" in p.message for p in a_listener.heard)


def test_cancelling_leaves_no_file(an_adapt_job: AdaptJob) -> None:
    job = replace(an_adapt_job, recipe={**QUICK, "checkpoint_seconds": 0.0})
    with pytest.raises(Cancelled):
        run(job, Listener(2, Cancelled()))
    assert files_in(Path(job.out).parent) == set()


def test_stopping_early_keeps_the_best_adapter(an_adapt_job: AdaptJob) -> None:
    record = run(an_adapt_job, Listener(3, StopAndKeepBest()))
    assert record["metrics"]["stopped_by"] == "user"
    assert load_adapter(an_adapt_job.out).metrics["steps"] == 3


def test_training_goes_on_from_an_earlier_adapter(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    run(an_adapt_job)
    first = load_adapter(an_adapt_job.out)
    second = replace(an_adapt_job, out=str(tmp_path / "second.safetensors"), warm_start=an_adapt_job.out)
    run(replace(second, recipe={**QUICK, "steps": 1, "learning_rate": 1e-6, "validate_every": 0}))
    moved = load_adapter(second.out)
    assert all(np.allclose(moved.tensors[name], value, atol=1e-5) for name, value in first.tensors.items())


def test_going_on_with_other_structures_is_refused_naming_both(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    run(an_adapt_job)
    (files,) = an_adapt_job.exemplars
    swapped = replace(files, structures={1: "square", 2: "disc"})
    second = replace(an_adapt_job, out=str(tmp_path / "second.safetensors"), warm_start=an_adapt_job.out)
    with pytest.raises(InputError, match="has learned 1 = disc, 2 = square; the exemplars show 1 = square, 2 = disc"):
        run(replace(second, exemplars=(swapped,)))


def test_the_share_of_all_steps_that_is_done_grows_to_one(an_adapt_job: AdaptJob, a_listener: Listener) -> None:
    run(replace(an_adapt_job, recipe={**QUICK, "steps": 6, "estimate_folds": 2}), a_listener)
    shares = [progress.metrics["done"] for progress in a_listener.heard if "done" in progress.metrics]
    assert shares == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize(
    ("method", "given", "size"),
    [("lora", {}, 96), ("lora", {"image_size": 64}, 64), ("gmiseg", {}, 96), ("asap", {"network": "sam"}, 96)],
)
def test_a_base_model_meant_for_one_image_size_is_adapted_at_that_size(
    method: str, given: dict[str, Any], size: int, an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = registry.find(an_adapt_job.base)
    monkeypatch.setattr(registry, "find", lambda name: (replace(model, image_size=96), path))
    job = replace(an_adapt_job, method=method, recipe=given)
    assert adapt.recipe_of(job).image_size == size


def test_a_chosen_window_is_that_of_the_adapter(an_adapt_job: AdaptJob) -> None:
    run(replace(an_adapt_job, intensity={"kind": "window", "low": -10, "high": 90}))
    intensity = load_adapter(an_adapt_job.out).intensity
    assert (intensity.kind, intensity.low, intensity.high) == ("window", -10, 90)


def test_out_of_gpu_memory_steps_down_one_preset_and_says_so(
    an_adapt_job: AdaptJob, a_listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.methods import lora
    from FewShotSegLib.training import prompted_recipe

    tried = []
    real = lora.adapt

    def short_of_memory(inputs: Any, recipe: Any, run: Any) -> Any:
        tried.append((recipe.preset, recipe.encoder_blocks))
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(inputs, recipe, run)

    monkeypatch.setattr(lora, "adapt", short_of_memory)
    # Any resolution that depends on the preset.
    monkeypatch.setattr(prompted_recipe, "COMPACT", presets.PRESETS["12GB"])
    monkeypatch.setattr(lora, "resolve", resolve_like_sam)
    record = run(replace(an_adapt_job, recipe={**QUICK, "preset": "12GB"}), a_listener)
    assert [preset for preset, _ in tried] == ["12GB", "8GB"]
    assert any("preset 8GB" in warning for warning in record["warnings"])
    assert load_adapter(an_adapt_job.out).recipe["preset"] == "8GB"


def resolve_like_sam(recipe: Any, architecture: str, device: torch.device) -> Any:
    preset = {"12GB": 6, "8GB": 3, "cpu": 1}[recipe.preset]
    return replace(recipe, encoder_blocks=preset, checkpointing=False, pool_size=0)


def test_when_no_preset_fits_the_user_is_told_what_to_do(
    an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.methods import lora

    def never(*arguments: Any, **rest: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(lora, "adapt", never)
    with pytest.raises(InputError, match="choose --device cpu"):
        run(an_adapt_job)


def test_asking_for_a_gpu_where_there_is_none_is_refused(
    an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="No GPU"):
        run(replace(an_adapt_job, device="cuda"))


def test_working_on_the_cpu_for_want_of_a_gpu_is_said(
    an_adapt_job: AdaptJob, a_listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(replace(an_adapt_job, device="auto"), a_listener)
    assert "CPU" in a_listener.messages[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "Unknown method 'magic'"),
        ({"base": "vit_z"}, "No base model or file is called vit_z"),
        ({"recipe": {"stpes": 3}}, 'Unknown recipe option "stpes"; did you mean "steps"'),
        ({"recipe": {"rank": 0}}, '"rank" must be between'),
        ({"exemplars": ()}, "At least one exemplar"),
        ({"exemplars": (ExemplarFiles("no.nrrd", "no.seg.nrrd"),)}, r"no\.nrrd"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes: dict[str, Any], sentence: str, an_adapt_job: AdaptJob) -> None:
    with pytest.raises(InputError, match=sentence):
        run(replace(an_adapt_job, **changes))
    assert files_in(Path(an_adapt_job.out).parent) == set()


def test_an_output_that_cannot_be_written_is_refused_before_training(
    an_adapt_job: AdaptJob, tmp_path: Path, a_listener: Listener
) -> None:
    (tmp_path / "a file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match="Cannot write"):
        run(replace(an_adapt_job, out=str(tmp_path / "a file" / "a.safetensors")), a_listener)
    assert not any("adapting" in message for message in a_listener.messages)


# ------------------------------------------------------------------------------------------------------ kill and resume

KILL_AFTER = """
import os, signal, sys
from pathlib import Path
from FewShotSegLib.cli.main import main
from FewShotSegLib.training import fit as training
real, saved = training._TrainingState.save, []
def save(self, path):
    real(self, path)
    saved.append(path)
    if len(saved) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
training._TrainingState.save = save
sys.exit(main(["job", sys.argv[2], "--json"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_a_killed_job_leaves_no_half_output_and_resumes_to_the_same_bytes(
    an_adapt_job: AdaptJob, tmp_path: Path
) -> None:
    recipe = {**QUICK, "steps": 6, "checkpoint_seconds": 0.0}
    undisturbed = replace(an_adapt_job, out=str(tmp_path / "undisturbed" / "organs.safetensors"), recipe=recipe)
    killed = replace(an_adapt_job, recipe=recipe)
    run(undisturbed)
    save_job(killed, tmp_path / "job.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILL_AFTER, "3", str(tmp_path / "job.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files_in(Path(killed.out).parent) == {"organs.checkpoint.pt"}
    listener = Listener()
    run(killed, listener)
    steps = [p.step for p in listener.heard if p.message == "adapting"]
    assert steps == [4, 5, 6]
    assert Path(killed.out).read_bytes() == Path(undisturbed.out).read_bytes()
    assert files_in(Path(killed.out).parent) == {"organs.safetensors", "organs.result.json"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_a_job_killed_at_any_moment_comes_to_the_same_end(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    recipe = {**QUICK, "steps": 20, "checkpoint_seconds": 0.0}
    undisturbed = replace(an_adapt_job, out=str(tmp_path / "undisturbed.safetensors"), recipe=recipe)
    run(undisturbed)
    killed = replace(an_adapt_job, recipe=recipe)
    save_job(killed, tmp_path / "job.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "FewShotSegLib", "job", str(tmp_path / "job.json")]
    out = Path(killed.out)
    for attempt in range(40):
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 3.0 + attempt
        while worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        unfinished = {"organs.checkpoint.pt", "organs.checkpoint.part.pt", "organs.part.safetensors"}
        assert files_in(out.parent) <= {out.name, "organs.result.json", *unfinished}
        if out.exists():
            break
    assert out.read_bytes() == Path(undisturbed.out).read_bytes()


def test_a_damaged_checkpoint_is_named(an_adapt_job: AdaptJob) -> None:
    checkpoint = Path(an_adapt_job.out).with_name("organs.checkpoint.pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(InputError, match=r"organs\.checkpoint\.pt is damaged"):
        run(an_adapt_job)


def test_a_checkpoint_of_another_run_is_not_mixed_in(an_adapt_job: AdaptJob) -> None:
    class Killed(BaseException):
        pass

    job = replace(an_adapt_job, recipe={**QUICK, "checkpoint_seconds": 0.0})
    with pytest.raises(Killed):
        run(job, Listener(2, Killed()))
    with pytest.raises(InputError, match="belongs to another run"):
        run(replace(job, seed=99))


# -------------------------------------------------------------------------------------------------------------- segment


def test_segmenting_writes_named_structures_on_the_grid_of_the_image(a_segment_job: SegmentJob) -> None:
    run(a_segment_job)
    out = Path(a_segment_job.out)
    assert files_in(out) == {"p1.seg.nrrd", "p1.result.json", "p2.seg.nrrd", "p2.result.json"}
    labelmap = load_labelmap(out / "p1.seg.nrrd")
    assert labelmap.structures == {1: "disc", 2: "square"}
    assert labelmap.volume.same_geometry(load_volume(a_segment_job.images[0]))


def test_the_record_of_an_image_holds_volumes_that_agree_with_its_labelmap(a_segment_job: SegmentJob) -> None:
    run(a_segment_job)
    record = json.loads((Path(a_segment_job.out) / "p1.result.json").read_text(encoding="utf-8"))
    labels = load_labelmap(Path(a_segment_job.out) / "p1.seg.nrrd").volume
    for name, row in record["metrics"]["structures"].items():
        voxels = int((labels.array == {"disc": 1, "square": 2}[name]).sum())
        assert row["voxels"] == voxels
        assert row["volume_ml"] == pytest.approx(voxels * 1 * 1 * 4 / 1000)


def test_probability_maps_agree_with_the_labels(a_segment_job: SegmentJob) -> None:
    run(replace(a_segment_job, probabilities=True))
    out = Path(a_segment_job.out)
    labels = load_labelmap(out / "p1.seg.nrrd").volume.array
    disc = load_volume(out / "p1.disc.probability.nrrd").array
    square = load_volume(out / "p1.square.probability.nrrd").array
    assert 0 <= disc.min() <= disc.max() <= 1
    assert (disc[labels == 1] >= 0.5).all()
    assert (disc[labels == 1] >= square[labels == 1]).all()


def test_an_image_that_is_done_is_not_done_again(a_segment_job: SegmentJob, a_listener: Listener) -> None:
    run(a_segment_job)
    made = {path.name: path.stat().st_mtime_ns for path in Path(a_segment_job.out).iterdir()}
    result = run(a_segment_job, a_listener)
    assert made == {path.name: path.stat().st_mtime_ns for path in Path(a_segment_job.out).iterdir()}
    assert all(record["skipped"] for record in result["images"])
    assert sum("there already" in message for message in a_listener.messages) == 2


@pytest.mark.parametrize("change", ["image", "option", "adapter", "output", "prompts"])
def test_an_image_is_done_again_when_anything_that_matters_has_changed(
    change: str, a_segment_job: SegmentJob, tmp_path: Path
) -> None:
    job = replace(a_segment_job, images=a_segment_job.images[:1])
    run(job)
    if change == "image":
        volume = load_volume(job.images[0])
        save_volume(volume.like(volume.array + np.int16(1)), job.images[0])
    elif change == "option":
        job = replace(job, largest_component=True)
    elif change == "adapter":
        adapter = load_adapter(job.adapter or "")
        save_adapter(replace(adapter, seed=adapter.seed + 1), job.adapter or "")
    elif change == "prompts":
        save_prompts([a_click_on_the_disc()], tmp_path / "clicks.json")
        job = replace(job, prompts=str(tmp_path / "clicks.json"))
    else:
        (Path(job.out) / "p1.seg.nrrd").write_bytes(b"cut off")
    assert not run(job)["images"][0].get("skipped")
    assert load_labelmap(Path(job.out) / "p1.seg.nrrd").volume.shape == (6, 64, 64)


def a_click_on_the_disc() -> Prompt:
    return Prompt(0, 2, np.array([[22.0, 22.0, 2.0]]), np.array([1]), structure="disc")


def test_a_base_model_segments_with_prompts_alone(a_tiny_base: str, tmp_path: Path) -> None:
    image, _ = write_discs(tmp_path, "p", 0)
    save_prompts([a_click_on_the_disc()], tmp_path / "clicks.json")
    job = SegmentJob((str(image),), str(tmp_path / "o"), prompts=str(tmp_path / "clicks.json"), base=a_tiny_base)
    run(job)
    assert load_labelmap(tmp_path / "o" / "p.seg.nrrd").structures == {1: "disc"}


@pytest.fixture
def a_supported_job(a_tiny_base: str, tmp_path: Path) -> SegmentJob:
    image, labelmap = write_discs(tmp_path, "supporting case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    new, _ = write_discs(tmp_path, "p", 1)
    return SegmentJob(
        (str(new),),
        str(tmp_path / "o"),
        support=(files,),
        support_recipe={"pictures": 4},
        base=a_tiny_base,
        device="cpu",
    )


def test_a_support_set_segments_without_any_training(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    truth = load_labelmap(tmp_path / "p.seg.nrrd")
    record = run(a_supported_job)
    found = load_labelmap(tmp_path / "o" / "p.seg.nrrd")
    assert found.structures == {1: "disc", 2: "square"}
    for value in (1, 2):
        a, b = found.volume.array == value, truth.volume.array == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6  # the network is untrained
    assert record["job"]["support_recipe"] == {"pictures": 4}
    assert not [path for path in tmp_path.rglob("*.safetensors") if path.parent.name == "o"]


def test_a_support_set_that_changes_is_looked_at_again(a_supported_job: SegmentJob) -> None:
    run(a_supported_job)
    assert run(a_supported_job)["images"][0].get("skipped")
    other = replace(a_supported_job.support[0], slices=(2,))
    assert not run(replace(a_supported_job, support=(other,)))["images"][0].get("skipped")


def test_a_support_set_and_the_images_are_seen_in_the_chosen_window(a_supported_job: SegmentJob) -> None:
    found = run(a_supported_job)["images"][0]["metrics"]["structures"]["disc"]["voxels"]
    nothing_shows = {"kind": "window", "low": 5000.0, "high": 6000.0}
    blind = run(replace(a_supported_job, intensity=nothing_shows))["images"][0]
    assert not blind.get("skipped")
    assert blind["metrics"]["structures"].get("disc", {"voxels": 0})["voxels"] != found


def test_clicks_override_what_a_support_set_says(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    free = run(a_supported_job)["images"][0]["metrics"]["structures"]["disc"]["voxels"]
    save_prompts([Prompt(0, 2, np.array([[55.0, 5.0, 2.0]]), np.array([1]), structure="disc")], tmp_path / "c.json")
    clicked = run(replace(a_supported_job, prompts=str(tmp_path / "c.json")))
    assert clicked["images"][0]["metrics"]["structures"]["disc"]["voxels"] != free


def test_a_support_set_in_a_file_is_an_adapter_too(
    a_supported_job: SegmentJob, a_tiny_base: str, tmp_path: Path
) -> None:
    given = a_supported_job.support[0]
    exemplar = load_exemplar(given.image, given.labelmap, axis=0, slices=given.slices)
    support = support_adapter([exemplar], load_base(a_tiny_base), recipe=SupportRecipe(pictures=4))
    save_adapter(support, tmp_path / "support.safetensors")
    run(a_supported_job)
    found = load_labelmap(tmp_path / "o" / "p.seg.nrrd").volume.array
    run(SegmentJob(a_supported_job.images, str(tmp_path / "o2"), str(tmp_path / "support.safetensors"), device="cpu"))
    np.testing.assert_array_equal(load_labelmap(tmp_path / "o2" / "p.seg.nrrd").volume.array, found)


def test_looking_at_a_support_set_can_be_cancelled(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    listener = Listener(2, Cancelled())
    with pytest.raises(Cancelled):
        run(a_supported_job, listener)
    assert "exemplar picture" in listener.messages[-1]
    assert not list((tmp_path / "o").glob("*.seg.nrrd"))


def test_a_support_set_goes_with_an_adapter_of_many_tasks_and_with_no_other(
    a_supported_job: SegmentJob, an_adapt_job: AdaptJob
) -> None:
    run(replace(an_adapt_job, method="lora"))
    with pytest.raises(InputError, match=r"has learned disc, square.*Leave one of the two out"):
        run(replace(a_supported_job, adapter=an_adapt_job.out))
    recipe = {key: value for key, value in QUICK.items() if key != "token_prompts"}
    run(replace(an_adapt_job, method="gmiseg", recipe=recipe))
    alone = run(a_supported_job)["images"][0]["digest"]
    assert run(replace(a_supported_job, adapter=an_adapt_job.out, base=None))["images"][0]["digest"] != alone
    with pytest.raises(InputError, match="knows no structure by name"):
        run(replace(a_supported_job, adapter=an_adapt_job.out, base=None, support=(), support_recipe={}))


def test_a_failing_image_does_not_stop_the_others_and_is_named_at_the_end(a_segment_job: SegmentJob) -> None:
    first, second = a_segment_job.images
    Path(first).write_bytes(b"no image")
    with pytest.raises(segment.SomeImagesFailed, match=r"1 of 2 images .*p1\.nrrd") as caught:
        run(a_segment_job)
    assert files_in(a_segment_job.out) == {"p1.result.json", "p2.seg.nrrd", "p2.result.json"}
    assert [("error" in record) for record in caught.value.result["images"]] == [True, False]
    assert caught.value.result["images"][1]["image"] == second


def test_a_volume_with_nan_is_refused_by_name(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    import SimpleITK as sitk

    array = np.zeros((4, 8, 8), np.float32)
    array[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "holed.nrrd")
    with pytest.raises(InputError, match=r"holed\.nrrd.*NaN"):
        run(replace(a_segment_job, images=(str(tmp_path / "holed.nrrd"),)))


def test_cancelling_a_segmentation_keeps_what_is_whole(a_segment_job: SegmentJob) -> None:
    with pytest.raises(Cancelled):
        run(a_segment_job, Listener(1333, Cancelled()))  # the second of six slices of the second image
    assert files_in(a_segment_job.out) == {"p1.seg.nrrd", "p1.result.json"}


def test_two_images_that_would_be_written_as_one_are_refused(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"both be written as p1\.seg\.nrrd"):
        run(replace(a_segment_job, images=(a_segment_job.images[0], str(tmp_path / "other" / "p1.nii.gz"))))


def test_an_image_is_never_overwritten_by_its_own_segmentation(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    image = tmp_path / "here" / "p.seg.nrrd"
    save_volume(load_volume(a_segment_job.images[0]), image)
    before = image.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        run(replace(a_segment_job, images=(str(image),), out=str(image.parent)))
    assert image.read_bytes() == before


def test_an_adapter_for_another_base_is_refused_naming_both(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    save_tiny_compact(tmp_path / "models" / "other.safetensors", seed=1)
    registry.add(tmp_path / "models" / "other.safetensors", "compact", "other")
    with pytest.raises(InputError, match=r"made for the base model tiny .*got other"):
        run(replace(a_segment_job, base="other"))


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_damaged_adapter_is_refused(damage: str, a_segment_job: SegmentJob) -> None:
    path = Path(a_segment_job.adapter or "")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"organs\.safetensors"):
        run(a_segment_job)


def test_an_adapter_whose_base_is_unknown_here_says_which_it_needs(a_segment_job: SegmentJob, a_home: Path) -> None:
    (a_home / "models.json").unlink()
    with pytest.raises(InputError, match="made for the base model tiny"):
        run(a_segment_job)


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluating_a_reference_against_itself_gives_one(tmp_path: Path) -> None:
    write_discs(tmp_path / "ref", "a", 1)
    (tmp_path / "ref" / "a.nrrd").unlink()
    record = run(EvaluateJob(str(tmp_path / "ref"), str(tmp_path / "ref"), str(tmp_path / "scores" / "m.csv")))
    assert files_in(tmp_path / "scores") == {"m.csv", "m.json", "m.png", "m.result.json"}
    assert [row["dsc"] for row in record["metrics"]["rows"]] == [1.0] * 4


def test_two_files_are_compared_as_one_case(tmp_path: Path) -> None:
    _, one = write_discs(tmp_path, "a", 1)
    _, other = write_discs(tmp_path, "b", 2)
    record = run(EvaluateJob(str(one), str(other), str(tmp_path / "m.csv")))
    assert 0 < record["metrics"]["rows"][0]["dsc"] < 1


def test_a_folder_against_a_file_is_refused(tmp_path: Path) -> None:
    _, one = write_discs(tmp_path, "a", 1)
    with pytest.raises(InputError, match="both be folders"):
        run(EvaluateJob(str(tmp_path), str(one), str(tmp_path / "m.csv")))


# -------------------------------------------------------------------------------------------------------------- general


def test_paths_with_spaces_and_umlauts_work_from_end_to_end(a_tiny_base: str, tmp_path: Path) -> None:
    folder = tmp_path / "Prüfung Übersicht 脾臓"
    image, labelmap = write_discs(folder, "Fall 1 é Leber", 1)
    out = str(folder / "Ärzte adapter.safetensors")
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(2, 4))
    run(AdaptJob(out, exemplars=(files,), base=a_tiny_base, recipe=QUICK, device="cpu"))
    run(SegmentJob((str(image),), str(folder / "Ergebnis ä"), out, device="cpu"))
    (folder / "Wahrheit").mkdir()
    labelmap.rename(folder / "Wahrheit" / labelmap.name)
    record = run(EvaluateJob(str(folder / "Ergebnis ä"), str(folder / "Wahrheit"), str(folder / "Maße.csv")))
    assert {row["case"] for row in record["metrics"]["rows"]} == {"Fall 1 é Leber"}


def test_no_socket_is_opened_by_adapt_or_segment(
    an_adapt_job: AdaptJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*arguments: object, **rest: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(an_adapt_job)
    image, _ = write_discs(tmp_path, "p1", 1)
    run(SegmentJob((str(image),), str(tmp_path / "segmented"), an_adapt_job.out, device="cpu"))


def test_an_oblique_volume_keeps_its_place(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    volume = load_volume(a_segment_job.images[0])
    turn, c, s = np.eye(4), np.cos(0.3), np.sin(0.3)
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ np.diag([0.7, -1.3, 3.0, 1.0])
    affine[:3, 3] = 12.5, -80.0, 7.0
    save_volume(Volume(volume.array, affine), tmp_path / "oblique.nrrd")
    run(replace(a_segment_job, images=(str(tmp_path / "oblique.nrrd"),)))
    found = load_labelmap(Path(a_segment_job.out) / "oblique.seg.nrrd")
    assert np.allclose(found.volume.affine, affine, atol=1e-6)
