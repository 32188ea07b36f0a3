"""Runs that one process makes with a batch of two, and two processes with a batch of one each.

`python -m Testing.Library.training.two_processes FOLDER` makes them all, as one of the processes that the environment
tells of, and leaves `FOLDER/<rank>.pt`. Tests compare what two processes have left with each other, and with what the
same functions give in a process alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.io.datasets import data_sets_in
from FewShotSegLib.methods import gmiseg, lora
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.progress import Progress, Report, silent
from FewShotSegLib.training import data_parallel, fit, prompted, queries
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import DISC, QUICK, SQUARE, discs, tiny_sam, write_discs

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
SCHEDULE = fit.Schedule(6, learning_rate=0.05, weight_decay=0.3, warmup_steps=2, clip_norm=0.5)
ROWS = torch.tensor(np.random.default_rng(3).normal(size=(24, 3)))


def two_processes(module: str, *arguments: str, wait_s: float = 400) -> list[subprocess.CompletedProcess[str]]:
    """Start a module twice, told of each other as torchrun tells them; what became of both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", module, *arguments]
    running = [
        subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in "01"
    ]
    ended = []
    for process in running:
        try:
            out, error = process.communicate(timeout=wait_s)
        finally:
            process.kill()
        ended.append(subprocess.CompletedProcess(words, process.returncode, out, error))
    return ended


# ------------------------------------------------------------------------------------------------------ fit, on numbers


def a_line() -> dict[str, Tensor]:
    return {"w": torch.zeros(3, dtype=torch.float64, requires_grad=True)}


def mean_loss(parameters: dict[str, Tensor], each: int, spoiled: int = -1) -> fit.LossAt:
    """The squared error of a line on the next rows; from `spoiled` on, one step has no finite loss in process 1."""

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        count = each * data_parallel.count()
        rows = data_parallel.own(ROWS[step * count : (step + 1) * count])
        loss = data_parallel.averaged(((rows @ parameters["w"] - 1) ** 2).mean())
        if step == spoiled and not data_parallel.is_first():
            loss = loss * torch.inf
        return loss, {}

    return loss_at


def fitted(each: int, report: Report = silent, spoiled: int = -1, **options: Any) -> dict[str, Any]:
    parameters = a_line()
    schedule = replace(SCHEDULE, **options.pop("schedule", {}))
    result = fit.fit(parameters, mean_loss(parameters, each, spoiled), schedule, report=report, **options)
    facts = {"steps": result.steps, "stopped_by": result.stopped_by, "left_out": result.left_out}
    return {**facts, "score": result.best_score, "w": parameters["w"].detach().clone(), "history": result.history}


def raised_by(rank: int, step: int, error: type[Exception]) -> Report:
    def report(progress: Progress) -> None:
        if progress.step == step and data_parallel.is_first() == (rank == 0):
            raise error

    return report


def what_is_raised(call: Callable[[], Any]) -> str:
    try:
        call()
    except (InputError, Cancelled, StopAndKeepBest) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def on_numbers(folder: Path, each: int) -> dict[str, Any]:
    """What becomes of short trainings of a line."""
    mine = 0 if data_parallel.is_first() else 1
    checkpoint = folder / f"seen by {data_parallel.count()}.pt"
    runs: dict[str, Any] = {
        "plain": fitted(each),
        "accumulated": fitted(each, schedule={"accumulate": 2, "steps": 3}),
        "averaged weights": fitted(each, schedule={"ema_decay": 0.9}),
        "not finite": fitted(each, spoiled=2),
        "stopped": fitted(each, raised_by(1, 3, StopAndKeepBest)),
        "cancelled": what_is_raised(lambda: fitted(each, raised_by(1, 2, Cancelled))),
        # Scores differ between the processes; it is the first one's that count.
        "plateau": fitted(each, validate=lambda: 1.0 + mine, schedule={"validate_every": 1, "patience": 2}),
    }
    clock = iter(range(100))
    fit.time = SimpleNamespace(monotonic=lambda: float(next(clock)) if mine == 0 else 0.0)  # type: ignore[assignment]
    runs["time"] = fitted(each, schedule={"max_seconds": 5.0})
    import time

    fit.time = time
    saving: dict[str, Any] = {"checkpoint": checkpoint, "schedule": {"checkpoint_seconds": 0.0}}
    writers = []
    write = fit.write_checkpoint
    fit.write_checkpoint = lambda state, path: (writers.append(mine), write(state, path))[1]  # type: ignore[assignment]
    what_is_raised(lambda: fitted(each, raised_by(0, 4, Cancelled), **saving))
    runs["resumed"] = fitted(each, **saving)
    fit.write_checkpoint = write
    runs["writers"] = sorted(set(writers))
    return runs


# ------------------------------------------------------------------------------------------------------- whole methods


def an_exemplar(seed: int, structures: dict[int, str]) -> Exemplar:
    volume, labels = discs(np.random.default_rng(seed))
    known = np.zeros_like(labels)
    known[[1, 3]] = np.where(np.isin(labels, list(structures)), labels, 0)[[1, 3]]
    return Exemplar(volume, known, structures, axis=0, annotated_slices=(1, 3), name=f"discs {seed}")


