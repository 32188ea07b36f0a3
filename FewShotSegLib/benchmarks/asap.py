"""`fewshotseg benchmark asap`: comparison of auxiliary data selection methods on real cases.

Targets are single structures with three annotated cases; arms are every other structure of the other data sets, and of
the target's own data set, on patients that are neither exemplars nor test cases. All methods use the same exemplars and
the same number of steps on them; before these, all but "Direct" are pre-trained on auxiliary data. "Direct, pretrained"
does so with random arms, the others with their own selection. "Oracle" trains with one arm that we named for the
target, the same structure in other images if there is one: the result of a perfect selection. With `--folds` the
exemplars are other cases in each fold, as in the paper's cross-validation. `--networks sam` adapts the promptable base
model and scores it without prompts; it needs no pretraining, so rows that differ only in that are the same. Every run
is stored as one line of JSON, so an interrupted benchmark resumes where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.benchmarks.asap_cost import costs
from FewShotSegLib.benchmarks.datasets import DATASETS
from FewShotSegLib.benchmarks.datasets import PublicDataSet as Known
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import InputError
from FewShotSegLib.inference.load import predictor_for
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.datasets import CaseFiles, DataSet
from FewShotSegLib.io.files import write_text_whole, written_whole
from FewShotSegLib.jobs.notes import Notes
from FewShotSegLib.jobs.segment import segmentation_of
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.progress import silent
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.registry import DEFAULT as DEFAULT_BASE
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.visualization.charts import MOST_CURVES, curves_chart

logger = logging.getLogger(__name__)

METHODS: dict[str, dict[str, Any]] = {
    "Direct": {"scheduler": "direct", "pretraining": "none"},
    "Direct, pretrained": {"scheduler": "direct", "pretraining": "by lot"},
    "GMS": {"scheduler": "gms"},
    "MTL": {"scheduler": "mtl"},
    "DAL (UCB1)": {"scheduler": "dal_ucb1"},
    "DAL (EXP3 by its equations)": {"scheduler": "dal_exp3"},
    "Random": {"scheduler": "random"},
    "ASAP": {"scheduler": "asap"},
    "ASAP, start by lot": {"scheduler": "asap", "pretraining": "by lot"},
    "ASAP, single batches compared": {"scheduler": "asap", "gradients": "step"},
    "ASAP, paper's reading": {"scheduler": "asap", "reading": "paper", "pretraining": "by lot", "finish": 0.0},
    "ASAP, the target alone after the start": {"scheduler": "asap", "finish": 1.0},
    "Oracle": {"scheduler": "random"},
    "Oracle, the target alone after the start": {"scheduler": "random", "finish": 1.0},
}
DEFAULT = [name for name in METHODS if "," not in name or name == "Direct, pretrained"]
SHOTS = 3  # fewer if the data set has at most one other case
CPU = torch.device("cpu")
MOST_SLICES = 48  # of a case, evenly spread
MOST_CASES = 6  # of an auxiliary data set
PATCH = (12, 80, 80)


@dataclass(frozen=True)
class Target:
    """A target structure: `cases` annotated, the others of the data set for testing, arms disjoint from both."""

    data_set: str
    structure: str
    labels: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    oracle: str
    """The arm expected to help most, named by us before any run."""


# Voxel sizes at which organs are some ten voxels wide in a patch that is trainable on a CPU.
TARGETS = {
    "chaos spleen": Target("chaos", "spleen", (4,), (3.0, 3.0, 7.7), "btcv: spleen"),
    "chaos liver": Target("chaos", "liver", (1,), (2.5, 2.5, 7.7), "btcv: liver"),
    "btcv liver": Target("btcv", "liver", (6,), (3.0, 3.0, 5.0), "chaos: liver"),
    "btcv vessel": Target("btcv", "portal and splenic vein", (10,), (2.0, 2.0, 4.0), "btcv: aorta"),
    "ms lesions": Target("ms", "lesion", (1,), (1.0, 1.0, 3.0), "brats: whole tumour"),
}


# Table 1 of the paper, Dice and mIoU (%): of a UNet, a SwinUNet and a MambaUNet, mean of five folds, three shots, 400
# epochs, on other data sets than here: liver and vessels of the Medical Segmentation Decathlon, and WMH.
PAPER_NETWORKS = ("unet", "swinunet", "mambaunet")
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "btcv liver": {
        "Direct": ((79.79, 66.97), (84.86, 74.63), (84.40, 73.67)),
        "GMS": ((90.88, 83.50), (86.99, 77.53), (90.04, 82.20)),
        "MTL": ((81.15, 71.52), (85.56, 75.80), (91.26, 84.11)),
        "DAL (UCB1)": ((91.66, 84.22), (84.06, 73.05), (87.71, 78.50)),
        "ASAP": ((92.10, 85.61), (87.27, 78.67), (92.91, 86.95)),
    },
    "btcv vessel": {
        "Direct": ((48.70, 33.13), (41.31, 26.64), (49.08, 33.39)),
        "GMS": ((48.74, 33.85), (36.16, 22.51), (46.62, 40.94)),
        "MTL": ((22.64, 13.12), (32.23, 19.58), (35.05, 21.86)),
        "DAL (UCB1)": ((45.78, 30.33), (41.24, 26.81), (44.54, 30.91)),
        "ASAP": ((49.22, 33.55), (48.05, 32.81), (49.27, 33.34)),
    },
    "ms lesions": {
        "Direct": ((57.03, 40.78), (64.24, 48.79), (62.35, 45.51)),
        "GMS": ((52.86, 39.40), (64.54, 50.91), (65.78, 50.36)),
        "MTL": ((58.13, 41.29), (53.69, 38.83), (53.81, 38.76)),
        "DAL (UCB1)": ((62.74, 46.75), (67.16, 51.47), (63.62, 48.68)),
        "ASAP": ((66.94, 53.10), (67.62, 52.04), (71.06, 56.04)),
    },
}


@dataclass(frozen=True)
class Setting:
    """Settings shared by all methods."""

    data: Path
    steps: int
    cases: int
    recipe: tuple[str, ...]
    shots: int = SHOTS
    device: torch.device = CPU
    base: str = DEFAULT_BASE  # of network "sam"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the table is written to stdout and to `<out>.md`, and if there are results for several
    training lengths, curves to `<out>.png`.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if chosen.cost:
        device = choose_device(chosen.device, logger.info)
        for network in chosen.networks:
            sys.stdout.write(costs(network, chosen.steps, repeats=9, device=device) + "\n")
        return 0
    if chosen.data is None or not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data, or measure time with --cost.")
    device = choose_device(chosen.device, logger.info)
    setting = Setting(chosen.data, chosen.steps, chosen.cases, tuple(chosen.recipe), chosen.shots, device, chosen.base)
    record = Path(f"{chosen.out}.jsonl")
    done = {_key(run) for run in results_in(record)}
    for target in chosen.targets:
        for network in chosen.networks:
            for seed, fold in itertools.product(range(chosen.seeds), range(chosen.folds)):
                for method in chosen.methods:
                    key = {"target": target, "network": network, "method": method, "seed": seed, "fold": fold}
                    key |= {"shots": setting.shots, "steps": setting.steps}
                    if _key(key) in done:
                        continue
                    run = key | _run(TARGETS[target], method, network, seed, fold, setting)
                    logger.info("%s", {key: value for key, value in run.items() if key != "turns"})
                    add_result(record, run)
    table = _table(results_in(record))
    write_text_whole(Path(f"{chosen.out}.md"), table)
    curves = _curves(results_in(record))
    if curves:
        with written_whole(Path(f"{chosen.out}.png")) as part:
            part.write_bytes(curves_chart(curves, "steps").light)
    sys.stdout.write(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark asap", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--cost", action="store_true", help="measure time and memory only; needs no data")
    parser.add_argument("--out", default="asap", help="prefix of the result files")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=list(METHODS), metavar="NAME")
    parser.add_argument("--networks", nargs="+", default=["unet"], choices=("unet", "swinunet", "mambaunet", "sam"))
    parser.add_argument("--base", default=DEFAULT_BASE, help="base model of network sam")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--folds", type=int, default=1, help="how often other cases are the exemplars (the paper: 5)")
    parser.add_argument("--shots", type=int, default=SHOTS, help="annotated cases (the paper: 5, 3, 2)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--cases", type=int, default=4, help="most test cases per target")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    return parser


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("target", "network", "method", "seed", "fold", "shots", "steps"))


# ---------------------------------------------------------------------------------------------------------------- run


def _run(target: Target, method: str, network: str, seed: int, fold: int, setting: Setting) -> dict[str, Any]:
    """Adapt once and score the result on cases used neither as exemplars nor as arms."""
    known = _known(target)
    shots, tests, rest = _split(known, setting, fold)
    auxiliary = arms_for(target, setting.data, rest)
    if method.startswith("Oracle"):
        auxiliary = _only(auxiliary, target.oracle)
    recipe = asap.Recipe(
        **METHODS[method],
        network=network,
        steps=setting.steps,
        estimate_folds=0,
        validate_every=0,
        guard="off",
        spacing_mm=target.spacing_mm,
        patch=PATCH,
    )
    recipe = with_overrides(recipe, setting.recipe)
    base = load_base(setting.base, device=str(setting.device)) if asap.needs_base(recipe) else None
    started = time.monotonic()
    inputs = AdaptInputs(
        base,
        exemplars=[_exemplar(known, image, target) for image in shots],
        auxiliary=auxiliary,
        intensity=known.intensity,
    )
    adapter = asap.adapt(inputs, recipe, RunContext(np.random.default_rng(seed), device=setting.device))
    seconds = time.monotonic() - started
    predictor = predictor_for(adapter, setting.base, setting.device)
    found = [_score(predictor, known, image, target) for image in tests]
    scores = [score for score in found if score is not None]
    chosen = adapter.metrics.get("auxiliary") or {"arms": [], "turns": []}
    return {
        "dice": float(np.mean([d for d, _ in scores])),
        "iou": float(np.mean([j for _, j in scores])),
        "cases": len(scores),
        "seconds": round(seconds, 1),
        "arms": len(chosen["arms"]),
        "pretraining": _counted(adapter.metrics.get("pretraining_of", {}).get(target.structure)),
        "turns": [(row["turn"], row["name"], row["cosine"]) for row in chosen["turns"] if row["turn"] > 0],
    }


def _counted(chosen: dict[str, Any] | None) -> dict[str, int]:
    """How often each arm was selected in pre-training."""
    return dict(Counter(row["name"] for row in (chosen or {"turns": []})["turns"] if row["turn"] > 0))


def _known(target: Target) -> Known:
    """The data set with the target as its only structure."""
    return replace(DATASETS[target.data_set], structures={value: target.structure for value in target.labels})


def _split(known: Known, setting: Setting, fold: int) -> tuple[list[Path], list[Path], list[Path]]:
    """Exemplars, test cases, and the cases for arms of the same data set: all others. Each fold begins where the
    exemplars of the previous one end, or one case later where that would repeat an earlier fold.
    """
    images = sorted(setting.data.glob(known.images))
    shots = min(setting.shots, len(images) - 1)
    rounds = fold * shots // math.lcm(shots, len(images))
    first = (fold * shots + rounds) % len(images)
    images = [*images[first:], *images[:first]]
    tests = images[shots : shots + setting.cases]
    return images[:shots], tests, images[shots + len(tests) :]


def _only(data_sets: Sequence[DataSet], arm: str) -> list[DataSet]:
    """The data set of one arm, with only its structure; empty if it has no cases."""
    name, structure = arm.split(": ")
    return [
        replace(data_set, structures={structure: (data_set.structures or {})[structure]})
        for data_set in data_sets
        if data_set.name == name
    ]


def _exemplar(known: Known, image: Path, target: Target) -> Exemplar:
    volume, labelmap = known.load(image)
    volume, labels = _thinned(volume, labelmap.volume.array)
    return Exemplar(volume, labels, known.structures, 0, tuple(range(len(labels))), name=image.name)


def _thinned(volume: Volume, labels: np.ndarray) -> tuple[Volume, np.ndarray]:
    every = max(1, -(-volume.shape[0] // MOST_SLICES))
    affine = volume.affine.copy()
    affine[:3, 2] *= every
    return Volume(volume.array[::every], affine), labels[::every]


def _score(
    predictor: Predictor | VolumePredictor, known: Known, image: Path, target: Target
) -> tuple[float, float] | None:
    """Dice and IoU of a case, segmented without prompts; None if the structure is absent."""
    volume, labelmap = known.load(image)
    volume, labels = _thinned(volume, labelmap.volume.array)
    truth = np.isin(labels, target.labels)
    if not truth.any():
        return None
    found = segmentation_of(volume, [], predictor, SegmentOptions(axis=0), Notes(silent)).labelmap.volume.array > 0
    both, either = np.count_nonzero(found & truth), np.count_nonzero(found | truth)
    return 2 * both / (both + either), both / either


def arms_for(target: Target, data: Path, rest: Sequence[Path]) -> list[DataSet]:
    """Every structure of the other data sets, and the other structures of the target's own, on the cases in `rest`."""
    found = []
    for name, known in DATASETS.items():
        own = name == target.data_set
        images = list(rest) if own else sorted(data.glob(known.images))
        labels = {v: s for v, s in known.structures.items() if not (own and v in target.labels)}
        parts: dict[str, tuple[str, ...]] = {s: (s,) for s in labels.values()}
        if known.merged and labels:
            (whole,) = labels.values()
            labels = {value: f"part {value}" for value in range(1, 5)}
            parts = {whole: tuple(labels.values())}
        if labels and images:
            found.append(DataSet(name, tuple(_case(known, image, labels) for image in images[:MOST_CASES]), parts))
    return found


