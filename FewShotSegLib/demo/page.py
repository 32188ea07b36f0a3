"""The report page of `fewshotseg demo`: inputs, results, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.evaluation.scoring import Row
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.progress import Progress
from FewShotSegLib.visualization.charts import bars_chart, learning_chart
from FewShotSegLib.visualization.html_page import HtmlPage
from FewShotSegLib.visualization.overlays import overlay_png, upright

BASE, CLICKED, FREE = "base model, clicks", "adapted, clicks", "adapted, no clicks"
FOLDERS = {BASE: "with-clicks-base", CLICKED: "with-clicks-adapted", FREE: "segmented"}
_SHOWN_AT = (0.3, 0.55, 0.8)  # of the labelled part of a patient


@dataclass(frozen=True, eq=False)
class Patient:
    """One synthetic patient, its files, and its annotated slices (none for an unseen one)."""

    name: str
    volume: Volume
    truth: Labelmap
    image: Path
    reference: Path
    annotated: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DemoReport:
    """The data of the page."""

    out: Path
    known: Sequence[Patient]
    unseen: Sequence[Patient]
    scores: Mapping[str, Sequence[Row]]
    history: Sequence[Progress]
    record: Mapping[str, Any]
    sheet: Path
    seconds: float


def mean_dice(rows: Sequence[Row], structure: str | None = None, scope: str = "oracle_slices") -> float:
    """Mean over cases, and over structures if none is named."""
    return float(np.mean([row.dsc for row in rows if row.scope == scope and structure in (None, row.structure)]))


def write_report(demo: DemoReport, path: Path) -> None:
    slices = sum(len(patient.annotated) for patient in demo.known)
    page = HtmlPage(
        f"From {slices} annotated slices to whole patients",
        f"A small promptable model was adapted to {slices} annotated slices of {len(demo.known)} synthetic patients "
        f"on this computer, and then segmented {len(demo.unseen)} patients it had never seen.",
    )
    _numbers(page, demo)
    colors = structure_colors(demo.known[0].truth.structures)
    page.heading("The exemplars")
    page.text("The adapter saw these annotated slices and nothing else of the same patients.")
    page.legend(demo.known[0].truth.structures, colors, filled="annotation")
    page.gallery([_picture(p, p.truth, index, colors, outline=False) for p in demo.known for index in p.annotated])
    _scores(page, demo)
    _overlays(page, demo, colors)
    page.heading("Training images")
    page.text(
        "Twelve of the images of the training: the annotated slices and augmented copies of them, or, with "
        "bundled-small, organs cut out of them and pasted on other backgrounds. If one is anatomically impossible, "
        "check the annotation of that slice."
    )
    page.figure(demo.sheet.read_bytes(), "Training images with the outlines of their labels")
    _learning(page, demo)
    _notes(page, demo)
    page.write(path)


def _numbers(page: HtmlPage, demo: DemoReport) -> None:
    tiles = [(f"mean Dice, {name}", f"{mean_dice(rows):.2f}") for name, rows in demo.scores.items()]
    adapting = demo.record["timings_s"]["adapt"]
    page.numbers([*tiles, ("seconds to adapt", f"{adapting:.0f}"), ("seconds for everything", f"{demo.seconds:.0f}")])


def _scores(page: HtmlPage, demo: DemoReport) -> None:
    page.heading("How well it works")
    page.text(
        "Dice on the unseen patients: on the slices that show the structure / on all slices of the volume, where masks "
        "in the wrong place count too. With clicks: one on every slice that shows the structure, at its centre, taken "
        f"from the reference ({_clicks(demo)}); masks are propagated from there to other slices. Without clicks, "
        "nobody touches the image. Where the base model is good with clicks already, adapting gains little with "
        "clicks: its gain is that none are needed."
    )
    structures = list(demo.known[0].truth.structures.values())
    groups = {name: {s: mean_dice(rows, s) for s in structures} for name, rows in demo.scores.items()}
    page.figure(bars_chart(groups), "Dice per structure, mean of the unseen patients")
    page.table(
        ["Structure", *groups],
        [
            [structure or "mean", *(_in_both_scopes(found, structure) for found in demo.scores.values())]
            for structure in (*structures, None)
        ],
    )


def _clicks(demo: DemoReport) -> str:
    counts = {p.name: sum(np.count_nonzero(np.unique(labels)) for labels in p.truth.volume.array) for p in demo.unseen}
    return ", ".join(f"{count} clicks on {name}" for name, count in counts.items())


def _in_both_scopes(rows: Sequence[Row], structure: str | None) -> str:
    return f"{mean_dice(rows, structure):.2f} / {mean_dice(rows, structure, 'all_slices'):.2f}"


def _overlays(page: HtmlPage, demo: DemoReport, colors: Mapping[int, Any]) -> None:
    page.heading("Patients it has never seen")
    page.legend(demo.unseen[0].truth.structures, colors)
    for patient in demo.unseen:
        pictures = []
        for name in demo.scores:  # a row of images each
            found = load_labelmap(demo.out / FOLDERS[name] / f"{patient.name}.seg.nrrd")
            pictures += [_picture(patient, found, index, colors, title=name) for index in _shown(patient)]
        page.gallery(pictures, f"{patient.name}: filled: prediction; outline: reference")


def _shown(patient: Patient) -> list[int]:
    organs = patient.truth.volume.array
    held = np.flatnonzero(np.isin(organs, [1, 2, 3, 4]).any(axis=(1, 2)))
    return [int(held[round(share * (len(held) - 1))]) for share in _SHOWN_AT]


def _picture(
    patient: Patient, found: Labelmap, index: int, colors: Mapping[int, Any], title: str = "", outline: bool = True
) -> tuple[bytes, str]:
    volume = patient.volume
    spec = IntensitySpec.auto(volume)
    image = spec.apply(volume.array[index], spec.range_of(volume.array))
    layers = [image, _as_in_truth(found, patient.truth)[index], patient.truth.volume.array[index]]
    body = _body(volume)
    image, pred, ref = (upright(layer[body], volume.affine, 0) for layer in layers)
    caption = f"{title}, slice {index}" if title else f"{patient.name}, slice {index}"
    return overlay_png(image, pred, ref if outline else None, colors), caption


def _body(volume: Volume) -> tuple[slice, slice]:
    """Bounding box of the patient in the slices (rows and columns), with a small margin."""
    inside = np.any(volume.array > -300, axis=0)
    rows, columns = (np.flatnonzero(np.any(inside, axis=other)) for other in (1, 0))
    (top, bottom), (left, right) = ((max(int(at[0]) - 3, 0), int(at[-1]) + 4) for at in (rows, columns))
    return slice(top, bottom), slice(left, right)


def _as_in_truth(found: Labelmap, truth: Labelmap) -> NDArray[Any]:
    """Labels renumbered as in the ground truth; without an adapter they are in prompt order."""
    labels = np.zeros_like(found.volume.array)
    value_of = {name: value for value, name in truth.structures.items()}
    for value, name in found.structures.items():
        labels[found.volume.array == value] = value_of[name]
    return labels


def _learning(page: HtmlPage, demo: DemoReport) -> None:
    if not demo.history:
        return
    steps = [progress.step for progress in demo.history]
    losses = [progress.metrics["loss"] for progress in demo.history]
    held_out = [(p.step, p.metrics["score"]) for p in demo.history if "score" in p.metrics]
    best = demo.record["metrics"].get("best_step")
    chart = learning_chart(steps, losses, held_out, best if held_out else None)
    page.figure(chart, "Training loss, and Dice on held-out training images" if held_out else "Training loss")


def _notes(page: HtmlPage, demo: DemoReport) -> None:
    page.heading("What these numbers do not say")
    page.note(
        "The patients are synthetic. The demo shows that the program works on this computer, not how it does on yours: "
        "for that, annotate a few slices of your own images and evaluate on cases you did not annotate."
    )
    for warning in demo.record["warnings"]:
        page.text(f"Warning: {warning}")
    adapter = demo.record["adapter"]
    page.text(
        f"Seed {demo.record['seed']}, {demo.record['metrics']['steps']} steps on {demo.record['device']}, base model "
        f"{adapter['base_model']}. The job that made the adapter is jobs/adapt.json: fewshotseg job jobs/adapt.json "
        "makes it again, to the same bytes on a CPU."
    )
