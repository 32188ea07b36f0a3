"""`fewshotseg benchmark support`: accuracy of support sets without training, and the benefit of training.

For each data set and number of support slices: Dice, Jaccard and mean surface distance of every structure of every test
case, from the support set at once, with and without ensembles of random subsets; from the same support set with a model
trained by GMISeg on the other data sets (`--tasks`: on random subsets of them); from two baselines, a network of
cross-convolutions trained on the other data sets and the labels of the most similar slice; and at some of the sizes, on
the same slices, the same model adapted with LoRA and a U-Net from scratch. With --random the supports are random, one
set per seed; `--plane` selects the plane of the slices. With --forgetting instead: LoRA and Loose LoRA on two tasks in
sequence, and how much of the first is retained. Every result is a line of JSON, so an interrupted run resumes where it
stopped.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.benchmarks import cross_convolution, support_tables
from FewShotSegLib.benchmarks.cross_convolution import CrossNetwork, Task, predicted, task_of
from FewShotSegLib.benchmarks.datasets import (
    DATASETS,
    PublicDataSet,
    exemplars,
    random_exemplars,
    unseen_cases,
)
from FewShotSegLib.benchmarks.label_transfer import transferred
from FewShotSegLib.benchmarks.records import add_result, results_in
from FewShotSegLib.benchmarks.support_tables import (
    CROSS,
    ENSEMBLE,
    GMISEG,
    KNOWN,
    LORA,
    MODELS,
    NEAREST,
    PAIRS,
    SUPPORT,
    UNET,
    Run,
    mean_of,
)
from FewShotSegLib.benchmarks.unet import segment_unet, train_unet
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import evaluate_case
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.load import predictor_of
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.inference.support import SUBSET, SupportPredictor, SupportRecipe, support_adapter
from FewShotSegLib.io.files import write_text_whole, written_whole
from FewShotSegLib.methods import gmiseg, lora
from FewShotSegLib.progress import silent
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.visualization.charts import boxes_chart, curves_chart

logger = logging.getLogger(__name__)

DEFAULT = ("acdc", "la2018", "btcv", "brats", "stare")
TASK_SLICES = 9  # per training data set of GMISeg or the baseline
SUBSETS = 5
SMALLEST_CLICKED = 3  # pixels
SLICES, TASKS = "slices in the support set", "data sets trained on"

Segmenter = Callable[[Volume], Labelmap]


@dataclass(frozen=True)
class Setting:
    """Shared settings."""

    data: Path
    base: str
    cases: int
    slices: int
    seconds: float
    plane: int = 0
    drawn: bool = False
    recipe: tuple[str, ...] = ()

    def known(self, name: str) -> PublicDataSet:
        """A data set in the selected plane; photographs have only one."""
        return KNOWN[name] if name == "stare" else replace(KNOWN[name], plane=self.plane)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; tables are written to stdout and to `<out>.md`, curves to `<out>.png`, the spread over random
    support sets to `<out>-sets.png`, over random subsets of the training data to `<out>-tasks.png`.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    setting = Setting(
        chosen.data,
        chosen.base,
        chosen.cases,
        chosen.slices,
        chosen.seconds,
        chosen.plane,
        chosen.random,
        tuple(chosen.recipe),
    )
    record = Path(f"{chosen.out}.jsonl")
    runs = _forgetting(chosen, setting, record) if chosen.forgetting else _sizes(chosen, setting, record)
    for run in runs:
        logger.info("%s", {key: value for key, value in run.items() if key != "scores"})
        add_result(record, run)
    found = results_in(record)
    text = _head(setting) + support_tables.tables(found)
    write_text_whole(Path(f"{chosen.out}.md"), text)
    curves = support_tables.curves(found)
    if curves:
        with written_whole(Path(f"{chosen.out}.png")) as part:
            part.write_bytes(curves_chart(curves, SLICES).light)
    boxes = {"sets": (support_tables.spreads(found), SLICES), "tasks": (support_tables.task_spreads(found), TASKS)}
    for name, (groups, label) in boxes.items():
        if groups:
            with written_whole(Path(f"{chosen.out}-{name}.png")) as part:
                part.write_bytes(boxes_chart(groups, label).light)
    sys.stdout.write(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark support", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", default="support", help="prefix of the result files")
    parser.add_argument("--datasets", nargs="+", default=DEFAULT, choices=list(KNOWN), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="of the support set")
    parser.add_argument("--trained", nargs="*", type=int, default=[1, 4, 16], help="sizes that are also trained on")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the support set, from 0; training has one")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model")
    parser.add_argument("--cases", type=int, default=3, help="most test cases per data set")
    parser.add_argument("--slices", type=int, default=8, help="slices per test case, evenly spread")
    parser.add_argument("--forgetting", action="store_true", help="LoRA and Loose LoRA on two tasks in a row instead")
    parser.add_argument("--models", nargs="+", default=[SUPPORT, ENSEMBLE, LORA, UNET], choices=MODELS, metavar="NAME")
    parser.add_argument("--plane", type=int, default=0, choices=(0, 1, 2), help="axis of the arrays (K, J, I)")
    parser.add_argument("--random", action="store_true", help="supports by lot, another set for each seed")
    parser.add_argument(
        "--tasks",
        type=int,
        nargs="+",
        default=[],
        help="numbers of other data sets to train GMISeg on, another subset for each seed; default: all of them",
    )
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE", help="recipe of GMISeg's training")
    parser.add_argument("--base", default="bundled-small")
    return parser


# -------------------------------------------------------------------------------------------------------------- sizes


def _sizes(chosen: argparse.Namespace, setting: Setting, record: Path) -> Iterator[Run]:
    """Support sets of all sizes first, then trained models, which take longest."""
    done = {_key(run) for run in results_in(record) if run["kind"] == "size"}
    network = load_base(setting.base)
    made = _TrainedElsewhere(network, setting)
    for name, size, model, seed, subset in list(_cells(chosen)):  # checked before anything is trained
        cell = {"dataset": name, "size": size, "model": model, "seed": seed, "plane": setting.plane}
        cell |= {"drawn": setting.drawn, "trained_on": subset}
        if _key(cell) in done:
            continue
        dataset = setting.known(name)
        if setting.drawn:
            given = random_exemplars(dataset, setting.data, size, np.random.default_rng([seed, size]))
        else:
            given = exemplars(dataset, setting.data, size)
        if sum(len(one.annotated_slices) for one in given) < size:
            continue  # no more slices available
        segmenter, facts = _made(cell, network, given, dataset, setting, made)
        started = time.perf_counter()
        scores, slices = _scored(segmenter, dataset, setting, given[0].structures)
        facts["slice_s"] = round((time.perf_counter() - started) / slices, 3)
        yield {"kind": "size", **cell, **facts, "scores": scores}


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("dataset", "size", "model", "seed", "plane", "drawn")
    return *(run[name] for name in names), tuple(run["trained_on"] or ())


class _TrainedElsewhere:
    """Models trained on the data sets not tested, trained lazily."""

    def __init__(self, network: PromptableNetwork, setting: Setting) -> None:
        self.network, self.setting = network, setting
        self._gmiseg: dict[tuple[str, ...], Adapter] = {}
        self._cross: dict[str, CrossNetwork] = {}

    def gmiseg(self, others: Sequence[str]) -> Adapter:
        """An adapter of GMISeg trained on these data sets."""
        key = tuple(others)
        if key not in self._gmiseg:
            given = [e for o in others for e in exemplars(self.setting.known(o), self.setting.data, TASK_SLICES)]
            run = RunContext(np.random.default_rng(0), max_seconds=self.setting.seconds)
            recipe = with_overrides(gmiseg.Recipe(slices_per_plane=TASK_SLICES), self.setting.recipe)
            self._gmiseg[key] = gmiseg.adapt(AdaptInputs(self.network, given), recipe, run)
        return self._gmiseg[key]

    def cross(self, name: str) -> CrossNetwork:
        """A network of cross-convolutions not trained on this data set."""
        if name not in self._cross:
            tasks = [task for other in others(name) for task in self._tasks(self.setting.known(other))]
            self._cross[name] = cross_convolution.train(tasks, seed=0, seconds=self.setting.seconds, report=silent)
        return self._cross[name]

    def _tasks(self, dataset: PublicDataSet) -> list[Task]:
        """One per structure with enough slices."""
        given = exemplars(dataset, self.setting.data, 2 * TASK_SLICES)
        slices = [piece for exemplar in given for piece in _slices(exemplar, dataset.intensity)]
        made = (
            task_of([i for i, _ in slices], [labels == value for _, labels in slices]) for value in dataset.structures
        )
        return [task for task in made if task is not None]


def others(name: str) -> list[str]:
    """The volume data sets other than this one."""
    return [other for other in DATASETS if other != name]


def subset_of_others(name: str, count: int, seed: int) -> list[str] | None:
    """`count` data sets other than this one, another subset for each seed while there are any; None: all of them."""
    found = others(name)
    if not 1 <= count <= len(found):
        raise InputError(
            f"There are {len(found)} data sets besides {name}, not {count}; give --tasks 1 to {len(found)}."
        )
    subsets = list(itertools.combinations(found, count))
    order = np.random.default_rng(0).permutation(len(subsets))
    return None if count == len(found) else list(subsets[order[seed % len(subsets)]])


def _slices(exemplar: Exemplar, intensity: IntensitySpec) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Annotated slices (H, W), scaled to [0, 1], and their labels."""
    array = exemplar.volume.array
    given = intensity.range_of(array)
    return [(intensity.apply(array[index], given), exemplar.labels_on(index)) for index in exemplar.annotated_slices]


