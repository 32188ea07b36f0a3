"""The tables of the Cheap Lunch paper, its numbers next to ours.

Feng, Zhu and Yu (2023), Tables 1 to 6: DSC in percent and HD95 in mm, and the DSC of each organ. Of Table 5 only the
DSC is used for three rows whose distances are ambiguous in the available text. The paper's models are SAM ViT-B
fine-tuned on a GPU, its zero-shot row is ViT-H; its "full set" is every slice without synthesis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from FewShotSegLib.benchmarks.records import markdown
from FewShotSegLib.evaluation.scoring import one_is_empty

CLICK, RANDOM, FREE = "one click", "one random click", "prompt-free"
BASE, ADAPTED, PLAIN = "base", "adapted", "adapted, no synthesis"
PAPER, PAPER_PLAIN = "adapted as the paper", "adapted as the paper, no synthesis"
SAMED, UNET, ATTENTION = "SAMed-like", "U-Net", "Attention U-Net"
ALL = 1_000_000  # slices: all available
MODELS = (BASE, ATTENTION, UNET, SAMED, PAPER_PLAIN, PAPER, PLAIN, ADAPTED)
WAYS = (CLICK, RANDOM, FREE)

Key = tuple[int, str, str]
"""Exemplar slices, model, prompting mode."""

SYNAPSE = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
# (DSC, HD95, the DSC of each organ in this order); numbers missing in the paper are left out.
PUBLISHED: dict[str, dict[Key, tuple[float, ...]]] = {
    "btcv": {
        (0, BASE, CLICK): (74.54, 40.90, 88.74, 40.55, 87.11, 82.60, 88.63, 53.77, 83.79, 71.14),
        (0, BASE, RANDOM): (74.49, 41.15, 88.73, 40.58, 87.11, 82.55, 88.59, 53.67, 83.64, 71.06),
        (ALL, ATTENTION, FREE): (77.77, 36.02, 89.55, 68.88, 77.98, 71.11, 93.57, 58.04, 87.30, 75.75),
        (9, SAMED, FREE): (43.82, 96.21, 40.50, 34.20, 44.35, 46.10, 81.32, 23.43, 43.86, 36.78),
        (18, SAMED, FREE): (55.26, 75.02, 45.28, 50.70, 58.75, 62.53, 87.58, 31.07, 72.82, 33.32),
        (36, SAMED, FREE): (66.96, 44.69, 63.75, 58.17, 72.97, 68.96, 90.67, 40.38, 80.40, 60.35),
        (ALL, SAMED, FREE): (81.88, 20.64, 87.77, 69.11, 80.45, 79.95, 94.80, 72.17, 88.72, 82.06),
        (1, PAPER, CLICK): (75.91, 21.75, 84.46, 49.56, 83.74, 84.92, 88.05, 56.43, 89.28, 70.80),
        (9, PAPER, CLICK): (79.08, 21.62, 88.75, 55.76, 88.35, 84.11, 89.76, 61.26, 91.27, 73.41),
        (18, PAPER, CLICK): (83.04, 16.84, 89.18, 71.33, 89.20, 86.46, 92.55, 64.20, 90.52, 80.84),
        (36, PAPER, CLICK): (84.23, 11.86, 88.31, 69.91, 90.43, 88.57, 94.82, 65.17, 91.36, 85.24),
        (9, PAPER_PLAIN, CLICK): (78.36, 24.11, 85.67, 52.14, 87.17, 85.64, 86.46, 64.11, 88.72, 76.99),
        (18, PAPER_PLAIN, CLICK): (79.01, 20.37, 86.69, 52.02, 87.68, 86.00, 88.20, 63.56, 90.44, 77.46),
        (36, PAPER_PLAIN, CLICK): (80.82, 18.22, 89.60, 50.51, 87.36, 87.23, 92.29, 65.94, 92.44, 81.20),
        (ALL, PAPER_PLAIN, CLICK): (85.95, 8.97, 91.52, 64.42, 92.49, 91.56, 96.06, 66.49, 94.39, 90.66),
        (1, PAPER, RANDOM): (72.88, 25.36, 82.32, 43.64, 83.66, 83.55, 84.46, 50.72, 89.46, 50.72),
        (9, PAPER, RANDOM): (76.83, 16.05, 88.40, 52.45, 87.59, 82.84, 87.15, 57.58, 88.97, 69.64),
        (18, PAPER, RANDOM): (78.53, 26.74, 88.03, 53.61, 88.50, 86.27, 89.08, 59.08, 87.64, 76.06),
        (36, PAPER, RANDOM): (81.25, 17.20, 88.23, 58.63, 90.28, 87.70, 92.50, 60.15, 90.49, 82.70),
        (ALL, PAPER_PLAIN, RANDOM): (85.06, 12.43, 90.59, 60.68, 91.54, 90.07, 94.75, 62.13, 94.08, 88.64),
    },
    "brats": {
        (0, BASE, CLICK): (45.29, 54.74),
        (0, BASE, RANDOM): (44.93, 55.36),
        (75, SAMED, FREE): (82.80, 28.03),
        (150, SAMED, FREE): (82.50, 43.99),
        (450, SAMED, FREE): (85.53, 17.56),
        (ALL, SAMED, FREE): (85.52, 31.13),
        (75, PAPER, CLICK): (82.78, 14.92),
        (150, PAPER, CLICK): (83.4, 10.03),
        (450, PAPER, CLICK): (83.07, 16.94),
        (75, PAPER_PLAIN, CLICK): (68.14, 17.85),
        (150, PAPER_PLAIN, CLICK): (81.76, 18.43),
        (450, PAPER_PLAIN, CLICK): (81.02, 11.14),
        (ALL, PAPER_PLAIN, CLICK): (85.28, 7.91),
        (75, PAPER, RANDOM): (82.88,),
        (150, PAPER, RANDOM): (83.50,),
        (450, PAPER, RANDOM): (83.04,),
        (ALL, PAPER_PLAIN, RANDOM): (85.28, 7.92),
    },
}


def tables(dataset: str, cells: Mapping[Key, Mapping[str, Any]]) -> str:
    """Two tables of a data set as Markdown: "paper / ours" of DSC, HD95 and DSC of each organ; and our HD95 of each.

    `cells` are the results of `benchmark accuracy`, {key: {"scores": [row, ...]}}. Rows of the paper that were not
    measured are kept, with ours blank. With prompts only slices that contain a structure count, as in the paper;
    without, all.
    """
    published = PUBLISHED.get(dataset, {})
    found = sorted({row["structure"] for cell in cells.values() for row in cell["scores"]})
    organs = [name for name in SYNAPSE if name in found] + [name for name in found if name not in SYNAPSE]
    overall, distances = [], []
    for key in sorted({*published, *(k for k in cells if k[1] in MODELS and k[2] in WAYS)}, key=_place):
        shots, model, way = key
        given, cell = published.get(key, ()), cells.get(key)
        theirs = dict(zip(("DSC", "HD95", *SYNAPSE), given, strict=False))
        ours = {} if cell is None else _ours(cell, way, organs)
        name = [shown(shots), f"{model}, {way}" if model not in (SAMED, UNET, ATTENTION) else model]
        pairs = [_pair(theirs.get(column), ours.get(column)) for column in ("DSC", "HD95", *organs)]
        overall.append([*name, *pairs])
        if cell is not None:
            far = _distances(cell, way, organs)
            none, rows = int(sum(far[organ][1] for organ in organs)), sum(far[organ][2] for organ in organs)
            distances.append([*name, *(_number(far[organ][0]) for organ in organs), f"{none} of {rows}"])
    head = ["slices", "model", "DSC, %: paper / ours", "HD95, mm: paper / ours", *(f"{o}, DSC" for o in organs)]
    text = markdown(head, overall)
    if distances:
        text += "\n" + markdown(["slices", "model", *(f"{o}, HD95" for o in organs), "no mask, no distance"], distances)
    return text


def shown(shots: int) -> str:
    """A number of exemplar slices as shown in tables."""
    return "all" if shots == ALL else str(shots)


def _place(key: Key) -> tuple[int, int, int]:
    shots, model, way = key
    return MODELS.index(model), WAYS.index(way), shots


def _rows(cell: Mapping[str, Any], organ: str, way: str) -> list[Mapping[str, Any]]:
    scope = "all_slices" if way == FREE else "oracle_slices"
    return [row for row in cell["scores"] if row["structure"] == organ and row["scope"] == scope]


def _ours(cell: Mapping[str, Any], way: str, organs: Sequence[str]) -> dict[str, float]:
    """DSC (%) of each organ that was scored, and DSC and HD95 over organs."""
    dice = {organ: [100 * row["dsc"] for row in _rows(cell, organ, way)] for organ in organs}
    each = {organ: float(np.mean(values)) for organ, values in dice.items() if values}
    far = [mean for mean, _, _ in _distances(cell, way, organs).values() if mean is not None]
    found = dict(each)
    if each:
        found["DSC"] = float(np.mean(list(each.values())))
    if far:
        found["HD95"] = float(np.mean(far))
    return found


def _distances(cell: Mapping[str, Any], way: str, organs: Sequence[str]) -> dict[str, tuple[float | None, int, int]]:
    """For each organ: mean HD95 (mm) over the cases that have one, the number of cases with exactly one empty mask, and
    of all. Such a case has no distance. It is excluded and counted, instead of using the image diagonal, as elsewhere
    here, or 0 mm, as in the evaluation of TransUNet, whose case split the paper uses.
    """
    found: dict[str, tuple[float | None, int, int]] = {}
    for organ in organs:
        rows = _rows(cell, organ, way)
        known = [row["hd95_mm"] for row in rows if not one_is_empty(row["volume_pred_ml"], row["volume_ref_ml"])]
        found[organ] = float(np.mean(known)) if known else None, len(rows) - len(known), len(rows)
    return found


def _pair(theirs: float | None, ours: float | None) -> str:
    return "" if theirs is None and ours is None else f"{_number(theirs)} / {_number(ours)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
