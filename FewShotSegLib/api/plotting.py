"""Plot a slice with its segmentation, using matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import AXIS_LETTERS, Labelmap, Volume, axis_index
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.reindex import reindexed
from FewShotSegLib.visualization.overlays import outline, upright

from .inputs import Axis, LabelmapLike, VolumeLike, as_labelmap, as_volume
from .mask import Mask


def plot_overlay(
    image: VolumeLike,
    labelmap: LabelmapLike | Mask | None = None,
    *,
    slice: int | None = None,
    axis: Axis | None = None,
    spacing_mm: Any = None,
    window: tuple[float, float] | None = None,
    alpha: float = 0.35,
    legend: bool = True,
    ax: Any = None,
) -> Any:
    """Plot a slice in radiological orientation, with each structure in its colour, and return matplotlib's axes.

    Parameters
    ----------
    image
        Volume, file or array (K, J, I); an array requires `spacing_mm` (3,), in mm, I, J, K order.
    labelmap
        Labelmap, `Mask`, file or array (K, J, I) on the grid of the image; None plots the image alone.
    slice
        Index along `axis`. Default: the slice with most labels, or the middle one.
    axis
        "k", "j", "i" or 0, 1, 2. Default: the acquisition axis.
    window
        Values mapped to black and white. Default: by the kind of image.
    alpha
        Opacity of the filled structures, 0 to 1; their outlines are opaque.
    legend
        Whether to add a legend of the structures on the slice.
    ax
        Axes to plot into. Default: new ones.

    Raises
    ------
    InputError
        The slice does not exist, or image and labelmap do not cover the same voxels.

    Examples
    --------
    >>> import matplotlib, numpy as np
    >>> matplotlib.use("Agg")
    >>> import FewShotSegLib as fs
    >>> labels = np.zeros((3, 32, 32), np.uint8)
    >>> labels[1, 8:20, 8:20] = 1
    >>> axes = fs.plot_overlay(labels * 50.0, labels, spacing_mm=(1, 1, 5))
    >>> axes.get_title()
    'k = 1'
    """
    volume = as_volume(image, spacing_mm)
    shown = _on_grid(labelmap, volume)
    along = volume.acquisition_axis if axis is None else axis_index(axis)
    index = _index(slice, shown.volume.array, along)
    spec = IntensitySpec.auto(volume) if window is None else IntensitySpec("window", *window)
    grey = upright(spec.apply(volume.array.take(index, along), spec.range_of(volume.array)), volume.affine, along)
    labels = upright(shown.volume.array.take(index, along), volume.affine, along)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1]
    height_mm, width_mm = _pixel_mm(volume, along)
    ax.imshow(_coloured(grey, labels, shown, alpha), aspect=height_mm / width_mm, interpolation="nearest")
    ax.set_title(f"{AXIS_LETTERS[along]} = {index}")
    ax.set_axis_off()
    if legend:
        _add_legend(ax, labels, shown)
    return ax


def _on_grid(labelmap: LabelmapLike | Mask | None, volume: Volume) -> Labelmap:
    if labelmap is None:
        return Labelmap(volume.like(np.zeros(volume.shape, np.uint8)), {})
    if isinstance(labelmap, Mask):
        found = labelmap.to_labelmap()
    else:
        found = as_labelmap(volume.like(labelmap) if isinstance(labelmap, np.ndarray) else labelmap)
    if found.volume.same_geometry(volume):
        return found
    exact = reindexed(found.volume, volume, crop=True)
    if exact is None:
        raise InputError(
            f"Image and labelmap do not cover the same voxels: shapes {volume.shape} and {found.volume.shape} (K, J, "
            "I). Draw a labelmap on the grid of its image."
        )
    return Labelmap(exact, found.structures)


def _index(wanted: int | None, labels: Any, axis: int) -> int:
    count = labels.shape[axis]
    if wanted is not None:
        if not 0 <= wanted < count:
            letter = AXIS_LETTERS[axis]
            raise InputError(f"Slice {letter}={wanted} does not exist, allowed are 0 to {count - 1}.")
        return int(wanted)
    per_slice = (labels > 0).sum(axis=tuple({0, 1, 2} - {axis}))
    return int(per_slice.argmax()) if per_slice.any() else count // 2


def _pixel_mm(volume: Volume, axis: int) -> tuple[float, float]:
    """Height and width of a pixel of the upright slice."""
    rows, columns = (size for a, size in enumerate(volume.spacing_mm[::-1]) if a != axis)
    is_turned = upright(np.empty((2, 1)), volume.affine, axis).shape == (1, 2)
    return (columns, rows) if is_turned else (rows, columns)


def _coloured(grey: Any, labels: Any, shown: Labelmap, alpha: float) -> Any:
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    for value, color in structure_colors(shown.structures).items():
        mask = labels == value
        picture[mask] = (1 - alpha) * picture[mask] + alpha * np.array(color)
        picture[outline(mask)] = color
    return picture


def _add_legend(ax: Any, labels: Any, shown: Labelmap) -> None:
    from matplotlib.patches import Patch

    colors = structure_colors(shown.structures)
    entries = [Patch(color=colors[v], label=name) for v, name in shown.structures.items() if (labels == v).any()]
    if entries:
        ax.legend(handles=entries, loc="lower right", fontsize="small")
