"""Compare segmentations to references: scores as CSV, JSON and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from FewShotSegLib.data.job import EvaluateJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import Row, evaluate_case, evaluate_folder, summarize
from FewShotSegLib.evaluation.tables import write_rows, write_summary
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.io.volumes import load_labelmap
from FewShotSegLib.progress import Progress

from .notes import Notes, timed
from .record import check_writable, checksums, record_of, result_path, write_record


def write_plot(rows: Sequence[Row], path: str | Path) -> None:
    """Write Dice, surface Dice and HD95 of every case as a PNG."""
    from FewShotSegLib.visualization.charts import scores_chart

    with written_whole(path) as part:
        part.write_bytes(scores_chart(rows).light)


def evaluate_job(job: EvaluateJob, notes: Notes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    pred, ref, out = Path(job.pred), Path(job.ref), Path(job.out)
    check_writable(out)
    with timed(timings, "evaluate"):
        if pred.is_dir() and ref.is_dir():
            rows = evaluate_folder(pred, ref, job.structures, tolerance_mm=job.tolerance_mm, report=notes)
        elif pred.is_dir() or ref.is_dir():
            raise InputError(f"{pred} and {ref} must both be folders, or both be files.")
        else:
            pair = load_labelmap(pred), load_labelmap(ref)
            rows = evaluate_case(*pair, job.structures, tolerance_mm=job.tolerance_mm, case=pred.name)
            notes(Progress(1, 1, pred.name))
    write_rows(rows, out)
    write_summary(rows, out.with_suffix(".json"))
    write_plot(rows, out.with_suffix(".png"))
    record = record_of(job, "cpu", timings, notes.warnings)
    files = [out, out.with_suffix(".json"), out.with_suffix(".png")]
    metrics = {"summary": summarize(rows), "rows": [asdict(row) for row in rows]}
    record |= {"metrics": metrics, "outputs": checksums(files)}
    write_record(record, result_path(out.parent, out.stem))
    return record
