"""`fewshotseg benchmark support`: how far exemplars go without training, and what training would add.

For each data set and number of support slices: Dice, Jaccard and mean surface distance of every structure of every test
case, from the support set at once, with and without ensembles of random subsets; from the same support set with a model
that GMISeg has trained on the other data sets (`--tasks`: on how many of them); from two peers, a network of
cross-convolutions trained on the other data sets and the labels of the most similar slice; and at some of the sizes, on
the same slices, the same model adapted with LoRA and a U-Net from scratch. With --random the supports are drawn by lot,
a set a seed; `--plane` chooses the plane of the slices. With --forgetting instead: LoRA and Loose LoRA on two
tasks one after the other, and how much of the first is left. Every result is a line of JSON, so an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
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

from FewShotSegLib.benchmarks import cross_convolution
from FewShotSegLib.benchmarks.cross_convolution import CrossNetwork, Task, predicted, task_of
from FewShotSegLib.benchmarks.datasets import (
    DATASETS,
    STARE,
    PublicDataSet,
    exemplars,
    random_exemplars,
    unseen_cases,
)
from FewShotSegLib.benchmarks.label_transfer import transferred
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.benchmarks.unet import segment_unet, train_unet
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
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

KNOWN = {**DATASETS, "stare": STARE}
DEFAULT = ("acdc", "la2018", "btcv", "brats", "stare")
SUPPORT, ENSEMBLE, LORA, UNET = "support set", "support set, ensemble", "LoRA", "U-Net"
GMISEG, CROSS, NEAREST = "support set, GMISeg", "cross-convolutions", "nearest slice"
MODELS = (SUPPORT, ENSEMBLE, GMISEG, CROSS, NEAREST, LORA, UNET)
TASK_SLICES = 9  # of each data set that GMISeg or the peer is trained on
SUBSETS = 5
SMALLEST_CLICKED = 3  # pixels
PAIRS = (("acdc", "chaos"), ("chaos", "acdc"))
SLICES = "slices in the support set"
PLANES = ("", ", across J", ", across I")  # as the arrays (K, J, I) are cut; K is not said

Segmenter = Callable[[Volume], Labelmap]
Run = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is held equal."""

    data: Path
    base: str
    cases: int
    slices: int
    seconds: float
    plane: int = 0
    drawn: bool = False
    tasks: int | None = None

    def known(self, name: str) -> PublicDataSet:
        """A data set in the plane that is looked at; photographs have one."""
        return KNOWN[name] if name == "stare" else replace(KNOWN[name], plane=self.plane)


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; tables go to standard output and to `<out>.md`, curves to `<out>.png`, how sets drawn by lot
    differ to `<out>-sets.png`.
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
        chosen.tasks,
    )
    record = Path(f"{chosen.out}.jsonl")
    runs = _forgetting(chosen, setting, record) if chosen.forgetting else _sizes(chosen, setting, record)
    for run in runs:
        logger.info("%s", {key: value for key, value in run.items() if key != "scores"})
        add_result(record, run)
    found = results_in(record)
    text = _head(setting) + _tables(found)
    write_text_whole(Path(f"{chosen.out}.md"), text)
    curves = _curves(found)
    if curves:
        with written_whole(Path(f"{chosen.out}.png")) as part:
            part.write_bytes(curves_chart(curves, SLICES).light)
    spreads = _spreads(found)
    if spreads:
        with written_whole(Path(f"{chosen.out}-sets.png")) as part:
            part.write_bytes(boxes_chart(spreads, SLICES).light)
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
    parser.add_argument("--tasks", type=int, help="on how many other data sets GMISeg is trained; default: on all")
    parser.add_argument("--base", default="bundled-small")
    return parser


# -------------------------------------------------------------------------------------------------------------- sizes


