"""The tables and curves of `benchmark support`, from its stored results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from FewShotSegLib.benchmarks.datasets import DATASETS, STARE
from FewShotSegLib.benchmarks.records import markdown

KNOWN = {**DATASETS, "stare": STARE}
SUPPORT, ENSEMBLE, LORA, UNET = "support set", "support set, ensemble", "LoRA", "U-Net"
GMISEG, CROSS, NEAREST = "support set, GMISeg", "cross-convolutions", "nearest slice"
MODELS = (SUPPORT, ENSEMBLE, GMISEG, CROSS, NEAREST, LORA, UNET)
PAIRS = (("acdc", "chaos"), ("chaos", "acdc"))
PLANES = ("", ", across J", ", across I")  # slicing axis of the arrays (K, J, I); K is implicit

# Table 2 of GMISeg (Xu 2024): Dice (%), Jaccard (%) and ASD (mm) of GMISeg, UniverSeg and Neuralizer. The size of their
# support sets is not specified, and the Jaccard of the left atrium exceeds its Dice.
PEERS = {GMISEG: "GMISeg", CROSS: "UniverSeg", NEAREST: "Neuralizer"}
PUBLISHED = {
    "acdc": {GMISEG: (78.7, 74.5, 1.2), CROSS: (75.0, 71.6, 2.7), NEAREST: (74.7, 71.2, 3.1)},
    "la2018": {GMISEG: (77.8, 84.3, 1.3), CROSS: (74.9, 71.4, 2.8), NEAREST: (74.5, 71.0, 3.3)},
    "btcv": {GMISEG: (77.5, 73.9, 1.4), CROSS: (74.6, 71.1, 3.0), NEAREST: (74.2, 70.8, 3.4)},
    "stare": {GMISEG: (77.6, 74.0, 1.5), CROSS: (74.4, 70.9, 3.2), NEAREST: (74.0, 70.5, 3.6)},
}

Run = dict[str, Any]


def mean_of(scores: Sequence[Run], key: str) -> float:
    """Mean over structures of the mean over cases."""
    names = sorted({row["structure"] for row in scores})
    return float(np.mean([np.mean([row[key] for row in scores if row["structure"] == name]) for name in names]))


def _of_sizes(runs: Sequence[Run]) -> list[Run]:
    """Results by support set size, in the order of the data sets; other planes count as other data sets."""
    sizes = [run for run in runs if run["kind"] == "size"]
    order = list(KNOWN)
    sizes.sort(key=lambda run: (order.index(run["dataset"]), run["plane"]))
    return [{**run, "dataset": run["dataset"] + PLANES[run["plane"]]} for run in sizes]


def _data_sets(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["dataset"] for run in runs))


def tables(runs: Sequence[Run]) -> str:
    """All tables with results, as Markdown."""
    every = _of_sizes(runs)
    sizes = [run for run in every if run["trained_on"] is None]
    parts = [_size_table(sizes), _quartile_table(sizes), _structure_table(sizes), _time_table(sizes)] if sizes else []
    parts += [_task_table(every), _paper_table(sizes)]
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
    """Random support sets: minimum, quartiles and maximum of Dice over the sets, in percent."""
    rows = []
    for (name, model), sets in _sets(runs).items():
        for size, dice in sets.items():
            values = 100 * np.quantile(dice, (0, 0.25, 0.5, 0.75, 1))
            rows.append([name, str(size), model, str(len(dice)), *(f"{value:.1f}" for value in values)])
    head = ["data set", "slices", "model", "sets", "smallest", "quartile", "median", "quartile", "largest"]
    return markdown(head, rows) if rows else ""


def _sets(runs: Sequence[Run]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """{(data set, model): {size: mean Dice of each random support set}}."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in sorted((run for run in runs if run["drawn"]), key=lambda run: (run["size"], run["seed"])):
        sizes = found.setdefault((run["dataset"], run["model"]), {})
        sizes.setdefault(run["size"], []).append(mean_of(run["scores"], "dsc"))
    return found


