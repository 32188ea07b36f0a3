"""Compare segmentations to references: scores as CSV, JSON and a chart."""

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
from FewShotSegLib.io.volumes import load_pair
from FewShotSegLib.progress import Progress

from .inputs import files_read
from .notes import Notes, timed
from .outputs import Outputs
from .record import record_of, result_path


def write_plot(rows: Sequence[Row], path: str | Path) -> None:
    """Write Dice, surface Dice and HD95 of every case as a PNG."""
    from FewShotSegLib.visualization.charts import scores_chart

    with written_whole(path) as part:
        part.write_bytes(scores_chart(rows).light)


def evaluate_job(job: EvaluateJob, notes: Notes) -> dict[str, Any]:
    out = Path(job.out)
    names = [out.name, out.with_suffix(".json").name, out.with_suffix(".png").name]
    with Outputs(result_path(out.parent, out.stem), inputs=files_read(job), overwrite=job.overwrite) as outputs:
        outputs.check(*names)
        return _evaluated(job, notes, outputs, names)


def _evaluated(job: EvaluateJob, notes: Notes, outputs: Outputs, names: Sequence[str]) -> dict[str, Any]:
    timings: dict[str, float] = {}
    pred, ref = Path(job.pred), Path(job.ref)
    with timed(timings, "evaluate"):
        if pred.is_dir() and ref.is_dir():
            rows = evaluate_folder(pred, ref, job.structures, tolerance_mm=job.tolerance_mm, report=notes)
        elif pred.is_dir() or ref.is_dir():
            raise InputError(f"{pred} and {ref} must both be folders, or both be files.")
        else:
            pair = load_pair(pred, ref)
            rows = evaluate_case(*pair, job.structures, tolerance_mm=job.tolerance_mm, case=pred.name)
            notes(Progress(1, 1, pred.name))
    for name, write in zip(names, (write_rows, write_summary, write_plot), strict=True):
        write(rows, outputs.place(name))
    record = record_of(job, "cpu", timings, notes.warnings)
    metrics = {"summary": summarize(rows), "rows": [asdict(row) for row in rows]}
    return outputs.finish(record | {"metrics": metrics})