def _sizes(chosen: argparse.Namespace, setting: Setting, record: Path) -> Iterator[Run]:
    """Support sets of all sizes first, then what is trained, which takes longest."""
    done = {_key(run) for run in results_in(record) if run["kind"] == "size"}
    network = load_base(setting.base)
    made = _TrainedElsewhere(network, setting)
    for name, size, model, seed in _cells(chosen):
        cell = {"dataset": name, "size": size, "model": model, "seed": seed, "plane": setting.plane}
        cell |= {"drawn": setting.drawn, "tasks": setting.tasks if model == GMISEG else None}
        if _key(cell) in done:
            continue
        dataset = setting.known(name)
        if setting.drawn:
            given = random_exemplars(dataset, setting.data, size, np.random.default_rng([seed, size]))
        else:
            given = exemplars(dataset, setting.data, size)
        if sum(len(one.annotated_slices) for one in given) < size:
            continue  # there are no more slices to show
        segmenter, facts = _made(model, network, given, dataset, setting, seed, made)
        started = time.perf_counter()
        scores, slices = _scored(segmenter, dataset, setting, given[0].structures)
        facts["slice_s"] = round((time.perf_counter() - started) / slices, 3)
        yield {"kind": "size", **cell, **facts, "scores": scores}


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("dataset", "size", "model", "seed", "plane", "drawn", "tasks"))


class _TrainedElsewhere:
    """What is trained on the data sets that are not tested, made when it is first asked for."""

    def __init__(self, network: PromptableNetwork, setting: Setting) -> None:
        self.network, self.setting = network, setting
        self._gmiseg: dict[str, Adapter] = {}
        self._cross: dict[str, CrossNetwork] = {}

    def others(self, name: str) -> list[PublicDataSet]:
        """The other data sets of volumes, as many as the setting says."""
        found = [self.setting.known(other) for other in DATASETS if other != name]
        return found[: self.setting.tasks]

    def gmiseg(self, name: str) -> Adapter:
        """An adapter of GMISeg for whatever the data set of this name shows."""
        if name not in self._gmiseg:
            given = [e for other in self.others(name) for e in exemplars(other, self.setting.data, TASK_SLICES)]
            run = RunContext(np.random.default_rng(0), max_seconds=self.setting.seconds)
            recipe = gmiseg.Recipe(slices_per_plane=TASK_SLICES)
            self._gmiseg[name] = gmiseg.adapt(AdaptInputs(self.network, given), recipe, run)
        return self._gmiseg[name]

    def cross(self, name: str) -> CrossNetwork:
        """A network of cross-convolutions that has not seen the data set of this name."""
        if name not in self._cross:
            tasks = [task for other in self.others(name) for task in self._tasks(other)]
            self._cross[name] = cross_convolution.train(tasks, seed=0, seconds=self.setting.seconds, report=silent)
        return self._cross[name]

    def _tasks(self, dataset: PublicDataSet) -> list[Task]:
        """One for each structure that enough slices show."""
        given = exemplars(dataset, self.setting.data, 2 * TASK_SLICES)
        slices = [piece for exemplar in given for piece in _slices(exemplar, dataset.intensity)]
        made = (
            task_of([i for i, _ in slices], [labels == value for _, labels in slices]) for value in dataset.structures
        )
        return [task for task in made if task is not None]


def _slices(exemplar: Exemplar, intensity: IntensitySpec) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Annotated slices (H, W), scaled to [0, 1], and their labels."""
    array = exemplar.volume.array
    given = intensity.range_of(array)
    return [(intensity.apply(array[index], given), exemplar.labels_on(index)) for index in exemplar.annotated_slices]


def _cells(chosen: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    for seed in range(chosen.seeds):
        for name in chosen.datasets:
            for size in chosen.sizes:
                for model in (SUPPORT, ENSEMBLE, GMISEG, CROSS, NEAREST):
                    if model in chosen.models and (model != ENSEMBLE or size > SUBSET):
                        yield name, size, model, seed
    for size in chosen.trained:
        for name in chosen.datasets:
            for model in (LORA, UNET):
                if model in chosen.models:
                    yield name, size, model, 0


def _made(
    model: str,
    network: PromptableNetwork,
    given: list[Exemplar],
    dataset: PublicDataSet,
    setting: Setting,
    seed: int,
    elsewhere: _TrainedElsewhere,
) -> tuple[Segmenter, Run]:
    """The model made from the exemplars, and what that took."""
    if model in (CROSS, NEAREST):
        cross = elsewhere.cross(dataset.name) if model == CROSS else None
        return _from_slices(given, dataset, cross), {}
    trained = elsewhere.gmiseg(dataset.name) if model == GMISEG else None
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
    """The peers, which see slices alone: cross-convolutions, each structure for itself and the highest logit counts, or
    the labels of the most similar slice.
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
    """Rows of the structures that the exemplars show, over all slices of each test case, and the number of slices."""
    rows, slices = [], 0
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        rows += evaluate_case(segmenter(volume), reference, structures, axis=0, case=case)
        slices += volume.shape[0]
    keep = ("case", "structure", "dsc", "iou", "asd_mm")
    return [{key: getattr(row, key) for key in keep} for row in rows if row.scope == "all_slices"], slices