def spreads(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """{data set, and model if several: {size: Dice of each set}}, as in the paper's Fig. 7."""
    sets = _sets([run for run in _of_sizes(runs) if run["trained_on"] is None])
    several = len({model for _, model in sets}) > 1
    return {
        f"{name}: {model}" if several else name: {str(size): dice for size, dice in sizes.items()}
        for (name, model), sizes in sets.items()
    }


def _by_tasks(runs: Sequence[Run]) -> dict[tuple[str, int], dict[str, list[float]]]:
    """{(data set, size): {number of GMISeg's training data sets: mean Dice of each run}}; empty if no run is trained on
    a subset.
    """
    if all(run["trained_on"] is None for run in runs):
        return {}
    trained = _chosen(runs, model=GMISEG)
    trained.sort(key=lambda run: (len(run["trained_on"] or KNOWN), run["seed"]))
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for run in trained:
        count = "all" if run["trained_on"] is None else str(len(run["trained_on"]))
        found.setdefault((run["dataset"], run["size"]), {}).setdefault(count, []).append(mean_of(run["scores"], "dsc"))
    return found


def _task_table(runs: Sequence[Run]) -> str:
    """Mean, smallest and largest Dice by the number of GMISeg's training data sets (the paper's Fig. 5), in percent;
    empty if no run is trained on a subset.
    """
    rows = [
        [name, str(size), tasks, str(len(dice)), *(f"{100 * f(dice):.1f}" for f in (np.mean, np.min, np.max))]
        for (name, size), counts in _by_tasks(runs).items()
        for tasks, dice in counts.items()
    ]
    head = ["data set", "slices", "data sets trained on", "runs", "Dice", "smallest", "largest"]
    return markdown(head, rows) if rows else ""


def task_spreads(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """{data set and support set size: {number of GMISeg's training data sets: Dice of each run}}, as in the paper's
    Fig. 5.
    """
    return {f"{name}, {size} slices": counts for (name, size), counts in _by_tasks(_of_sizes(runs)).items()}


def _paper_table(runs: Sequence[Run]) -> str:
    """The paper's Table 2 next to ours with the largest support set for which all three were run: Dice / Jaccard (%) /
    ASD (mm); empty if there is none.
    """
    rows = []
    for name in PUBLISHED:
        found = {model: _chosen(runs, dataset=name, model=model) for model in PEERS}
        shown = [{run["size"] for run in own} for own in found.values() if own]
        sizes = set.intersection(*shown) if shown else set()
        if not sizes:
            continue
        size = max(sizes)
        cells = []
        for model, own in found.items():
            theirs = " / ".join(f"{value:.1f}" for value in PUBLISHED[name][model])
            cells += [theirs, _cell(_chosen(own, size=size))]
        rows.append([name, str(size), *cells])
    heads = [words for model, peer in PEERS.items() for words in (f"{peer}, paper", f"{model}, ours")]
    return markdown(["data set", "slices", *heads], rows) if rows else ""


def _cell(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    dice, jaccard, asd = (np.array([mean_of(run["scores"], key) for run in runs]) for key in ("dsc", "iou", "asd_mm"))
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
    """Median seconds to prepare a support set, wall and CPU time, and per slice."""
    rows = []
    for size in sorted({run["size"] for run in runs}):
        own = _chosen(runs, size=size, model=SUPPORT)
        if own:
            rows.append([str(size), *(f"{np.median([r[k] for r in own]):.2f}" for k in TIMES)])
    return markdown(["slices", "set-up, s", "set-up, CPU s", "further slice, s"], rows)


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


def curves(runs: Sequence[Run]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{data set: {model: [(size, mean Dice)]}}, the paper's Fig. 6."""
    sizes = [run for run in _of_sizes(runs) if run["trained_on"] is None]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in _data_sets(sizes):
        found[name] = {}
        for model in MODELS:
            own = _chosen(sizes, dataset=name, model=model)
            points = [
                (float(size), float(np.mean([mean_of(run["scores"], "dsc") for run in _chosen(own, size=size)])))
                for size in sorted({run["size"] for run in own})
            ]
            if points:
                found[name][model] = points
    return found
