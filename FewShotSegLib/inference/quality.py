"""Structure volumes of a finished segmentation, and flags for what to review first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .segment import Segmentation

Mask = NDArray[np.bool_]

LOW_CONFIDENCE = 0.5  # mean predicted IoU below which a structure is flagged
EMPTY, UNSURE, CUT_OFF = "is empty", "has a low confidence", "touches the border of the image"


def quality(found: Segmentation, axis: int) -> dict[str, dict[str, Any]]:
    """{structure: label, volume_ml, voxels, confidence, flags}; `axis` is the array axis that was segmented along.

    Confidence is the mean predicted IoU over the slices that contain the structure; None if there are none.
    """
    volume = found.labelmap.volume
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    rows: dict[str, dict[str, Any]] = {}
    for value, structure in found.labelmap.structures.items():
        mask = volume.array == value
        count = int(np.count_nonzero(mask))
        confidence = _confidence(mask, found.confidence.get(value, {}), axis)
        rows[structure] = {
            "label": value,
            "volume_ml": round(count * voxel_ml, 4),
            "voxels": count,
            "confidence": None if confidence is None else round(confidence, 4),
            "flags": _flags(mask, count, confidence, axis),
        }
    return rows


def least_sure_slice(found: Segmentation, axis: int) -> int | None:
    """Index along `axis` of the slice with the lowest predicted IoU of a structure it contains; None without any."""
    doubts: list[tuple[float, int]] = []
    for value, per_slice in found.confidence.items():
        held = _held(found.labelmap.volume.array == value, axis)
        doubts += [(iou, index) for index, iou in per_slice.items() if held[index]]
    return min(doubts)[1] if doubts else None


def _held(mask: Mask, axis: int) -> Mask:
    return np.asarray(np.any(mask, axis=tuple(other for other in range(3) if other != axis)))


def _confidence(mask: Mask, per_slice: dict[int, float], axis: int) -> float | None:
    held = _held(mask, axis)
    values = [iou for index, iou in per_slice.items() if held[index]]
    return float(np.mean(values)) if values else None


def _flags(mask: Mask, count: int, confidence: float | None, axis: int) -> list[str]:
    if not count:
        return [EMPTY]
    flags = [UNSURE] if confidence is not None and confidence < LOW_CONFIDENCE else []
    # First and last slices often cut through organs that continue, which is no error of the segmentation; a structure
    # that touches the image border in-plane is cut off, or leaked.
    at_border = [mask.take((0, -1), axis=side).any() for side in range(3) if side != axis and mask.shape[side] > 1]
    return [*flags, CUT_OFF] if any(at_border) else flags