# --------------------------------------------------------------------------------------------------------- forgetting


def _forgetting(chosen: argparse.Namespace, setting: Setting, record: Path) -> Iterator[Run]:
    """Each kind of update learns to answer clicks on a first task, then on a second one, from where it was."""
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
    """Mean Dice over structures, one click in the middle of each structure on each slice that shows it."""
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
    return _mean(scores, "dsc")


# ------------------------------------------------------------------------------------------------------------- tables


def _mean(scores: Sequence[Run], key: str) -> float:
    """Mean over structures of the mean over cases."""
    names = sorted({row["structure"] for row in scores})
    return float(np.mean([np.mean([row[key] for row in scores if row["structure"] == name]) for name in names]))


def _head(setting: Setting) -> str:
    return (
        f"All slices of up to {setting.cases} test cases, thinned to about {setting.slices} each; trained models "
        f"{setting.seconds:g} s; {torch.get_num_threads()} threads of {platform.machine()}; base {setting.base}.\n\n"
    )


def _of_sizes(runs: Sequence[Run]) -> list[Run]:
    """Results for sizes of support sets, in the order of the data sets; a data set cut in another plane is another."""
    sizes = [run for run in runs if run["kind"] == "size"]
    order = list(KNOWN)
    sizes.sort(key=lambda run: (order.index(run["dataset"]), run["plane"]))
    return [{**run, "dataset": run["dataset"] + PLANES[run["plane"]]} for run in sizes]


def _data_sets(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["dataset"] for run in runs))


def _tables(runs: Sequence[Run]) -> str:
    every = _of_sizes(runs)
    sizes = [run for run in every if run["tasks"] is None]
    parts = [_size_table(sizes), _quartile_table(sizes), _structure_table(sizes), _time_table(sizes)] if sizes else []
    parts.append(_task_table(every))
    forgotten = [run for run in runs if run["kind"] == "forgetting"]
    return "\n".join([part for part in parts if part] + ([_forgetting_table(forgotten)] if forgotten else []))


def _chosen(runs: Sequence[Run], **values: Any) -> list[Run]:
    return [run for run in runs if all(run[key] == value for key, value in values.items())]


def _size_table(runs: Sequence[Run]) -> str:
    """Dice / Jaccard in percent and mean surface distance in mm, mean and spread over seeds."""
    head = ["data set", "slices", *(f"{model}: D / J / ASD" for model in MODELS)]
    rows = []
    for name in _data_sets(runs):
        for size in sorted({run["size"] for run in _chosen(runs, dataset=name)}):
            found = [_chosen(runs, dataset=name, size=size, model=model) for model in MODELS]
            rows.append([name, str(size), *map(_cell, found)])
    return markdown(head, rows)


def _quartile_table(runs: Sequence[Run]) -> str:
    """Of support sets drawn by lot: the smallest Dice, its quartiles and the largest over the sets, in percent."""
    rows = []
    for (name, model), sets in _sets(runs).items():
        for size, dice in sets.items():
            values = 100 * np.quantile(dice, (0, 0.25, 0.5, 0.75, 1))
            rows.append([name, str(size), model, str(len(dice)), *(f"{value:.1f}" for value in values)])
    head = ["data set", "slices", "model", "sets", "smallest", "quartile", "median", "quartile", "largest"]
    return markdown(head, rows) if rows else ""