def _case(known: Known, image: Path, labels: dict[int, str]) -> CaseFiles:
    return CaseFiles(image, known.labelmap_of(image).resolve(), labels)


# -------------------------------------------------------------------------------------------------------------- table


def _table(runs: Sequence[dict[str, Any]]) -> str:
    """DSC / mIoU in percent, mean and standard deviation over seeds and folds, one table per steps and shots: the
    layout of the paper's Table 1. Seconds are per run, including the initial probing of the arms and pre-training.
    """
    targets = [name for name in TARGETS if any(run["target"] == name for run in runs)]
    tables = []
    for steps, shots in dict.fromkeys((run["steps"], run["shots"]) for run in runs):
        own = [run for run in runs if (run["steps"], run["shots"]) == (steps, shots)]
        head = (
            f"DSC / mIoU (%), mean and spread over seeds and folds, {steps} steps, {shots} shots; in brackets the "
            "paper's, of other data sets.\n\n"
        )
        rows = [row for network in dict.fromkeys(run["network"] for run in own) for row in _rows(own, network, targets)]
        tables.append(head + markdown(["network", "method", *targets, "mean", "seconds"], rows))
    return "\n".join(tables)


def _rows(runs: Sequence[dict[str, Any]], network: str, targets: Sequence[str]) -> Iterator[list[str]]:
    for method in METHODS:
        cells, means, seconds = [], [], []
        for target in targets:
            own = [r for r in runs if (r["network"], r["method"], r["target"]) == (network, method, target)]
            cells.append(_cell(own) + (_published(target, method, network) if own else ""))
            means += [float(np.mean([run["dice"] for run in own]))] if own else []
            seconds += [run["seconds"] for run in own]
        if means:
            mean = f"{100 * np.mean(means):.1f}" if len(means) == len(targets) else ""
            yield [network, method, *cells, mean, f"{np.mean(seconds):.0f}"]