def methods(folder: Path, each: int) -> dict[str, Any]:
    """Tensors of adapters of each method, in single precision: rounding is all that may differ."""
    prompted.training_precision = lambda device: None  # type: ignore[assignment]
    os.environ["FEWSHOTSEG_CACHE"] = str(folder / f"cache {data_parallel.count()}")
    two = {DISC: "disc", SQUARE: "square"}
    exemplars = [an_exemplar(seed, two) for seed in (0, 1)]
    options: dict[str, Any] = {**QUICK, "batch_size": each, "steps": 3, "validate_every": 2}
    auxiliary = data_sets_in(folder / "auxiliary")
    runs = {
        "lora": (lora, exemplars, {**options, "correction_probability": 1.0, "estimate_folds": 2}, ()),
        "paper": (lora, exemplars, {**options, "dice": "with background", "pool_size": 3, "encoder_blocks": 0}, ()),
        "asap": (asap, exemplars, {**options, "probe_batches": 1}, auxiliary),
        "gmiseg": (gmiseg, exemplars, {"image_size": 64, "batch_size": each, "steps": 2, "validate_every": 0}, ()),
    }
    found: dict[str, Any] = {}
    for name, (method, given, recipe, beside) in runs.items():
        inputs = AdaptInputs(base=tiny_sam(), exemplars=given, auxiliary=beside)
        adapter = method.adapt(inputs, method.Recipe(**recipe), RunContext(np.random.default_rng(5)))
        found[name] = {"tensors": adapter.tensors, "metrics": adapter.metrics}
    network = {"network": "unet", "steps": 4, "patch": (4, 32, 32), "batch_size": each, "pretraining_steps": 4}
    network |= {"validate_every": 2, "probe_batches": 1, "steps_per_turn": 2, "estimate_folds": 0}
    inputs = AdaptInputs(exemplars=[an_exemplar(seed, {DISC: "disc"}) for seed in (0, 1)], auxiliary=auxiliary)
    adapter = asap.adapt(inputs, asap.Recipe(**network), RunContext(np.random.default_rng(5)))
    found["unet"] = {"tensors": adapter.tensors, "metrics": adapter.metrics}
    return found


def write_auxiliary(folder: Path) -> None:
    for number, name in enumerate(("north", "south")):
        for case in range(2):
            write_discs(folder / "auxiliary" / name, f"case {case}", 10 * number + case + 20)


def refused(folder: Path) -> dict[str, str]:
    """What is not shared among processes, and what differs where it must not."""
    inputs = AdaptInputs(base=tiny_sam(), exemplars=[an_exemplar(0, {DISC: "disc"})])
    run = RunContext(np.random.default_rng(5))
    maps = lora.Recipe(structure_maps=True, image_size=64)
    other = str(data_parallel.is_first())
    return {
        "maps": what_is_raised(lambda: lora.adapt(inputs, maps, run)),
        "other run": what_is_raised(lambda: fitted(1, identity=other)),
    }


def of_prompts() -> tuple[float, list[float]]:
    """Loss of four prompts, one of which points at nothing, and its gradient in two numbers that change the answers."""
    rng = np.random.default_rng(8)
    answers, targets = (torch.tensor(rng.normal(size=(4, 6, 6)), dtype=torch.float32) for _ in range(2))
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    scale = torch.tensor([0.5, 0.7], requires_grad=True)
    rows = list(data_parallel.own(range(4)))
    answer = answers[rows] * scale[0] + scale[1]
    known, iou = torch.ones(len(rows), 6, 6), torch.full((len(rows), 1), 0.4) * scale[1]
    target = (targets[rows] > 0).float()
    loss = queries._masked_loss(answer, iou, target, known, weight[rows], queries.LossWeights(), queries.cross_entropy)
    loss.backward()
    data_parallel.average_gradients([scale])
    assert scale.grad is not None
    return float(loss.detach()), scale.grad.tolist()


def numbers_of_all() -> dict[str, Any]:
    mine = 0 if data_parallel.is_first() else 1
    leaf = torch.tensor([1.0 + mine], requires_grad=True)
    (data_parallel.summed(leaf) ** 2).backward()
    data_parallel.average_gradients([leaf])
    parts = [torch.full((3,), float(mine)), torch.full((2, 2), 4.0 * mine, dtype=torch.float64)]
    data_parallel.average_(parts)
    first = [torch.full((2,), float(mine))]
    data_parallel.copy_of_first_(first)
    return {
        "gradient of a square of a sum": leaf.grad,
        "means": parts,
        "first": first,
        "number": data_parallel.of_first(0.25 + mine),
        "text": data_parallel.text_of_first(("é, first", "other, and longer")[mine]),
        "gathered": data_parallel.gathered([mine, 7]),
        "everywhere": (data_parallel.everywhere(True), data_parallel.everywhere(mine == 0)),
        "own": data_parallel.own(range(6)),
        "prompts": of_prompts(),
    }


def main(folder: Path) -> None:
    with data_parallel.joined(CPU) as device:
        found = {
            "device": device,
            "of all": numbers_of_all(),
            "on numbers": on_numbers(folder, 1),
            "methods": methods(folder, 1),
            "refused": refused(folder),
        }
        rank = 0 if data_parallel.is_first() else 1
        torch.save(found, folder / f"{rank}.pt")

        def dies(progress: Progress) -> None:
            if progress.step == 2 and rank == 1:
                os._exit(9)

        sys.stderr.write(what_is_raised(lambda: fitted(1, dies)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
