"""Agreement of two masks: overlap, and surface distances in millimetres, with all empty cases defined.

The surface of a mask is the set of its border voxels: those with at least one of their 6 face neighbours (4 in a
one-slice image) outside the mask; outside the image counts as outside the mask. Distances are between voxel centres and
respect anisotropic spacing. This is MONAI's definition. The surface elements of DeepMind's `surface-distance` (FLARE,
nnU-Net challenges) are between voxels and weighted by area, so its NSD differs by a few hundredths where the tolerance
is near the voxel size; numbers are comparable only within one definition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from FewShotSegLib.errors import InputError

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]

# A tolerance of 2 mm must include 20 voxels of 0.1 mm, whose sum is not exactly 2 in floating point.
_ROUNDING_MM = 1e-6


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction against a reference; distances in mm, volumes in mL, the others in [0, 1].

    Both masks empty: dsc 1, iou 1, hd95_mm 0, asd_mm 0, nsd 1. Only one empty: 0, 0, image diagonal, image diagonal, 0.
    """

    dsc: float
    iou: float
    hd95_mm: float
    asd_mm: float
    nsd: float
    volume_pred_ml: float
    volume_ref_ml: float

    def to_dict(self) -> dict[str, float]:
        """Return {name: value} in the order of the fields."""
        return asdict(self)


def compare(pred: Mask, ref: Mask, spacing_mm: ArrayLike, tolerance_mm: float = 2.0) -> Scores:
    """Return the scores of a predicted mask against a reference, both bool (K, J, I); spacing in I, J, K order.

    hd95_mm: the larger of the two directed 95th percentiles. asd_mm: mean over the pooled distances of both directions.
    nsd: fraction of both surfaces within `tolerance_mm` of the other.

    >>> mask = np.zeros((1, 4, 4), dtype=bool)
    >>> mask[0, 1, 1] = True
    >>> compare(mask, np.roll(mask, 1, axis=2), (2.0, 1.0, 1.0), tolerance_mm=1.0)
    Scores(dsc=0.0, iou=0.0, hd95_mm=2.0, asd_mm=2.0, nsd=0.0, volume_pred_ml=0.002, volume_ref_ml=0.002)
    """
    spacing = _checked(pred, ref, spacing_mm)
    if not tolerance_mm >= 0:
        raise InputError(f"The tolerance in mm must not be negative, got {tolerance_mm}.")
    n_pred, n_ref = int(np.count_nonzero(pred)), int(np.count_nonzero(ref))
    voxel_ml = float(np.prod(spacing)) / 1000.0
    volumes = n_pred * voxel_ml, n_ref * voxel_ml
    if n_pred == 0 and n_ref == 0:
        return Scores(1.0, 1.0, 0.0, 0.0, 1.0, *volumes)
    if n_pred == 0 or n_ref == 0:
        diagonal = image_diagonal_mm(pred.shape, spacing)
        return Scores(0.0, 0.0, diagonal, diagonal, 0.0, *volumes)
    both = int(np.count_nonzero(pred & ref))
    from_pred, from_ref = surface_distances(pred, ref, spacing)
    pooled = np.concatenate([from_pred, from_ref])
    return Scores(
        dsc=2 * both / (n_pred + n_ref),
        iou=both / (n_pred + n_ref - both),
        hd95_mm=hausdorff_mm(from_pred, from_ref, 95.0),
        asd_mm=float(pooled.mean()),
        nsd=float(np.mean(pooled <= tolerance_mm + _ROUNDING_MM)),
        volume_pred_ml=volumes[0],
        volume_ref_ml=volumes[1],
    )


def surface_distances(pred: Mask, ref: Mask, spacing_mm: ArrayLike) -> tuple[Distances, Distances]:
    """Return the distance in mm of each surface voxel of `pred` to the surface of `ref`, and vice versa.

    Both masks must be nonempty. Cost: two distance transforms of the box around both masks.
    """
    from scipy.ndimage import distance_transform_edt

    spacing = _checked(pred, ref, spacing_mm)[::-1]  # K, J, I like the arrays
    if not (pred.any() and ref.any()):
        raise InputError("Surface distances need two masks with at least one voxel each; compare() defines the rest.")
    # A single slice has no through-plane surface: otherwise every voxel would be a border voxel.
    thick = [axis for axis in range(3) if pred.shape[axis] > 1] or [0]
    # The joint bounding box contains all surface voxels, so distances stay exact.
    box = _bounding_box(pred | ref)
    drop = tuple(axis for axis in range(3) if axis not in thick)
    surface_pred, surface_ref = (_surface(mask[box].squeeze(drop)) for mask in (pred, ref))
    sampling = spacing[thick]
    from_pred = distance_transform_edt(~surface_ref, sampling)[surface_pred]
    from_ref = distance_transform_edt(~surface_pred, sampling)[surface_ref]
    return from_pred, from_ref


def hausdorff_mm(from_pred: Distances, from_ref: Distances, percentile: float = 100.0) -> float:
    """Return the larger of the two directed percentiles of surface distances; 100 is the Hausdorff distance."""
    return float(max(np.percentile(from_pred, percentile), np.percentile(from_ref, percentile)))


def image_diagonal_mm(shape: tuple[int, ...], spacing_mm: ArrayLike) -> float:
    """Return the length of the diagonal of an image (K, J, I) with its spacing in I, J, K order.

    It exceeds any distance between two voxel centres: a missed structure never scores better than a found one.

    >>> image_diagonal_mm((1, 4, 3), (1.0, 1.0, 0.001)).__round__(3)
    5.0
    """
    return float(np.linalg.norm(np.array(shape[::-1]) * np.asarray(spacing_mm, dtype=np.float64)))


def _surface(mask: Mask) -> Mask:
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)  # face neighbours; beyond the array counts as outside


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _checked(pred: Any, ref: Any, spacing_mm: ArrayLike) -> Distances:
    """Return the spacing (3,) in I, J, K order after rejecting incomparable masks."""
    for name, mask in (("prediction", pred), ("reference", ref)):
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 3:
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(f"The {name} must be a bool array (K, J, I), got {got}; pick one structure of a labelmap.")
    if pred.shape != ref.shape:
        raise InputError(f"Prediction and reference differ in shape: {pred.shape} and {ref.shape} (K, J, I).")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or not (spacing > 0).all():
        raise InputError(f"The spacing must be three positive numbers in mm (I, J, K), got {spacing_mm!r}.")
    return spacing
