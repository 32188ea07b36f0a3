"""`fewshotseg benchmark uda`: from labelled CT to unlabelled MR on real cases, part by part.

Labelled: abdominal CT (btcv). Unlabelled: T2 MR (chaos), of which `--held-out` volumes are no targets; targets and held
back volumes are scored apart, their labels being used for nothing else. Rows are those of the paper's Table 7, and
every part alone: a network of the CT, of CT made to look like MR by a plain CycleGAN or by ASIT; with self-training,
with matching (MDM), with both, with the filter (PLF). The last network is the small one in every row. Stages that rows
share are computed once; an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.benchmarks.datasets import DATASETS
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.benchmarks.uda_cost import costs
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.metrics import compare
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.datasets import CaseFiles, DataSet
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.jobs.memory_curve import MemoryCurve, gpu_memory_of
from FewShotSegLib.methods.uda import method as uda
from FewShotSegLib.methods.uda.recipe import Recipe
from FewShotSegLib.progress import Progress
from FewShotSegLib.training.context import AdaptInputs, RunContext

logger = logging.getLogger(__name__)

CT = {"liver": 6, "right kidney": 2, "left kidney": 3, "spleen": 1}
MR = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
TOLERANCE_MM = 2.0
PLAIN = {"rounds": 1, "match": False, "filter": False}
PARTS: dict[str, dict[str, Any]] = {
    "": PLAIN,
    " + self-training": {"rounds": 3, "match": False, "filter": False},
    " + MDM": {"rounds": 1, "match": True, "filter": False},
    " + MDM + self-training": {"rounds": 3, "match": True, "filter": False},
    " + self-training + PLF": {"rounds": 3, "match": False, "filter": True},
    " + MDM + self-training + PLF": {"rounds": 3, "match": True, "filter": True},
}
EDGES, GREY = {"space": "anatomy"}, {"space": "intensity"}
ROWS: dict[str, dict[str, Any]] = {
    "CT only": {**GREY, "translate": False, **PLAIN},
    **{f"CycleGAN{name}": {**GREY, **parts} for name, parts in PARTS.items()},
    "anatomy, no translation": {**EDGES, "translate": False, **PLAIN},
    **{f"ASIT{name}": {**EDGES, **parts} for name, parts in PARTS.items()},
    "ASIT, edges of own voxels": {**EDGES, **PLAIN, "edges": "voxels"},
    "ASIT, residual generator": {**EDGES, **PLAIN, "residual": True},
}


@dataclass(frozen=True)
class Setting:
    """What is held equal for all rows."""

    data: Path
    held_out: int
    recipe: tuple[str, ...]
    device: torch.device


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; the table goes to standard output and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    if chosen.cost:
        sys.stdout.write(costs(chosen.data, repeats=5))
        return 0
    device = choose_device(chosen.device, logger.info)
    setting = Setting(chosen.data, chosen.held_out, tuple(chosen.recipe), device)
    record = Path(f"{chosen.out}.jsonl")
    for seed in range(chosen.seeds):
        for row in chosen.rows:
            if any((run["row"], run["seed"]) == (row, seed) for run in results_in(record)):
                continue
            run = {"row": row, "seed": seed, **_run(row, seed, setting)}
            logger.info("%s", {key: value for key, value in run.items() if key != "stages"})
            add_result(record, run)
    table = _table(results_in(record))
    write_text_whole(Path(f"{chosen.out}.md"), table)
    sys.stdout.write(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark uda", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--cost", action="store_true", help="measure only what segmenting costs")
    parser.add_argument("--out", default="uda", help="prefix of the result files")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--held-out", type=int, default=2, help="MR volumes that are no targets, the last ones")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    return parser


def _run(row: str, seed: int, setting: Setting) -> dict[str, Any]:
    recipe = with_overrides(Recipe(**ROWS[row]), setting.recipe)
    known = DATASETS["chaos"]
    cases = {image.name.split(".")[0]: known.load(image) for image in sorted(setting.data.glob(known.images))}
    held_out = list(cases)[len(cases) - setting.held_out :]
    targets = {name: volume for name, (volume, _) in cases.items() if name not in held_out}
    started = time.monotonic()
    inputs = AdaptInputs(source=_source(setting.data), targets=targets, intensity=known.intensity)
    adapter = uda.adapt(inputs, recipe, RunContext(np.random.default_rng(seed), _log, setting.device))
    seconds = time.monotonic() - started
    predictor = VolumePredictor(adapter, setting.device)
    scores: dict[str, dict[str, list[float]]] = {}
    costs = []
    for case, (volume, reference) in cases.items():
        with MemoryCurve(_memory_of(setting.device)) as curve:
            labels = predictor.segment(volume).labelmap
        costs.append(curve.summary())
        found = {name: value for value, name in labels.structures.items()}
        scores[case] = {}
        for name, value in MR.items():
            truth = reference.volume.array == value
            score = compare(labels.volume.array == found[name], truth, volume.spacing_mm, TOLERANCE_MM)
            scores[case][name] = [score.dsc, score.nsd]
    return {
        "seconds": round(seconds, 1),
        "scores": scores,
        "held_out": held_out,
        "segmenting": {key: round(float(np.mean([cost[key] for cost in costs])), 3) for key in costs[0]},
        "stages": adapter.metrics["stages"],
    }


def _memory_of(device: torch.device) -> Callable[[], int]:
    """Of a GPU; on a CPU nothing is measured but time."""
    return gpu_memory_of(device) if device.type == "cuda" else lambda: 0


def _source(data: Path) -> DataSet:
    known = DATASETS["btcv"]
    names = {value: name for name, value in CT.items()}
    cases = tuple(CaseFiles(image, known.labelmap_of(image), names) for image in sorted(data.glob(known.images)))
    return DataSet("btcv", cases, {name: (name,) for name in CT})


def _log(progress: Progress) -> None:
    if progress.step % 100 == 0:
        values = {key: round(value, 3) for key, value in progress.metrics.items() if key != "learning_rate"}
        logger.info("%s %d/%d %s", progress.message, progress.step, progress.total, values)


def _table(runs: Sequence[dict[str, Any]]) -> str:
    """DSC / NSD in percent per organ, mean over cases and seeds with the quartiles of DSC over both, of targets and of
    volumes that were none: the layout of the paper's Table 7.
    """
    return "\n".join(
        _part(runs, title, held_out) for title, held_out in (("held back volumes", True), ("targets", False))
    )


def _part(runs: Sequence[dict[str, Any]], title: str, held_out: bool) -> str:
    head = f"DSC / NSD (%, {TOLERANCE_MM:g} mm), mean over all {title} and seeds; quartiles of DSC.\n\n"
    rows = []
    for row in ROWS:
        own = [run for run in runs if run["row"] == row]
        cases = [
            scores for run in own for name, scores in run["scores"].items() if (name in run["held_out"]) == held_out
        ]
        if not cases:
            continue
        each = np.array([[case[organ] for organ in MR] for case in cases], float)  # (cases, organs, 2)
        cells = [f"{100 * dsc:.1f} / {100 * nsd:.1f}" for dsc, nsd in [*each.mean(0), each.mean((0, 1))]]
        low, high = 100 * np.quantile(each[:, :, 0].mean(1), (0.25, 0.75))
        times = [np.mean([run["seconds"] for run in own]), np.mean([run["segmenting"]["seconds"] for run in own])]
        area = np.mean([run["segmenting"]["area_mb_s"] for run in own])
        cost = [f"{times[0]:.0f}", f"{times[1]:.1f}", f"{area:.0f}" if area else ""]
        rows.append([row, *cells, f"{low:.1f} to {high:.1f}", *cost])
    ends = ["mean", "quartiles", "seconds", "seconds a case", "GPU memory x time, MB s"]
    return head + markdown(["", *MR, *ends], rows)
