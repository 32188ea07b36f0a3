"""`fewshotseg benchmark uda`: from labelled CT to unlabelled MR on real cases, as an ablation.

Labelled: abdominal CT (btcv). Unlabelled: MR (`--targets`: chaos, or amos if there is a copy), of which `--held-out`
volumes are not used as targets; targets and held-out volumes are scored separately, their labels being used for nothing
else. With `--organs all` every labelled organ of the CT is learned, twelve of the paper's thirteen; scored are those
with labels in the MR, which are four in chaos. Rows are those of the paper's Table 7, and every part alone: a network
trained on CT, on CT translated to MR by a plain CycleGAN or by ASIT; with self-training, with matching (MDM), with
both, with the filter (PLF); and all of it decided by thresholds, as in the paper, instead of the highest logit. The
final network is the small one in every row. Shared stages are computed once; an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.benchmarks.datasets import DATASETS, PublicDataSet
from FewShotSegLib.benchmarks.datasets import MR as MR_INTENSITY
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.benchmarks.uda_cost import costs
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.metrics import compare
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.datasets import CaseFiles, DataSet
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.jobs.memory_curve import MemoryCurve, memory_of
from FewShotSegLib.methods.uda import method as uda
from FewShotSegLib.methods.uda.recipe import Recipe
from FewShotSegLib.progress import Progress
from FewShotSegLib.training.context import AdaptInputs, RunContext

logger = logging.getLogger(__name__)

# In the paper's order; of its thirteen organs btcv has no label for the duodenum.
CT = {
    "liver": 6,
    "right kidney": 2,
    "spleen": 1,
    "pancreas": 11,
    "aorta": 8,
    "inferior vena cava": 9,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
    "gallbladder": 4,
    "oesophagus": 5,
    "stomach": 7,
    "left kidney": 3,
}


@dataclass(frozen=True)
class Targets:
    """Target volumes whose labels are known to the benchmark only: data set, and label value of each organ."""

    data_set: PublicDataSet
    labels: dict[str, int]


MR = {
    "chaos": Targets(DATASETS["chaos"], {"liver": 1, "right kidney": 2, "spleen": 4, "left kidney": 3}),
    # The MR scans of AMOS 2022 (Ji et al.), the paper's validation data, with its own label values.
    "amos": Targets(
        PublicDataSet("amos", "amos_mr/*_img.nii.gz", (r"_img\.", "_lab."), {}, MR_INTENSITY),
        {
            "liver": 6,
            "right kidney": 2,
            "spleen": 1,
            "pancreas": 10,
            "aorta": 8,
            "inferior vena cava": 9,
            "right adrenal gland": 11,
            "left adrenal gland": 12,
            "gallbladder": 4,
            "oesophagus": 5,
            "stomach": 7,
            "left kidney": 3,
        },
    ),
}
# Table 7 of the paper: DSC and NSD (%), mean over thirteen organs of validation cases of AMOS MR.
PUBLISHED = {
    "CT only": (15.32, 14.69),
    "CycleGAN": (20.01, 16.40),
    "ASIT": (29.53, 31.16),
    "ASIT + MDM": (52.93, 56.72),
    "ASIT + MDM + self-training + PLF": (60.53, 64.62),
}
# Tables 5 and 6, DSC and NSD (%) of the organs in the order of `CT`.
PUBLISHED_ORGANS = {
    "CT only": (
        (17.56, 13.44, 5.99, 11.13, 37.52, 16.05, 4.59, 10.26, 16.52, 17.22, 13.21, 19.85),
        (13.79, 12.12, 4.29, 11.39, 37.27, 15.43, 5.59, 11.39, 11.66, 21.53, 8.81, 17.66),
    ),
    "ASIT": (
        (53.68, 29.96, 46.4, 12.13, 58.94, 28.28, 11.75, 10.91, 30.38, 27.92, 34.61, 28.46),
        (42.37, 29.96, 39.7, 17.02, 61.97, 26.99, 17.94, 16.56, 25.55, 44.14, 35.92, 28.65),
    ),
    "ASIT + MDM": (
        (86.63, 66.05, 79.41, 38.64, 80.91, 54.29, 24.55, 24.45, 34.79, 49.61, 59.55, 65.52),
        (78.08, 62.38, 73.01, 48.73, 84.84, 54, 37.36, 33.98, 30.91, 71.56, 60.62, 61.75),
    ),
    "ASIT + MDM + self-training + PLF": (
        (86.97, 84.79, 82.62, 44.28, 79.77, 57.49, 38.16, 47.13, 46.71, 35.33, 60.08, 84.89),
        (78.74, 83.32, 79.54, 56.44, 83.17, 56.16, 53.63, 61.88, 35.55, 46.9, 58.93, 84.55),
    ),
}
# Of the NSD, as in the challenge's evaluation.
TOLERANCE_MM = {
    "liver": 5.0,
    "right kidney": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior vena cava": 2.0,
    "right adrenal gland": 2.0,
    "left adrenal gland": 2.0,
    "gallbladder": 2.0,
    "oesophagus": 3.0,
    "stomach": 5.0,
    "left kidney": 3.0,
}
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
    "CycleGAN + MDM + self-training + PLF, sigmoid above 1/2": {
        **GREY,
        **PARTS[" + MDM + self-training + PLF"],
        "decide": "threshold",
    },
}


@dataclass(frozen=True)
class Setting:
    """Settings shared by all rows."""

    data: Path
    held_out: int
    recipe: tuple[str, ...]
    device: torch.device
    targets: str = "chaos"
    organs: str = "shared"

    @property
    def learned(self) -> tuple[str, ...]:
        """Organs to learn: all of the CT, or those also labelled in the MR."""
        return tuple(name for name in CT if self.organs == "all" or name in MR[self.targets].labels)

    @property
    def scored(self) -> tuple[str, ...]:
        """Organs labelled in both."""
        return tuple(name for name in self.learned if name in MR[self.targets].labels)

    @property
    def kind(self) -> dict[str, str]:
        """Key that distinguishes results of different settings in one file. Those of earlier versions, whose NSD had
        one tolerance for all organs, lack the last part.
        """
        return {"targets": self.targets, "organs": self.organs, "tolerance": "by organ"}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the table is written to stdout and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    if chosen.cost:
        sys.stdout.write(costs(chosen.data, repeats=5))
        return 0
    device = choose_device(chosen.device, logger.info)
    setting = Setting(chosen.data, chosen.held_out, tuple(chosen.recipe), device, chosen.targets, chosen.organs)
    record = Path(f"{chosen.out}.jsonl")

    def found() -> list[dict[str, Any]]:
        """Results of this setting."""
        return [run for run in results_in(record) if setting.kind.items() <= run.items()]

    for seed in range(chosen.seeds):
        for row in chosen.rows:
            if any((run["row"], run["seed"]) == (row, seed) for run in found()):
                continue
            run = {"row": row, "seed": seed, **setting.kind, **_run(row, seed, setting)}
            logger.info("%s", {key: value for key, value in run.items() if key != "stages"})
            add_result(record, run)
    table = _table(found())
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
    parser.add_argument("--targets", default="chaos", choices=list(MR), help="the unlabelled MR")
    parser.add_argument(
        "--organs",
        default="shared",
        choices=("shared", "all"),
        help="learn what both have labels of, or all of the CT's",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    return parser


def _run(row: str, seed: int, setting: Setting) -> dict[str, Any]:
    recipe = with_overrides(Recipe(**ROWS[row]), setting.recipe)
    known, values = MR[setting.targets].data_set, MR[setting.targets].labels
    images = {image.name.split(".")[0]: image for image in known.cases(setting.data)}
    volumes = {name: load_volume(image) for name, image in images.items()}
    held_out = list(images)[len(images) - setting.held_out :]
    targets = {name: volume for name, volume in volumes.items() if name not in held_out}
    started = time.monotonic()
    source = _source(setting.data, setting.learned)
    inputs = AdaptInputs(source=source, targets=targets, intensity=known.intensity)
    adapter = uda.adapt(inputs, recipe, RunContext(np.random.default_rng(seed), _log, setting.device))
    seconds = time.monotonic() - started
    predictor = VolumePredictor(adapter, setting.device)
    scores: dict[str, dict[str, list[float] | None]] = {}
    costs = []
    for case, volume in volumes.items():
        with MemoryCurve(memory_of(setting.device)) as curve:
            labels = predictor.segment(volume).labelmap
        costs.append(curve.summary())
        found = {name: value for value, name in labels.structures.items()}
        reference = load_labelmap(known.labelmap_of(images[case])).volume.array
        scores[case] = {}
        for name in setting.scored:
            truth = reference == values[name]
            score = compare(labels.volume.array == found[name], truth, volume.spacing_mm, TOLERANCE_MM[name])
            # An organ missing in the reference is not scored: it may be outside the scan.
            scores[case][name] = [score.dsc, score.nsd] if truth.any() else None
    return {
        "seconds": round(seconds, 1),
        "scores": scores,
        "held_out": held_out,
        "segmenting": {key: round(float(np.mean([cost[key] for cost in costs])), 3) for key in costs[0]},
        "stages": adapter.metrics["stages"],
    }


def _source(data: Path, organs: Sequence[str]) -> DataSet:
    known = DATASETS["btcv"]
    names = {CT[name]: name for name in organs}
    cases = tuple(CaseFiles(image, known.labelmap_of(image), names) for image in sorted(data.glob(known.images)))
    return DataSet("btcv", cases, {name: (name,) for name in organs})


def _log(progress: Progress) -> None:
    if progress.step % 100 == 0:
        values = {key: round(value, 3) for key, value in progress.metrics.items() if key != "learning_rate"}
        logger.info("%s %d/%d %s", progress.message, progress.step, progress.total, values)


def _table(runs: Sequence[dict[str, Any]]) -> str:
    """DSC / NSD in percent per organ, mean over cases and seeds with the quartiles of DSC over both, of targets and of
    held-out volumes: the layout of the paper's Table 7, its numbers next to ours.
    """
    return "\n".join(
        _part(runs, title, held_out) for title, held_out in (("held back volumes", True), ("targets", False))
    )


def _part(runs: Sequence[dict[str, Any]], title: str, held_out: bool) -> str:
    head = (
        f"DSC / NSD (%, at the tolerance of each organ), mean over all {title} and seeds; quartiles of DSC. "
        "The paper's are of other cases.\n\n"
    )
    shown = {name for run in runs for case in run["scores"].values() for name in case}
    organs = [name for name in CT if name in shown]
    rows = []
    for row in ROWS:
        own = [run for run in runs if run["row"] == row]
        cases = [
            scores for run in own for name, scores in run["scores"].items() if (name in run["held_out"]) == held_out
        ]
        if not cases:
            continue
        each = np.array([[case.get(organ) or (np.nan, np.nan) for organ in organs] for case in cases], float)
        of_organs = np.array([_mean(each[:, at]) for at in range(len(organs))])  # (organs, 2)
        cells = [_both(*values) for values in (*of_organs, _mean(of_organs))]
        of_cases = np.array([_mean(case)[0] for case in each])
        low, high = 100 * np.quantile(of_cases[np.isfinite(of_cases)], (0.25, 0.75))
        times = [np.mean([run["seconds"] for run in own]), np.mean([run["segmenting"]["seconds"] for run in own])]
        area = np.mean([run["segmenting"]["area_mb_s"] for run in own])
        cost = [f"{times[0]:.0f}", f"{times[1]:.1f}", f"{area:.0f}" if area else ""]
        rows.append([row, *_published(row, organs), *cells, f"{low:.1f} to {high:.1f}", *cost])
    ends = ["mean", "quartiles", "seconds", "seconds per case", "memory x time, MB s"]
    return head + markdown(["", "paper, 13 organs", "paper, these", *organs, *ends], rows)


def _published(row: str, organs: Sequence[str]) -> list[str]:
    """The paper's DSC / NSD in percent, of its thirteen organs and of these ones; empty for rows that it lacks."""
    names = list(CT)
    of_these = [np.mean([values[names.index(organ)] for organ in organs]) for values in PUBLISHED_ORGANS.get(row, ())]
    return [" / ".join(f"{value:.1f}" for value in values) for values in (PUBLISHED.get(row, ()), of_these)]


def _mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (2,) of DSC and NSD (n, 2), ignoring NaN; NaN if all are."""
    known = scores[np.isfinite(scores).all(1)]
    return known.mean(0) if len(known) else np.full(2, np.nan)


def _both(dsc: float, nsd: float) -> str:
    return f"{100 * dsc:.1f} / {100 * nsd:.1f}" if np.isfinite(dsc) else ""
