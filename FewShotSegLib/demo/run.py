"""`fewshotseg demo`: synthetic patients, three annotated slices, an adapter, and patients it has never seen.

Everything runs as jobs, like a user's own: the demo can be reproduced from its job files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Labelmap
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import Row
from FewShotSegLib.io.files import check_writable, write_text_whole
from FewShotSegLib.io.jobs import save_job
from FewShotSegLib.io.prompts import save_prompts
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.jobs.adapt import base_of, preview
from FewShotSegLib.jobs.record import RECORD_SUFFIX
from FewShotSegLib.jobs.run import run
from FewShotSegLib.progress import Progress, Report, note, silent
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.version import __version__
from FewShotSegLib.visualization.text_table import table

from .page import BASE, CLICKED, FOLDERS, FREE, DemoReport, Patient, mean_dice, write_report
from .phantom import cohort

# No time limit: the learning rate would depend on the clock, and the demo should be reproducible.
RECIPE: dict[str, Any] = {"estimate_folds": 0}
# For a base model whose encoder is trained.
ENCODER_RECIPE: dict[str, Any] = {
    "steps": 420,
    "batch_size": 2,
    "click_prompts": 2,
    "token_prompts": 5,
    "validate_every": 70,
}
# Where along the labelled part of a patient slices are annotated: two of the first patient, one of the second.
ANNOTATED_AT = ((0.3, 0.75), (0.5,))
UNSEEN = 2


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    base: str = "auto",
    report: Report = silent,
    recipe: dict[str, Any] | None = None,
    patient: dict[str, Any] | None = None,
) -> list[str]:
    """Run the whole demo in the folder `out` and return the lines to print.

    `recipe` overrides the demo's own options; `patient` holds options of `phantom.patient`.
    """
    started = time.monotonic()
    _take_folder(out)
    adapter = out / "adapter.safetensors"
    base = base_of(AdaptJob(str(adapter), base=base))
    of_encoder = ENCODER_RECIPE if registry.find(base)[0].family == "compact" else {}
    recipe = RECIPE | of_encoder | (recipe or {})
    report(note("Making synthetic patients."))
    patients = _patients(out, seed, patient or {})
    known = [p for p in patients if p.annotated]
    unseen = [p for p in patients if not p.annotated]
    sheet = out / "synthesized.png"
    history: list[Progress] = []
    job = AdaptJob(str(adapter), exemplars=_files(known), base=base, recipe=recipe, seed=seed, overwrite=True)
    save_job(job, out / "jobs" / "adapt.json")
    preview(job, sheet)
    record = run(job, _remembering(report, history))
    scores = {
        BASE: _with_clicks(out, unseen, base, None, report),
        CLICKED: _with_clicks(out, unseen, base, adapter, report),
        FREE: _without_clicks(out, unseen, base, adapter, report),
    }
    seconds = time.monotonic() - started
    content = DemoReport(out, known, unseen, scores, history, record, sheet, seconds)
    write_report(content, out / "report.html")
    return _lines(scores, out, seconds)


_MARK = "demo.json"


def _take_folder(out: Path) -> None:
    """Use only an empty folder, or that of an earlier demo, whose content is regenerated."""
    check_writable(out / _MARK)
    if not (out / _MARK).is_file() and any(entry.name[0] != "." for entry in out.iterdir()):
        raise InputError(f"{out} holds files that are not of a demo; choose a folder that is new or empty (--out).")
    write_text_whole(out / _MARK, json.dumps({"made_by": "fewshotseg demo", "version": __version__}) + "\n")


def _patients(out: Path, seed: int, options: dict[str, Any]) -> list[Patient]:
    patients = []
    for number, (volume, truth) in enumerate(cohort(seed, len(ANNOTATED_AT) + UNSEEN, **options)):
        name = f"patient-{number + 1}"
        at = ANNOTATED_AT[number] if number < len(ANNOTATED_AT) else ()
        folder = out / ("exemplars" if at else "unseen")
        reference = out / ("exemplars" if at else "reference") / f"{name}.seg.nrrd"
        patient = Patient(name, volume, truth, folder / f"{name}.nrrd", reference, _slices_at(truth.volume.array, at))
        save_volume(volume, patient.image)
        # Only annotated slices of the exemplars are written: nothing else can leak into the adapter.
        save_labelmap(_only_annotated(patient) if at else truth, reference)
        patients.append(patient)
    return patients


def _slices_at(labels: NDArray[Any], shares: Sequence[float]) -> tuple[int, ...]:
    """Slices along k at fractions of the range with any organ but the aorta, which spans the whole volume."""
    organs = (labels > 0) & (labels != 5)
    held = np.flatnonzero(organs.any(axis=(1, 2)))
    return tuple(int(held[round(share * (len(held) - 1))]) for share in shares)


def _only_annotated(patient: Patient) -> Labelmap:
    labels = np.zeros_like(patient.truth.volume.array)
    annotated = list(patient.annotated)
    labels[annotated] = patient.truth.volume.array[annotated]
    return Labelmap(patient.volume.like(labels), patient.truth.structures)


def _files(known: Sequence[Patient]) -> tuple[ExemplarFiles, ...]:
    return tuple(ExemplarFiles(str(p.image), str(p.reference), axis="k", slices=p.annotated) for p in known)


def _remembering(report: Report, history: list[Progress]) -> Report:
    def remember(progress: Progress) -> None:
        if "loss" in progress.metrics:
            history.append(progress)
        report(progress)

    return remember


def _without_clicks(out: Path, unseen: Sequence[Patient], base: str, adapter: Path, report: Report) -> list[Row]:
    folder = _emptied(out / FOLDERS[FREE])
    job = SegmentJob(tuple(str(p.image) for p in unseen), str(folder), str(adapter), base=base, overwrite=True)
    return _scored(out, FREE, [job], "metrics", report)


def _with_clicks(out: Path, unseen: Sequence[Patient], base: str, adapter: Path | None, report: Report) -> list[Row]:
    """One click per structure on every slice that contains it, at its centre, as a user would click."""
    what = CLICKED if adapter else BASE
    name = FOLDERS[what]
    folder = _emptied(out / name)
    jobs = []
    for patient in unseen:
        prompts = out / "prompts" / f"{patient.name}.json"
        save_prompts(_clicks(patient.truth), prompts)
        weights = str(adapter) if adapter else None
        jobs.append(SegmentJob((str(patient.image),), str(folder), weights, str(prompts), base, overwrite=True))
    return _scored(out, what, jobs, f"metrics-{name}", report)


def _emptied(folder: Path) -> Path:
    """The folder without records of an earlier demo, so that everything is recomputed."""
    for record in folder.glob(f"*{RECORD_SUFFIX}"):
        record.unlink()
    return folder


def _clicks(truth: Labelmap) -> list[Prompt]:
    prompts = []
    for index, labels in enumerate(truth.volume.array):
        for value, structure in truth.structures.items():
            if (labels == value).any():
                i, j = centre_click(labels == value)
                point = np.array([[i, j, index]])
                prompts.append(Prompt(0, index, point, np.array([1]), structure=structure))
    return prompts


def _scored(out: Path, what: str, jobs: Sequence[SegmentJob], name: str, report: Report) -> list[Row]:
    for job in jobs:
        report(note(f"Segmenting {', '.join(Path(image).stem for image in job.images)} ({what})."))
        run(job, report)
    record = run(EvaluateJob(jobs[0].out, str(out / "reference"), str(out / f"{name}.csv"), overwrite=True), report)
    return [Row(**values) for values in record["metrics"]["rows"]]


def _lines(scores: dict[str, list[Row]], out: Path, seconds: float) -> list[str]:
    structures = list(dict.fromkeys(row.structure for rows in scores.values() for row in rows))
    cells = [["Dice on two unseen patients", *scores]]
    for structure in structures:
        cells.append([structure, *(f"{mean_dice(rows, structure):.2f}" for rows in scores.values())])
    cells.append(["mean", *(f"{mean_dice(rows):.2f}" for rows in scores.values())])
    return [*table(cells), "", f"Report: {out / 'report.html'}  ({seconds:.0f} s)"]