def _published(target: str, method: str, network: str) -> str:
    """The paper's numbers for the closest target."""
    found = PUBLISHED.get(target, {}).get(method)
    if not found or network not in PAPER_NETWORKS:
        return ""
    return " [{:.1f} / {:.1f}]".format(*found[PAPER_NETWORKS.index(network)])


def _curves(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{target, and network if several: {method: [(steps, mean DSC)]}} of runs with several training lengths and equal
    shots; methods first in the list take precedence if a chart cannot hold all.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    several = len({run["network"] for run in runs}) > 1
    shots = Counter(run["shots"] for run in runs).most_common(1)[0][0] if runs else SHOTS
    long = [method for method in METHODS if len({r["steps"] for r in runs if r["method"] == method}) > 1][:MOST_CURVES]
    for target, network in dict.fromkeys((run["target"], run["network"]) for run in runs):
        for method in long:
            own = [r for r in runs if (r["target"], r["network"], r["method"]) == (target, network, method)]
            dice: dict[int, list[float]] = {}
            for run in (run for run in own if run["shots"] == shots):
                dice.setdefault(run["steps"], []).append(run["dice"])
            if len(dice) > 1:
                name = f"{target}, {network}" if several else target
                points = [(float(steps), float(np.mean(values))) for steps, values in sorted(dice.items())]
                groups.setdefault(name, {})[method] = points
    return groups


def _cell(runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return ""
    spread = f" ± {100 * np.std([run['dice'] for run in runs]):.1f}" if len(runs) > 1 else ""
    return f"{100 * np.mean([run['dice'] for run in runs]):.1f}{spread} / {100 * np.mean([r['iou'] for r in runs]):.1f}"