def _cells(chosen: argparse.Namespace) -> Iterator[tuple[str, int, str, int, list[str] | None]]:
    """Data set, size, model, seed, and for GMISeg the data sets it is trained on, None for all others."""
    if chosen.tasks and GMISEG not in chosen.models:
        raise InputError(f'Only "{GMISEG}" is trained on other data sets; add it to --models, or leave --tasks out.')
    for seed in range(chosen.seeds):
        for name in chosen.datasets:
            subsets = [subset_of_others(name, count, seed) for count in chosen.tasks] or [None]
            for size in chosen.sizes:
                for model in (SUPPORT, ENSEMBLE, GMISEG, CROSS, NEAREST):
                    if model in chosen.models and (model != ENSEMBLE or size > SUBSET):
                        for subset in subsets if model == GMISEG else [None]:
                            yield name, size, model, seed, subset
    for size in chosen.trained:
        for name in chosen.datasets:
            for model in (LORA, UNET):
                if model in chosen.models:
                    yield name, size, model, 0, None


def _made(
    cell: Run,
    network: PromptableNetwork,
    given: list[Exemplar],
    dataset: PublicDataSet,
    setting: Setting,
    elsewhere: _TrainedElsewhere,
) -> tuple[Segmenter, Run]:
    """The cell's model made from the exemplars, and its cost."""
    model, seed = cell["model"], cell["seed"]
    if model in (CROSS, NEAREST):
        cross = elsewhere.cross(dataset.name) if model == CROSS else None
        return _from_slices(given, dataset, cross), {}
    trained = elsewhere.gmiseg(cell["trained_on"] or others(dataset.name)) if model == GMISEG else None
    started, used = time.perf_counter(), time.process_time()
    if model == UNET:
        steps = [0]
        unet, structures = train_unet(
            given,
            dataset.intensity,
            seed=seed,
            seconds=setting.seconds,
            report=lambda progress: steps.__setitem__(0, progress.step),
        )
        return lambda volume: segment_unet(unet, structures, volume, dataset.intensity), {"steps": steps[0]}
    if model == LORA:
        recipe = lora.Recipe(estimate_folds=0, guard="off")
        inputs = AdaptInputs(network, given, intensity=replace(dataset.intensity, scale=network.scale))
        run = RunContext(np.random.default_rng(seed), max_seconds=setting.seconds)
        adapter = lora.adapt(inputs, recipe, run)
        return _free(predictor_of(network, adapter)), {"steps": adapter.metrics["steps"]}
    recipe_of_support = SupportRecipe(seed=seed, subsets=SUBSETS if model == ENSEMBLE else 0)
    intensity = replace(dataset.intensity, scale=network.scale)
    support = support_adapter(given, network, intensity=intensity, recipe=recipe_of_support)
    predictor = SupportPredictor(network, support, trained=trained, cache=EmbeddingCache(2**28))
    facts = {"setup_s": round(time.perf_counter() - started, 2), "setup_cpu_s": round(time.process_time() - used, 2)}
    return _free(predictor), facts


