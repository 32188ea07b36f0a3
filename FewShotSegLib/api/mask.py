"""The mask of one structure, with its geometry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.io.volumes import save_labelmap


@dataclass(frozen=True, eq=False)
class Mask:
    """Result of a `Segmenter`: `array` bool (K, J, I) on the grid of its volume, and the prompted slice.

    Converts to a numpy array. `affine` (4, 4) maps (i, j, k) to RAS mm. `axis` is the array axis across the slices,
    `index` the last prompted slice, `iou` the IoU that the model predicts there.

    Examples
    --------
    >>> array = np.zeros((2, 4, 4), bool)
    >>> array[1, 1:3, 1:3] = True
    >>> mask = Mask(array, np.diag([-1.0, -1.0, 5.0, 1.0]), axis=0, index=1, iou=0.9)
    >>> np.asarray(mask).sum(), mask.on_slice.shape, mask.volume_ml
    (np.int64(4), (4, 4), 0.02)
    """

    array: NDArray[np.bool_]
    affine: NDArray[np.float64]
    axis: int
    index: int
    iou: float
    structure: str = "object"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels (K, J, I)."""
        return self.array.shape

    @property
    def on_slice(self) -> NDArray[np.bool_]:
        """The mask (H, W) on the last prompted slice."""
        return np.asarray(self.array.take(self.index, self.axis))

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel spacing (3,) in mm, in I, J, K order."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in millilitres."""
        return float(np.count_nonzero(self.array) * np.prod(self.spacing_mm) / 1000)

    def to_labelmap(self, label: int = 1) -> Labelmap:
        """Return a labelmap with this structure under `label`."""
        labels = np.where(self.array, label, 0).astype(np.uint8 if label <= 255 else np.uint16)
        return Labelmap(Volume(labels, self.affine), {label: self.structure})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.seg.nrrd` (with the name of the structure), `.nrrd`, `.nii.gz` or `.mha`, atomically."""
        save_labelmap(self.to_labelmap(), path)
