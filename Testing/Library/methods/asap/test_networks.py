"""ASAP's 3-D networks: one per structure, where they start, when they stop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import StopAndKeepBest
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.methods.asap import networks as module
from FewShotSegLib.methods.asap.networks import NetworkLesson, NetworkRecipe, _best, _dice, adapt_networks
from FewShotSegLib.methods.asap.schedulers import Direct
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import weights_of
from FewShotSegLib.progress import Progress
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.patches import Case
from Testing.conftest import DISC, SQUARE, Listener, dice, discs, drawing_by_threads

CPU = torch.device("cpu")
STRUCTURES = {DISC: "disc", SQUARE: "square"}
FEW_STEPS = NetworkRecipe(steps=2, warmup_steps=1, batch_size=1, estimate_folds=0)


def test_enough_training_finds_the_disc_in_another_patient(an_rng: np.random.Generator) -> None:
    cases = [discs(an_rng) for _ in range(3)]
    exemplars = [
        Exemplar(volume, np.where(labels == DISC, 1, 0), {1: "disc"}, 0, tuple(range(6)), name=str(number))
        for number, (volume, labels) in enumerate(cases[:2])
    ]
    recipe = asap.Recipe(
        network="unet", steps=60, patch=(4, 48, 48), batch_size=2, estimate_folds=0, learning_rate=3e-3
    )
    adapter = asap.adapt(AdaptInputs(exemplars=exemplars), recipe, RunContext(an_rng))
    volume, labels = cases[2]
    found = VolumePredictor(adapter, "cpu").segment(volume).labelmap.volume.array > 0  # type: ignore[arg-type]
    assert dice(found, labels == DISC) > 0.8


def a_lesson(structures: dict[int, str] = STRUCTURES, *seeds: int) -> NetworkLesson:
    exemplars = [
        Exemplar(volume, labels, STRUCTURES, 0, tuple(range(6)), name=str(seed))
        for seed in seeds or (0,)
        for volume, labels in [discs(np.random.default_rng(seed))]
    ]
    grid, window = Grid.of(exemplars[0].volume, (4, 32, 32)), IntensitySpec("window", -200, 200)

    def direct(seed: int, *, explores: bool = False) -> Direct:
        return Direct(np.random.default_rng(seed))

    return NetworkLesson(exemplars, structures, grid, window, None, direct)


def adapted(lesson: NetworkLesson, report: Any = None, **options: Any):
    recipe = NetworkRecipe(**{**vars(FEW_STEPS), **options})
    return adapt_networks(lesson, recipe, RunContext(np.random.default_rng(0), report or Listener()))


def test_each_structure_has_a_network_and_its_share_of_the_work() -> None:
    listener = Listener()
    trained = adapted(a_lesson(), listener)
    assert trained.structures == STRUCTURES
    assert {name.partition("/")[0] for name in trained.tensors} == {str(value) for value in STRUCTURES}
    assert {name: found["steps"] for name, found in trained.metrics["structures"].items()} == {"disc": 2, "square": 2}
    assert [p.metrics["done"] for p in listener.heard if "done" in p.metrics] == [0.25, 0.5, 0.75, 1.0]
    assert (trained.metrics["estimate"], trained.metrics["estimated_dice"]) == ("not asked for", None)
    assert trained.architecture["head"] == "binary"


def test_networks_start_from_the_weights_of_a_file_and_keep_their_own_last_layer(tmp_path: Path) -> None:
    lesson = a_lesson({DISC: "disc"})
    network = build("unet", patch=lesson.grid.patch, out_channels=5, seed=99)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    still = {"learning_rate": 1e-9, "weight_decay": 0.0, "steps": 1}
    loaded = adapted(lesson, weights=str(tmp_path / "weights.pt"), **still).tensors
    fresh = adapted(lesson, **still).tensors
    head = "model.2."
    for name, value in weights_of(network).items():
        ours = loaded[f"{DISC}/{name}"]
        assert np.allclose(ours, fresh[f"{DISC}/{name}"] if name.startswith(head) else value, atol=1e-6), name


def test_batches_drawn_ahead_by_threads_as_on_a_gpu_teach_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = a_lesson({DISC: "disc"})
    at_once = adapted(lesson, steps=5).tensors
    threads = drawing_by_threads(monkeypatch, module, module._Learner, "_batch")
    ahead = adapted(lesson, steps=5).tensors
    assert threading.get_ident() not in threads != set()
    assert all(np.array_equal(ahead[name], value) for name, value in at_once.items())


def test_the_run_can_be_stopped_once_a_network_is_there_and_names_what_has_none() -> None:
    class Presser(Listener):
        def __call__(self, progress: Progress) -> None:
            super().__call__(progress)
            if progress.can_stop and "estimating" in progress.message:
                raise StopAndKeepBest

    listener = Presser()
    trained = adapted(a_lesson(STRUCTURES, 0, 1), listener, estimate_folds=2, validate_every=1)
    assert trained.structures == {DISC: "disc"}
    (warned,) = [progress.message for progress in listener.heard if progress.kind == "warning"]
    assert warned == "Stopped before square had been learned: the adapter will not segment them."


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([], (None, None)),
        ([[(3, 0.2)], []], (None, None)),
        ([[(3, 0.2), (6, 0.9), (9, 0.8)]], (6, 0.9)),
        ([[(3, 0.2), (6, 0.9), (9, 0.4)], [(3, 0.8), (6, 0.3), (9, 0.7)]], (6, 0.6)),
        ([[(3, 0.2), (6, 0.9), (9, 1.0)], [(3, 0.9), (6, 0.4)]], (6, 0.65)),  # a fold that ran out of time
    ],
)
def test_the_best_step_is_that_of_the_highest_mean_over_folds(
    curves: list[list[tuple[int, float]]], expected: tuple[int | None, float | None]
) -> None:
    step, score = _best(curves)
    assert (step, score) == (expected[0], pytest.approx(expected[1]))


class Bright(nn.Module):
    """Takes for the structure what is brighter than one half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1)


def test_dice_is_that_of_the_known_voxels() -> None:
    rng = np.random.default_rng(0)
    image, shape = rng.random((6, 20, 20), np.float32), (6, 20, 20)
    mask, known = rng.random(shape) < 0.4, rng.random(shape) < 0.7
    grid = Grid((1.0, 1.0, 1.0), (4, 16, 16))

    def validated(mask: np.ndarray, known: np.ndarray | None) -> float:
        return _dice(Bright(), Case(image, mask, known), grid, CPU, None)

    found = image > 0.5
    assert validated(mask, None) == pytest.approx(dice(found, mask))
    assert validated(mask, known) == pytest.approx(dice(found[known], mask[known]))
    assert validated(np.zeros_like(mask), ~found) == 1  # nothing there, nothing found where it is known