def _from_slices(given: Sequence[Exemplar], dataset: PublicDataSet, network: CrossNetwork | None) -> Segmenter:
    """The baselines that see slices only: cross-convolutions, each structure separately with the highest logit winning,
    or the labels of the most similar slice.
    """
    supports = [piece for exemplar in given for piece in _slices(exemplar, dataset.intensity)]
    structures = given[0].structures
    images = [image for image, _ in supports]
    tasks = {v: task_of(images, [labels == v for _, labels in supports], fewest=1) for v in structures}

    def answer(image: NDArray[Any]) -> NDArray[Any]:
        if network is None:
            return transferred(image, supports)
        found = {v: predicted(network, image, task) for v, task in tasks.items() if task is not None}
        logits = np.stack([np.zeros_like(image), *found.values()])
        return np.array([0, *found])[logits.argmax(0)]

    def run(volume: Volume) -> Labelmap:
        scaled = dataset.intensity.range_of(volume.array)
        labels = [answer(dataset.intensity.apply(plane, scaled)) for plane in volume.array]
        return Labelmap(volume.like(np.stack(labels).astype(np.uint8)), dict(structures))

    return run


def _free(predictor: Predictor) -> Segmenter:
    return lambda volume: segment(volume, predictor, options=SegmentOptions(axis=0)).labelmap


