"""`fewshotseg benchmark uda`: from labelled CT to unlabelled MR on real cases, part by part.

Labelled: abdominal CT (btcv). Unlabelled: T2 MR (chaos); all of its volumes are targets and all are scored, their
labels being used for nothing else. Rows are those of the paper's Table 7: a network of the CT alone, of CT made to look
like MR by a plain CycleGAN, by ASIT, with MDM, with PLF; and MDM and PLF on the plain CycleGAN. Stages that rows share
are computed once; an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.benchmarks.datasets import DATASETS
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.benchmarks.uda_cost import costs
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.metrics import compare
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.datasets import CaseFiles, DataSet
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.methods.uda import method as uda
from FewShotSegLib.methods.uda.recipe import Recipe
from FewShotSegLib.progress import Progress
from FewShotSegLib.training.context import AdaptInputs, RunContext

logger = logging.getLogger(__name__)

CT = {"liver": 6, "right kidney": 2, "left kidney": 3, "spleen": 1}
MR = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
TOLERANCE_MM = 2.0
PLAIN = {"rounds": 1, "match": False, "filter": False}
EDGES, GREY = {"space": "anatomy"}, {"space": "intensity"}
ROWS: dict[str, dict[str, Any]] = {
    "CT only": {**GREY, "translate": False, **PLAIN},
    "CycleGAN": {**GREY, **PLAIN},
    "anatomy, no translation": {**EDGES, "translate": False, **PLAIN},
    "ASIT": {**EDGES, **PLAIN},
    "ASIT + MDM": {**EDGES, "filter": False},
    "ASIT + MDM + PLF": {**EDGES},
    "ASIT + PLF": {**EDGES, "match": False},
    "CycleGAN + MDM": {**GREY, "filter": False},
    "CycleGAN + MDM + PLF": {**GREY},
}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; the table goes to standard output and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    if chosen.cost:
        sys.stdout.write(costs(chosen.data, repeats=5))
        return 0
    record = Path(f"{chosen.out}.jsonl")
    for seed in range(chosen.seeds):
        for row in chosen.rows:
            if any((run["row"], run["seed"]) == (row, seed) for run in results_in(record)):
                continue
            run = {"row": row, "seed": seed, **_run(chosen.data, row, seed, chosen.recipe)}
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
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    return parser


def _run(data: Path, row: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    recipe = with_overrides(Recipe(**ROWS[row]), overrides)
    known = DATASETS["chaos"]
    images = sorted(data.glob(known.images))
    cases = {image.name.split(".")[0]: known.load(image) for image in images}
    started = time.monotonic()
    targets = {name: volume for name, (volume, _) in cases.items()}
    inputs = AdaptInputs(source=_source(data), targets=targets, intensity=known.intensity)
    adapter = uda.adapt(inputs, recipe, RunContext(np.random.default_rng(seed), _log))
    seconds = time.monotonic() - started
    predictor = VolumePredictor(adapter, torch.device("cpu"))
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in MR}
    for volume, reference in cases.values():
        labels = predictor.segment(volume).labelmap
        found = {name: value for value, name in labels.structures.items()}
        for name, value in MR.items():
            truth = reference.volume.array == value
            score = compare(labels.volume.array == found[name], truth, volume.spacing_mm, TOLERANCE_MM)
            scores[name].append((score.dsc, score.nsd))
    means = {name: [float(x) for x in np.mean(values, axis=0)] for name, values in scores.items()}
    return {"seconds": round(seconds, 1), "scores": means, "stages": adapter.metrics["stages"]}


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
    """DSC / NSD in percent per organ, mean over cases and seeds: the layout of the paper's Table 7."""
    head = f"DSC / NSD (%, {TOLERANCE_MM:g} mm), mean over all targets and seeds.\n\n"
    rows = []
    for row in ROWS:
        own = [run for run in runs if run["row"] == row]
        if own:
            each = {name: np.mean([run["scores"][name] for run in own], axis=0) for name in MR}
            cells = [
                f"{100 * dsc:.1f} / {100 * nsd:.1f}" for dsc, nsd in [*each.values(), np.mean(list(each.values()), 0)]
            ]
            rows.append([row, *cells, f"{np.mean([run['seconds'] for run in own]):.0f}"])
    return head + markdown(["", *MR, "mean", "seconds"], rows)
