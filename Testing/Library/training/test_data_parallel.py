"""Two processes that train together: what they learn is what one process with twice the batch learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.launch import Launch
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.jobs.run import run
from FewShotSegLib.training import data_parallel, fit, prompted
from FewShotSegLib.training.checkpoint import read_checkpoint
from Testing.conftest import QUICK, write_discs
from Testing.Library.training import two_processes as runs

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two processes")
    runs.write_auxiliary(folder)
    return folder


@pytest.fixture(scope="module")
def both(a_folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two processes has found, and how it ended."""
    ended = runs.two_processes(runs.__name__, str(a_folder))
    found = []
    for rank, process in enumerate(ended):
        path = a_folder / f"{rank}.pt"
        assert path.exists(), process.stderr
        found.append({**torch.load(path, weights_only=False), "said": process.stderr})
    return found[0], found[1]


@pytest.fixture(scope="module")
def one(a_folder: Path) -> dict[str, Any]:
    """What one process with twice the batch finds."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((fit, "time"), (fit, "write_checkpoint"), (prompted, "training_precision")):
            patch.setattr(module, name, getattr(module, name))  # what the runs replace comes back
        patch.setenv("FEWSHOTSEG_CACHE", "")
        return {
            "on numbers": runs.on_numbers(a_folder, 2),
            "methods": runs.methods(a_folder, 2),
            "half": runs.methods(a_folder, 1),
        }


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Between the tensors of two adapters, taken as one vector each."""
    ours, theirs = first["tensors"], second["tensors"]
    assert ours.keys() == theirs.keys()
    return float(np.sqrt(sum(((ours[name] - theirs[name]) ** 2).sum() for name in ours)))


# ---------------------------------------------------------------------------------------------------------- the results


@pytest.mark.parametrize("name", ["lora", "paper", "asap", "gmiseg"])
def test_a_promptable_model_learns_what_twice_the_batch_teaches_it(name: str, both: Any, one: Any) -> None:
    first, second = (found["methods"][name] for found in both)
    alone = one["methods"][name]
    assert distance(first, second) == 0
    assert distance(first, alone) < 1e-5  # single precision; half the batch is a thousand times as far away
    assert distance(one["half"][name], alone) > 1e-2
    for metric in ("held_back_dice", "best_step", "steps", "stopped_by"):
        assert first["metrics"][metric] == pytest.approx(alone["metrics"][metric], abs=1e-4)
    assert first["metrics"]["estimated_dice"] == (
        alone["metrics"]["estimated_dice"] and pytest.approx(alone["metrics"]["estimated_dice"], abs=1e-4)
    )


def test_a_volume_network_learns_what_twice_the_batch_teaches_it(both: Any, one: Any) -> None:
    first, second = (found["methods"]["unet"] for found in both)
    alone = one["methods"]["unet"]
    assert distance(first, second) == 0
    # Biases before a normalization have no gradient but rounding, and AdamW makes whole steps of it.
    assert distance(first, alone) < 0.1
    assert distance(one["half"]["unet"], alone) > 1.0


def test_the_bandit_sees_the_gradients_of_the_whole_batch(both: Any, one: Any) -> None:
    for name, key in (("asap", "auxiliary"), ("unet", "auxiliary"), ("unet", "pretraining_of")):
        ours, alone = (found["methods"][name]["metrics"][key] for found in (both[0], one))
        rows, expected = (found.get("disc", found)["turns"] for found in (ours, alone))
        assert [row["name"] for row in rows] == [row["name"] for row in expected]
        assert any(row["cosine"] for row in rows)
        for row, other in zip(rows, expected, strict=True):
            assert row["loss"] == (other["loss"] and pytest.approx(other["loss"], abs=1e-3))
            assert row["cosine"] == (other["cosine"] and pytest.approx(other["cosine"], abs=0.01))


@pytest.mark.parametrize("name", ["plain", "accumulated", "averaged weights", "time", "plateau", "resumed"])
def test_every_kind_of_run_is_that_of_twice_the_batch(name: str, both: Any, one: Any) -> None:
    alone = one["on numbers"][name]
    for found in (each["on numbers"][name] for each in both):
        torch.testing.assert_close(found["w"], alone["w"], rtol=1e-12, atol=1e-12)
        assert (found["steps"], found["stopped_by"]) == (alone["steps"], alone["stopped_by"])
        assert found["score"] == alone["score"]  # the first process's, though the second one scored 1 more
        for row, other in zip(found["history"], alone["history"], strict=True):
            assert row == pytest.approx(other, abs=1e-12)
    assert alone["stopped_by"] == {"time": "time", "plateau": "plateau"}.get(name, "steps")


# ----------------------------------------------------------------------------------------------------- joint decisions


def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_in_all(both: Any, one: Any) -> None:
    first, second = (found["on numbers"]["not finite"] for found in both)
    assert (first["left_out"], second["left_out"], first["steps"]) == (1, 1, 6)
    assert torch.equal(first["w"], second["w"])
    assert not torch.allclose(first["w"], one["on numbers"]["plain"]["w"])


def test_what_stops_one_process_stops_all_at_the_same_step(both: Any) -> None:
    for found in both:
        stopped = found["on numbers"]["stopped"]
        assert (stopped["stopped_by"], stopped["steps"]) == ("user", 3)
        assert found["on numbers"]["cancelled"] == "Cancelled: Cancelled on request."