def _scored(
    segmenter: Segmenter, dataset: PublicDataSet, setting: Setting, structures: Mapping[int, str]
) -> tuple[list[Run], int]:
    """Rows of the structures in the exemplars, over all slices of each test case, and the number of slices."""
    rows, slices = [], 0
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        rows += evaluate_case(segmenter(volume), reference, structures, axis=0, case=case)
        slices += volume.shape[0]
    keep = ("case", "structure", "dsc", "iou", "asd_mm")
    return [{key: getattr(row, key) for key in keep} for row in rows if row.scope == "all_slices"], slices


# --------------------------------------------------------------------------------------------------------- forgetting


def _forgetting(chosen: argparse.Namespace, setting: Setting, record: Path) -> Iterator[Run]:
    """Each kind of update is trained with clicks on a first task, then continues on a second one."""
    done = {(r["lora"], r["first"], r["second"], r["seed"]) for r in results_in(record) if r["kind"] == "forgetting"}
    network = load_base(setting.base)
    for seed in range(chosen.seeds):
        for first, second in PAIRS:
            for kind in ("lora", "loose"):
                if (kind, first, second, seed) in done:
                    continue
                tasks = [KNOWN[name] for name in (first, second)]
                recipe = gmiseg.Recipe(kind=kind, full_decoder=False, slices_per_plane=3)
                stages: list[Any] = [None]
                for task in tasks:
                    intensity = replace(task.intensity, scale=network.scale)
                    inputs = AdaptInputs(
                        network, exemplars(task, setting.data, 9), intensity=intensity, start=stages[-1]
                    )
                    run = RunContext(np.random.default_rng(seed), max_seconds=setting.seconds)
                    stages.append(gmiseg.adapt(inputs, recipe, run))
                clicked = [[_clicked_dice(network, stage, task, setting) for stage in stages] for task in tasks]
                steps = [stage.metrics["steps"] for stage in stages[1:]]
                yield {
                    "kind": "forgetting",
                    "lora": kind,
                    "first": first,
                    "second": second,
                    "seed": seed,
                    "steps": steps,
                    "dice": clicked,
                }


def _clicked_dice(network: PromptableNetwork, adapter: Any, dataset: PublicDataSet, setting: Setting) -> float:
    """Mean Dice over structures, one centre click per structure on each slice that contains it."""
    predictor, rows = predictor_of(network, adapter), []
    options = SegmentOptions(axis=0, propagate=False)
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        prompts = [
            Prompt(0, index, np.array([[*centre_click(mask), index]], float), np.array([1]), structure=name)
            for index, labels in enumerate(reference.volume.array)
            for value, name in reference.structures.items()
            if (mask := labels == value).sum() >= SMALLEST_CLICKED
        ]
        found = segment(volume, predictor, intensity=dataset.intensity, prompts=prompts, options=options)
        rows += evaluate_case(found.labelmap, reference, dataset.structures, axis=0, case=case)
    scores = [{"structure": row.structure, "dsc": row.dsc} for row in rows if row.scope == "oracle_slices"]
    return mean_of(scores, "dsc")


def _head(setting: Setting) -> str:
    return (
        f"All slices of up to {setting.cases} test cases, thinned to about {setting.slices} each; trained models "
        f"{setting.seconds:g} s; {torch.get_num_threads()} threads of {platform.machine()}; base {setting.base}.\n\n"
    )
