"""Adapting from files to files: what is written, what is refused, and what a kill or a cancel leaves behind."""

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

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.launch import Launch
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.jobs import save_job
from FewShotSegLib.io.volumes import load_volume, save_volume
from FewShotSegLib.jobs import adapt
from FewShotSegLib.jobs.run import run
from FewShotSegLib.sam import presets, registry
from FewShotSegLib.training import data_parallel
from Testing.conftest import QUICK, Listener
from Testing.Library.jobs.conftest import files_in

ROOT = Path(__file__).resolve().parents[3]


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
    with pytest.raises(
        InputError, match="was trained on 1 = disc, 2 = square; the exemplars show 1 = square, 2 = disc"
    ):
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
    monkeypatch.setattr(prompted_recipe, "preset_of", lambda family, name, device: presets.PRESETS["12GB"])
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
    with pytest.raises(InputError, match=r"compute on the processor.*--device cpu"):
        run(an_adapt_job)


def test_one_of_several_processes_does_not_change_the_preset_by_itself(
    an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.methods import lora

    def never(*arguments: Any, **rest: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(lora, "adapt", never)
    monkeypatch.setattr(data_parallel, "_joined", Launch(0, 0, 2))
    monkeypatch.setattr(data_parallel, "text_of_first", lambda text: text)
    with pytest.raises(InputError, match="too little free memory for its share of this run"):
        run(an_adapt_job)


def test_all_but_the_first_process_train_along_and_write_nothing(
    an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_parallel, "is_first", lambda: False)
    record = run(an_adapt_job)
    assert record["metrics"]["steps"] == QUICK["steps"]
    assert not Path(an_adapt_job.out).parent.exists()


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
    assert {name for name in files_in(Path(killed.out).parent) if name[0] != "."} == {"organs.checkpoint.pt"}
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
        shown = {name for name in files_in(out.parent) if name[0] != "."}
        assert shown <= {out.name, "organs.result.json", "organs.checkpoint.pt"}
        if out.exists():
            break
    assert out.read_bytes() == Path(undisturbed.out).read_bytes()


def test_a_damaged_checkpoint_is_named(an_adapt_job: AdaptJob) -> None:
    checkpoint = Path(an_adapt_job.out).with_name("organs.checkpoint.pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(InputError, match=r"organs\.checkpoint\.pt cannot be continued: it is damaged"):
        run(an_adapt_job)


def test_a_checkpoint_of_another_run_is_not_mixed_in(an_adapt_job: AdaptJob) -> None:
    class Killed(BaseException):
        pass

    job = replace(an_adapt_job, recipe={**QUICK, "checkpoint_seconds": 0.0})
    with pytest.raises(Killed):
        run(job, Listener(2, Killed()))
    with pytest.raises(InputError, match="interrupted training of this name with other"):
        run(replace(job, seed=99))