def test_only_the_first_process_writes_checkpoints(both: Any, a_folder: Path) -> None:
    assert [found["on numbers"]["writers"] for found in both] == [[0], []]
    left = read_checkpoint(a_folder / "seen by 2.pt", " in 2 processes")
    assert left["counters"][2] == 6


def test_a_checkpoint_of_two_processes_is_not_continued_by_one(both: Any, a_folder: Path) -> None:
    with pytest.raises(InputError, match="with other exemplars or settings"):
        runs.fitted(2, checkpoint=a_folder / "seen by 2.pt")


def test_the_processes_must_make_the_same_run(both: Any) -> None:
    for found in both:
        assert found["refused"]["other run"].startswith("InputError: The processes that train together differ in")


def test_structure_maps_are_refused_in_a_sentence(both: Any) -> None:
    for found in both:
        assert "solved for in one process, and torchrun has started 2" in found["refused"]["maps"]


def test_a_process_whose_neighbour_dies_ends_with_a_sentence(both: Any) -> None:
    assert "InputError: Training in 2 processes has ended, because another process ended" in both[0]["said"]


# ----------------------------------------------------------------------------------------------------------- the parts


def test_numbers_texts_and_tensors_come_together(both: Any) -> None:
    for found in (each["of all"] for each in both):
        # Of a parameter p = 1 that process r uses as p + r: d/dp (p + p + 1)^2 = 4 (2 p + 1).
        assert found["gradient of a square of a sum"].tolist() == [12.0]
        assert [part.unique().tolist() for part in found["means"]] == [[0.5], [2.0]]
        assert found["first"][0].tolist() == [0.0, 0.0]
        assert (found["number"], found["text"]) == (0.25, "é, first")
        assert found["gathered"] == [0, 7, 1, 7]
        assert found["everywhere"] == (True, False)
    assert [list(each["of all"]["own"]) for each in both] == [[0, 1, 2], [3, 4, 5]]


def test_prompts_without_a_target_count_in_no_process(both: Any) -> None:
    loss, gradient = runs.of_prompts()
    for found in both:
        assert found["of all"]["prompts"][0] == pytest.approx(loss, abs=1e-6)
        assert found["of all"]["prompts"][1] == pytest.approx(gradient, abs=1e-6)


def test_gradients_travel_in_pieces_of_one_type() -> None:
    parts = [torch.zeros(4), torch.zeros(4), torch.zeros(2, dtype=torch.float64), torch.zeros(8 * 2**20), torch.ones(1)]
    assert [len(bucket) for bucket in data_parallel._buckets(parts)] == [2, 1, 1, 1]


def test_a_process_alone_gets_what_it_gives() -> None:
    with data_parallel.joined(torch.device("cpu")) as device:
        value = torch.ones(2, requires_grad=True)
        assert (device, data_parallel.count(), data_parallel.is_first()) == (torch.device("cpu"), 1, True)
        assert data_parallel.summed(value) is value
        assert data_parallel.averaged(value) is value
        assert data_parallel.own([1, 2, 3]) == [1, 2, 3]
        assert data_parallel.text_of_first("a") == "a"


def test_unequal_shares_are_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "_joined", Launch(1, 1, 2))
    with pytest.raises(ValueError, match="3 items are no equal shares for 2 processes"):
        data_parallel.own([1, 2, 3])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", 2), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="than it has GPUs, which are 1; use --nproc-per-node 1"):
        data_parallel.joined(torch.device("cuda")).__enter__()


# --------------------------------------------------------------------------------------------------- the real command


def test_torchrun_makes_one_adapter_that_is_that_of_twice_the_batch(a_tiny_base: str, tmp_path: Path) -> None:
    image, labelmap = write_discs(tmp_path, "case", 0)
    out = tmp_path / "out" / "two.safetensors"
    options = {**QUICK, "steps": 3, "checkpoint_seconds": 0.0, "warmup_steps": 0}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [
        "-m",
        "FewShotSegLib",
        "adapt",
        "--json",
        "--exemplar",
        f"{image}={labelmap}@k:1,3",
        "--base",
        a_tiny_base,
    ]
    words += ["--device", "cpu", "--out", str(out), "--recipe", *(f"{name}={value}" for name, value in options.items())]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["step"] for line in said if line["type"] == "progress" and line["metrics"]] == [1, 2, 3]
    (result,) = [line["result"] for line in said if line["type"] == "result"]
    assert result["metrics"]["processes"] == 2
    assert {path.name for path in out.parent.iterdir()} == {"two.safetensors", "two.result.json"}
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    adapted = {}
    for batch in (1, 2):
        alone = str(tmp_path / f"batch {batch}.safetensors")
        recipe = {**options, "batch_size": batch}
        run(AdaptJob(alone, exemplars=(exemplar,), base=a_tiny_base, recipe=recipe, device="cpu"))
        adapted[batch] = {"tensors": load_adapter(alone).tensors}
    # Processors that have it compute in bfloat16 here, so that more than the last digits differ.
    together = {"tensors": load_adapter(out).tensors}
    assert distance(together, adapted[2]) < 0.2 * distance(adapted[1], adapted[2])