def _sets(runs: Sequence[Run]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """{(data set, model): {size: mean Dice of each support set drawn by lot}}."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in sorted((run for run in runs if run["drawn"]), key=lambda run: (run["size"], run["seed"])):
        sizes = found.setdefault((run["dataset"], run["model"]), {})
        sizes.setdefault(run["size"], []).append(_mean(run["scores"], "dsc"))
    return found


def _spreads(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """{data set, and model where there are several: {size: Dice of each set}}, as the paper's Fig. 7 shows them."""
    sets = _sets([run for run in _of_sizes(runs) if run["tasks"] is None])
    several = len({model for _, model in sets}) > 1
    return {
        f"{name}: {model}" if several else name: {str(size): dice for size, dice in sizes.items()}
        for (name, model), sizes in sets.items()
    }


def _task_table(runs: Sequence[Run]) -> str:
    """Dice by the number of data sets that GMISeg was trained on (the paper's Fig. 5), in percent; empty where no run
    names one.
    """
    if all(run["tasks"] is None for run in runs):
        return ""
    trained = _chosen(runs, model=GMISEG)
    rows = []
    for name in _data_sets(trained):
        for size in sorted({run["size"] for run in _chosen(trained, dataset=name)}):
            own = _chosen(trained, dataset=name, size=size)
            for tasks in sorted({run["tasks"] for run in own}, key=lambda count: count or len(KNOWN)):
                dice = [_mean(run["scores"], "dsc") for run in _chosen(own, tasks=tasks)]
                rows.append([name, str(size), "all" if tasks is None else str(tasks), f"{100 * np.mean(dice):.1f}"])
    return markdown(["data set", "slices", "data sets trained on", "Dice"], rows)


def _cell(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    dice, jaccard, asd = (np.array([_mean(run["scores"], key) for run in runs]) for key in ("dsc", "iou", "asd_mm"))
    spread = f" ± {100 * np.ptp(dice) / 2:.1f}" if len(runs) > 1 else ""
    return f"{100 * dice.mean():.1f}{spread} / {100 * jaccard.mean():.1f} / {asd.mean():.1f}"


def _structure_table(runs: Sequence[Run]) -> str:
    """Dice of each structure by size of the support set, in percent."""
    sizes = sorted({run["size"] for run in runs})
    rows = []
    for name in _data_sets(_chosen(runs, model=SUPPORT)):
        own = _chosen(runs, dataset=name, model=SUPPORT)
        for structure in sorted({row["structure"] for run in own for row in run["scores"]}):
            values = []
            for size in sizes:
                scores = [row for run in _chosen(own, size=size) for row in run["scores"]]
                dice = [row["dsc"] for row in scores if row["structure"] == structure]
                values.append(f"{100 * np.mean(dice):.1f}" if dice else "")
            rows.append([f"{name}: {structure}", *values])
    return markdown(["structure", *map(str, sizes)], rows)


def _time_table(runs: Sequence[Run]) -> str:
    """Median seconds until a support set is ready, of the clock and of the processor, and per slice."""
    rows = []
    for size in sorted({run["size"] for run in runs}):
        own = _chosen(runs, size=size, model=SUPPORT)
        if own:
            rows.append([str(size), *(f"{np.median([r[k] for r in own]):.2f}" for k in TIMES)])
    return markdown(["slices", "set-up, s", "set-up, processor s", "further slice, s"], rows)


TIMES = ("setup_s", "setup_cpu_s", "slice_s")


def _forgetting_table(runs: Sequence[Run]) -> str:
    """Dice with one click on the first task and the second, before, between and after, in percent."""
    head = ["update", "first, then", "first: base", "after first", "after second", "change", "second: base", "after it"]
    rows = []
    for first, second in PAIRS:
        for kind in ("lora", "loose"):
            own = [run["dice"] for run in _chosen(runs, lora=kind, first=first, second=second)]
            if own:
                (base, learned, left), (other, _, after) = 100 * np.mean(own, axis=0)
                values = (base, learned, left, left - learned, other, after)
                rows.append([kind, f"{first}, {second}", *(f"{value:.1f}" for value in values)])
    return markdown(head, rows)


def _curves(runs: Sequence[Run]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{data set: {model: [(size, mean Dice)]}}."""
    sizes = [run for run in _of_sizes(runs) if run["tasks"] is None]
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in _data_sets(sizes):
        curves[name] = {}
        for model in MODELS:
            own = _chosen(sizes, dataset=name, model=model)
            points = [
                (float(size), float(np.mean([_mean(run["scores"], "dsc") for run in _chosen(own, size=size)])))
                for size in sorted({run["size"] for run in own})
            ]
            if points:
                curves[name][model] = points
    return curves
