"""Score predicted labelmaps against references: one row per case, structure and scope; CSV, JSON and a chart.

Two scopes, because papers use both and the difference is large. `all_slices`: the whole volume, so that all false
positives count. `oracle_slices`: only the slices along `axis` in which the reference contains the structure, as in
protocols that place a click in each of these; the prediction elsewhere is ignored, distances are still computed in 3-D.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.volume import Labelmap, Volume, as_labels, label_values
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed
from FewShotSegLib.io.dicom_rtstruct import is_rtstruct
from FewShotSegLib.io.volumes import load_pair, load_structures
from FewShotSegLib.progress import Progress, Report, note, silent

from .metrics import Scores, compare
from .pairing import paired_files

log = logging.getLogger(__name__)

METRICS = tuple(field.name for field in fields(Scores))


@dataclass(frozen=True)
class Row(Scores):
    """The scores of one structure of one case in one scope; `slices` is the number of slices in the scope."""

    case: str
    structure: str
    scope: str
    slices: int
    tolerance_mm: float


_KEYS = ("case", "structure", "scope")
COLUMNS = (*_KEYS, *METRICS, "slices", "tolerance_mm")


# ---------------------------------------------------------------------------------------------------------- one case


def evaluate_case(
    pred: Labelmap | Volume,
    ref: Labelmap | Volume,
    structures: Mapping[int, str] | None = None,
    *,
    axis: int | None = None,
    tolerance_mm: float = 2.0,
    case: str = "case",
) -> list[Row]:
    """Return the rows of one case, sorted by structure and scope.

    `structures` are the reference labels to score (default: all it lists). In the prediction a structure is the segment
    of that name or, without matching names, the same label. `axis` is the array axis of the oracle slices (default: the
    reference's acquisition axis). A structure absent from the reference has no oracle slices and so no such row; in
    `all_slices` it scores 1 if nothing was predicted, else 0.
    """
    pred, ref = _as_labelmap(pred, f"{case}: the prediction"), _as_labelmap(ref, f"{case}: the reference")
    pred, ref = _on_one_grid(pred, ref, case)
    grid = ref.volume
    axis = grid.acquisition_axis if axis is None else axis
    if axis not in (0, 1, 2):
        raise InputError(f"The slice axis is 0 (k), 1 (j) or 2 (i), got {axis!r}.")
    wanted = ref.structures if structures is None else structures
    if not wanted:
        raise InputError(f"{case}: the reference holds no structure; name the ones to score (structures).")
    rows: list[Row] = []
    ref_value = {_plain(name): value for value, name in ref.structures.items()}
    for value, pred_value in _pred_values(wanted, pred.structures, case).items():
        mask = pred.mask(pred_value) if pred_value else np.zeros(grid.shape, dtype=bool)
        truth = ref.mask(ref_value.get(_plain(wanted[value]), value))
        rows += _rows_of(mask, truth, grid.spacing_mm, axis, tolerance_mm, case, wanted[value])
    return rows


def _rows_of(
    pred: Any, ref: Any, spacing_mm: Any, axis: int, tolerance_mm: float, case: str, structure: str
) -> list[Row]:
    def row(scope: str, slices: int, scores: Scores) -> Row:
        return Row(
            **scores.to_dict(), case=case, structure=structure, scope=scope, slices=slices, tolerance_mm=tolerance_mm
        )

    everywhere = compare(pred, ref, spacing_mm, tolerance_mm)
    rows = [row("all_slices", ref.shape[axis], everywhere)]
    held = ref.any(axis=tuple(a for a in range(3) if a != axis))
    if held.any():
        inside = pred & np.expand_dims(held, tuple(a for a in range(3) if a != axis))
        same = np.count_nonzero(inside) == np.count_nonzero(pred)
        scores = everywhere if same else compare(inside, ref, spacing_mm, tolerance_mm)
        rows.append(row("oracle_slices", int(held.sum()), scores))
    return rows


def _as_labelmap(labelmap: Labelmap | Volume, name: str) -> Labelmap:
    if isinstance(labelmap, Labelmap):
        return labelmap
    labels = as_labels(labelmap.array, name)
    return Labelmap(labelmap.like(labels), {value: str(value) for value in label_values(labels)})


def _on_one_grid(pred: Labelmap, ref: Labelmap, case: str) -> tuple[Labelmap, Labelmap]:
    """Prediction and reference on one grid: the voxel order may differ, or one may cover only a part.

    Slicer flips left-handed files and may store only the part of a segmentation with segments. An empty one is stored
    as a single voxel somewhere: it is empty on the grid of the other.
    """
    if pred.volume.same_geometry(ref.volume):
        return pred, ref
    for own, other in ((pred, ref), (ref, pred)):
        if (exact := _turned(own, other.volume)) is not None:
            return (exact, ref) if own is pred else (pred, exact)
    raise InputError(
        f"{case}: prediction and reference do not cover the same voxels: shapes {pred.volume.shape} and "
        f"{ref.volume.shape} (K, J, I), spacings {_text_mm(pred.volume.spacing_mm)} and "
        f"{_text_mm(ref.volume.spacing_mm)} mm, first voxels at RAS {_text_mm(pred.volume.affine[:3, 3])} and "
        f"{_text_mm(ref.volume.affine[:3, 3])}. Compare volumes of the same grid."
    )


def _turned(labelmap: Labelmap, onto: Volume) -> Labelmap | None:
    """The labelmap on the grid of `onto`, None if that would require resampling."""
    if labelmap.volume.array.size == 1 and not labelmap.volume.array.any():
        return Labelmap(onto.like(np.zeros(onto.shape, np.uint8)), labelmap.structures)
    exact = reindexed(labelmap.volume, onto, crop=True)
    if exact is None:
        return None
    hidden = {}
    for value, mask in labelmap.hidden.items():
        placed = reindexed(labelmap.volume.like(mask.astype(np.uint8)), onto, crop=True)
        if placed is not None:
            hidden[value] = placed.array > 0
    return Labelmap(exact, labelmap.structures, hidden)


def _text_mm(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _pred_values(wanted: Mapping[int, str], named: Mapping[int, str], case: str) -> dict[int, int | None]:
    """Return {label in the reference: label in the prediction, None if another structure has that label}."""
    by_name = {_plain(name): value for value, name in named.items()}
    result: dict[int, int | None] = {}
    for value, name in wanted.items():
        other = named.get(value, str(value))
        unnamed = _is_number(other) or _is_number(name)
        result[value] = by_name.get(_plain(name), value if unnamed else None)
    if all(value is None for value in result.values()):
        raise InputError(
            f"{case}: the prediction holds {_listed(named.values())}, none of {_listed(wanted.values())}. "
            "Give the structures the same names in both, or files without names and the same labels."
        )
    return result


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def _is_number(name: str) -> bool:
    return name.strip().isdigit()


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


# --------------------------------------------------------------------------------------------------------- one folder


def evaluate_folder(
    pred_dir: str | Path,
    ref_dir: str | Path,
    structures: Mapping[int, str] | None = None,
    *,
    axis: int | None = None,
    tolerance_mm: float = 2.0,
    report: Report = silent,
) -> list[Row]:
    """Return the rows of every predicted case; files are paired if their names agree up to known suffixes.

    References without a prediction are reported, not scored: exemplars are often in the same folder. If `structures` is
    not given, every case is scored for every structure in any of the references.
    """
    pairs, not_predicted = paired_files(Path(pred_dir), Path(ref_dir))
    if not_predicted:
        message = f"{len(not_predicted)} references have no prediction and are not scored: {', '.join(not_predicted)}"
        log.warning(message)
        report(note(message))
    wanted = dict(structures) if structures is not None else _structures_of([ref for _, ref in pairs.values()])
    rows: list[Row] = []
    for step, (case, (pred, ref)) in enumerate(pairs.items(), start=1):
        maps = load_pair(pred, ref)
        rows += evaluate_case(*maps, wanted, axis=axis, tolerance_mm=tolerance_mm, case=case)
        report(Progress(step, len(pairs), case))
    return rows


def _structures_of(references: Sequence[Path]) -> dict[int, str]:
    """All labels and names; a label with two names is a conflict the user has to resolve."""
    found: dict[int, str] = {}
    drawn = [path for path in references if is_rtstruct(path)]
    for path in (path for path in references if path not in drawn):
        for value, name in load_structures(path).items():
            if _plain(found.setdefault(value, name)) != _plain(name):
                raise InputError(
                    f'Label {value} is "{found[value]}" in one reference and "{name}" in {path.name}. '
                    "Give all references the same labels."
                )
    for name in (name for path in drawn for name in load_structures(path).values()):
        if _plain(name) not in map(_plain, found.values()):  # contours have names; their numbers are ours
            found[max(found, default=0) + 1] = name
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------------------------- output


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, per structure and scope in order of appearance, mean, sd, median and n of every metric over the cases.

    sd is the sample standard deviation (n - 1), None for a single case. n_one_empty: cases where only one of the two
    masks is empty, whose distances are the image diagonal.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.structure, row.scope), []).append(row)
    return [
        {
            "structure": structure,
            "scope": scope,
            "n": len(group),
            "n_one_empty": sum(one_is_empty(row.volume_pred_ml, row.volume_ref_ml) for row in group),
        }
        | {name: _statistics([getattr(row, name) for row in group]) for name in METRICS}
        for (structure, scope), group in groups.items()
    ]


def one_is_empty(volume_pred_ml: float, volume_ref_ml: float) -> bool:
    """Whether only one of two masks with these volumes is empty, so that their distance is the image's diagonal."""
    return (volume_pred_ml == 0) != (volume_ref_ml == 0)


def _statistics(values: list[float]) -> dict[str, float | None]:
    array = np.array(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "median": float(np.median(array))}
