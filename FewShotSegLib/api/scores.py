"""Evaluation of segmentations against references, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import Row, evaluate_case, evaluate_folder, summarize
from FewShotSegLib.evaluation.tables import write_rows
from FewShotSegLib.io.volumes import load_pair
from FewShotSegLib.progress import Report
from FewShotSegLib.visualization.progress_bar import reporting
from FewShotSegLib.visualization.text_table import table

from .inputs import LabelmapLike, PathLike, as_labelmap


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases. `rows` has one entry per case, structure and scope.

    The scope "all_slices" counts the whole volume, "oracle_slices" only the slices that contain the structure in the
    reference.
    """

    rows: Sequence[Row]

    def summary(self) -> list[dict[str, Any]]:
        """Return mean, standard deviation and median over the cases of every metric, per structure and scope."""
        return summarize(self.rows)

    def to_csv(self, path: PathLike) -> None:
        """Write one line per row."""
        write_rows(self.rows, Path(path))

    def __repr__(self) -> str:
        head = ("structure", "scope", "cases", "Dice", "HD95 (mm)", "NSD")
        lines = [
            (s["structure"], s["scope"], str(s["n"]), *(f"{s[m]['mean']:.3f}" for m in ("dsc", "hd95_mm", "nsd")))
            for s in self.summary()
        ]
        return "\n".join(table([head, *lines]))


def evaluate(
    prediction: LabelmapLike,
    reference: LabelmapLike,
    structures: Mapping[int, str] | None = None,
    *,
    spacing_mm: Any = None,
    tolerance_mm: float = 2.0,
    progress: bool | Report | None = None,
) -> Evaluation:
    """Compare segmentations with references: Dice, IoU, HD95, mean surface distance, NSD and volumes.

    Parameters
    ----------
    prediction, reference
        Two folders, whose files are paired by name; or two files, labelmaps or arrays (K, J, I) of integers.
    structures
        {label in the reference: name} of the structures to compare. Default: all in the references.
    spacing_mm
        Voxel spacing (3,) of two arrays, in mm, I, J, K order.
    tolerance_mm
        Tolerance of the normalized surface distance (NSD).
    progress
        As in `adapt`; only folders report it.

    Raises
    ------
    InputError
        A prediction without a reference, different grids, structures with conflicting names.

    Examples
    --------
    >>> import numpy as np
    >>> import FewShotSegLib as fs
    >>> truth = np.zeros((2, 8, 8), np.uint8)
    >>> truth[:, 2:6, 2:6] = 1
    >>> scores = fs.evaluate(np.roll(truth, 1, axis=2), truth, {1: "liver"}, spacing_mm=(1, 1, 1))
    >>> scores.rows[0].structure, scores.rows[0].dsc
    ('liver', 0.75)
    """
    folders = [isinstance(one, str | os.PathLike) and Path(one).is_dir() for one in (prediction, reference)]
    if all(folders):
        with reporting(progress) as report:
            rows = evaluate_folder(
                Path(prediction),  # type: ignore[arg-type]
                Path(reference),  # type: ignore[arg-type]
                structures,
                tolerance_mm=tolerance_mm,
                report=report,
            )
        return Evaluation(rows)
    if any(folders):
        raise InputError(f"{prediction} and {reference} must both be folders, or both be one segmentation.")
    if isinstance(prediction, str | os.PathLike) and isinstance(reference, str | os.PathLike):
        pair = load_pair(prediction, reference)
    else:
        pair = as_labelmap(prediction, spacing_mm, structures), as_labelmap(reference, spacing_mm, structures)
    return Evaluation(evaluate_case(pair[0], pair[1], structures, tolerance_mm=tolerance_mm))
