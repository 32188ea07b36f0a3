"""`fewshotseg benchmark accuracy`: base, adapted and U-Net on real cases, with one click and without.

For each data set and number of exemplar slices: the base model with one centre click per structure and slice; the same
model adapted with and without synthesis; a U-Net from scratch on the same slices for the same time. Every cell is
kept as one line of JSON, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.adapter import Adapter
from FewShotSegLib.benchmarks.datasets import DATASETS, DataSet, exemplars, unseen_cases
from FewShotSegLib.benchmarks.unet import segment_unet, train_unet
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation import Row, evaluate_case
from FewShotSegLib.files import write_text_whole
from FewShotSegLib.methods import lora
from FewShotSegLib.progress import silent
from FewShotSegLib.prompt import Prompt
from FewShotSegLib.recipe import with_overrides
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.predictor import EmbeddingCache, Predictor
from FewShotSegLib.segmentation import SegmentOptions, segment
from FewShotSegLib.volume import Labelmap, Volume

logger = logging.getLogger(__name__)

CLICK, FREE = "one click", "prompt-free"
COLUMNS = (
    ("base", CLICK, "oracle_slices"),
    ("adapted", CLICK, "oracle_slices"),
    ("adapted, no synthesis", CLICK, "oracle_slices"),
    ("adapted", FREE, "all_slices"),
    ("adapted, no synthesis", FREE, "all_slices"),
    ("U-Net", FREE, "all_slices"),
    ("U-Net", FREE, "oracle_slices"),
)
SMALLEST_CLICKED = 3  # pixels: what a person would still click on


@dataclass(frozen=True)
class Setting:
    """What is held equal for all models."""

    data: Path
    base: str
    seconds: float
    seed: int
    cases: int
    slices: int
    recipe: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; the table goes to standard output and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    unknown = sorted(set(chosen.datasets) - set(DATASETS))
    if unknown:
        raise InputError(f"Unknown data set {unknown[0]}; allowed are {', '.join(DATASETS)}.")
    if chosen.quick:
        chosen.seconds, chosen.cases, chosen.slices, chosen.shots = min(chosen.seconds, 10), 1, 8, [3]
    setting = Setting(
        chosen.data, chosen.base, chosen.seconds, chosen.seed, chosen.cases, chosen.slices, tuple(chosen.recipe)
    )
    record = Path(f"{chosen.out}.jsonl")
    for name in chosen.datasets:
        for shots in chosen.shots:
            for cell in _cells(DATASETS[name], shots, setting, _done(record)):
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(cell) + "\n")
    table = _table(_done(record).values(), setting)
    write_text_whole(Path(f"{chosen.out}.md"), table)
    sys.stdout.write(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", default="accuracy", help="prefix of the result files")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 3, 9], help="numbers of exemplar slices")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model")
    parser.add_argument("--cases", type=int, default=4, help="most test cases per data set")
    parser.add_argument("--slices", type=int, default=40, help="slices per test case, evenly spread")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that it runs")
    return parser


def _done(record: Path) -> dict[tuple[str, int, str, str], dict[str, Any]]:
    if not record.exists():
        return {}
    cells = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return {(c["dataset"], c["shots"], c["model"], c["prompt"]): c for c in cells}


def _cells(dataset: DataSet, shots: int, setting: Setting, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """One result per model and way of prompting, those already done left out."""
    chosen = exemplars(dataset, setting.data, shots)
    network = load_base(setting.base, image_size=None if setting.base == "bundled" else 512)
    models: dict[str, Callable[[], tuple[list[tuple[str, Segmenter]], dict[str, Any]]]] = {
        "base": lambda: ([(CLICK, _clicking(Predictor(network), dataset))], {}),
        "adapted": lambda: _adapted(network, chosen, dataset, setting, synthesis=True),
        "adapted, no synthesis": lambda: _adapted(network, chosen, dataset, setting, synthesis=False),
        "U-Net": lambda: _unet(chosen, dataset, setting),
    }
    for model, make in models.items():
        prompts = [FREE] if model == "U-Net" else [CLICK] if model == "base" else [CLICK, FREE]
        if all((dataset.name, shots, model, prompt) in done for prompt in prompts):
            continue
        segmenters, facts = make()
        for prompt, segmenter in segmenters:
            rows = _scored(segmenter, dataset, setting, set(chosen[0].structures.values()))
            cell = {"dataset": dataset.name, "shots": shots, "model": model, "prompt": prompt, **facts, "scores": rows}
            logger.info("%s %d %s %s %s", dataset.name, shots, model, prompt, _means(cell))
            yield cell


Segmenter = Callable[[Volume, Labelmap], Labelmap]


def _adapted(
    network: PromptableNetwork, chosen: list[Any], dataset: DataSet, setting: Setting, *, synthesis: bool
) -> tuple[list[tuple[str, Segmenter]], dict[str, Any]]:
    recipe = with_overrides(lora.Recipe(synthesis=synthesis, estimate_folds=0, guard="off"), setting.recipe)
    started = time.monotonic()
    adapter: Adapter = lora.adapt(
        network, chosen, recipe=recipe, rng=np.random.default_rng(setting.seed), report=silent,
        intensity=dataset.intensity, max_seconds=setting.seconds,
    )  # fmt: skip
    facts = {"seconds": round(time.monotonic() - started, 1), "steps": adapter.metrics["steps"]}
    predictor = Predictor(network, adapter, cache=EmbeddingCache(2**31))

    def free(volume: Volume, reference: Labelmap) -> Labelmap:
        return segment(volume, predictor, options=SegmentOptions(axis=0)).labelmap

    return [(CLICK, _clicking(predictor, dataset)), (FREE, free)], facts


def _unet(chosen: list[Any], dataset: DataSet, setting: Setting) -> tuple[list[tuple[str, Segmenter]], dict[str, Any]]:
    steps = [0]
    network, structures = train_unet(
        chosen, dataset.intensity, seed=setting.seed, seconds=setting.seconds,
        report=lambda progress: steps.__setitem__(0, progress.step),
    )  # fmt: skip
    return [(FREE, lambda volume, _: segment_unet(network, structures, volume, dataset.intensity))], {"steps": steps[0]}


def _clicking(predictor: Predictor, dataset: DataSet) -> Segmenter:
    """One click per structure and slice, at the pixel deepest inside the reference, as the papers do."""

    def run(volume: Volume, reference: Labelmap) -> Labelmap:
        prompts = []
        for index, labels in enumerate(reference.volume.array):
            for value, name in reference.structures.items():
                mask = labels == value
                if mask.sum() >= SMALLEST_CLICKED:
                    column, row = centre_click(mask)
                    point = np.array([[column, row, index]], float)
                    prompts.append(Prompt(0, index, points_ijk=point, point_labels=np.array([1]), structure=name))
        options = SegmentOptions(axis=0, propagate=False)
        return segment(volume, predictor, intensity=dataset.intensity, prompts=prompts, options=options).labelmap

    return run


def _scored(segmenter: Segmenter, dataset: DataSet, setting: Setting, names: set[str]) -> list[dict[str, Any]]:
    rows: list[Row] = []
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        prediction = segmenter(volume, reference)
        rows += evaluate_case(prediction, reference, dataset.structures, axis=0, case=case)
    keep = ("case", "structure", "scope", "dsc", "iou", "hd95_mm", "nsd")
    return [{key: getattr(row, key) for key in keep} for row in rows if row.structure in names]


def _means(cell: dict[str, Any]) -> dict[str, float]:
    return {scope: round(_mean(cell, scope), 3) for scope in ("all_slices", "oracle_slices")}


def _mean(cell: dict[str, Any], scope: str, metric: str = "dsc") -> float:
    """Mean over structures of the mean over cases."""
    names = sorted({row["structure"] for row in cell["scores"]})
    per_structure = [
        [row[metric] for row in cell["scores"] if row["structure"] == n and row["scope"] == scope] for n in names
    ]
    return float(np.mean([np.mean(values) for values in per_structure if values]))


def _table(cells: Any, setting: Setting) -> str:
    cells = {(c["dataset"], c["shots"], c["model"], c["prompt"]): c for c in cells}
    head = [f"{model}, {prompt}, {scope.split('_')[0]}" for model, prompt, scope in COLUMNS]
    lines = [
        f"Mean DSC over structures. {setting.seconds:g} s of training on {torch.get_num_threads()} threads of "
        f"{platform.machine()}; up to {setting.cases} test cases with about {setting.slices} slices each; "
        f"seed {setting.seed}; base {setting.base}.",
        "",
        "| data set | exemplar slices | " + " | ".join(head) + " |",
        "|---|---|" + "---|" * len(head),
    ]
    for dataset, shots in sorted({(d, s) for d, s, _, _ in cells}, key=lambda k: (list(DATASETS).index(k[0]), k[1])):
        values = []
        for model, prompt, scope in COLUMNS:
            cell = cells.get((dataset, shots, model, prompt))
            values.append(f"{_mean(cell, scope):.3f}" if cell else "")
        lines.append(f"| {dataset} | {shots} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"
