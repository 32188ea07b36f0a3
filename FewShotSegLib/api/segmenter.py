"""Clicks, boxes and scribbles on one volume, from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import SCRIBBLE_POINTS, Prompt, along
from FewShotSegLib.data.volume import AXIS_LETTERS, axis_index
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.inference.load import predictor_for
from FewShotSegLib.inference.segment import SegmentOptions, propagate
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.progress import Report
from FewShotSegLib.visualization.progress_bar import reporting

from .inputs import AdapterLike, Axis, VolumeLike, as_adapter, as_volume
from .mask import Mask

Point = Sequence[float]


@dataclass(frozen=True, eq=False)
class _State:
    """The prompts, {slice: prompt}, and their results, {slice: (mask (H, W), predicted IoU)}."""

    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    found: Mapping[int, tuple[NDArray[np.bool_], float]] = field(default_factory=dict)
    index: int = 0


class Segmenter:
    """Segment one structure of a volume interactively; every call returns a `Mask`.

    Points are voxel coordinates (i, j, k), which is (column, row, slice) of an axial series; arrays are (K, J, I).
    Each click corrects the previous mask. A slice is encoded once, which takes some tenths of a second with the default
    model on a CPU and seconds with SAM ViT-B; a further click takes some tens of milliseconds.

    Parameters
    ----------
    image
        Volume, file or array (K, J, I); an array requires `spacing_mm` (3,), its voxel spacing in mm, I, J, K order.
    adapter
        Adapter or file for images like this one; default: the base model alone.
    base
        Base model: "bundled", "bundled-small", "vit_b", ... or a file. Default: the one the adapter was made for, or
        "bundled"; "bundled-small" is less accurate and about twenty times as fast.
    axis
        Axis across the slices to segment: "k", "j", "i" or 0, 1, 2. Default: the acquisition axis.
    structure
        Name of the structure. If the adapter has learned it, every prediction uses it.
    window
        Intensity window of the model input. Default: that of the adapter, or by the kind of image.
    device
        "auto" (a GPU if available), "cpu" or "cuda".

    Raises
    ------
    InputError
        The adapter is a 3-D network, which does not support clicks; or a file, model or device is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import FewShotSegLib as fs
    >>> image = np.full((3, 64, 64), 40.0)
    >>> image[:, 20:40, 20:40] = 120.0
    >>> segmenter = fs.Segmenter(image, spacing_mm=(1, 1, 5))
    >>> mask = segmenter.click((30, 30, 1))
    >>> bool(mask.array[1, 30, 30]), mask.array.any(axis=(1, 2)).tolist()
    (True, [False, True, False])
    """

    def __init__(
        self,
        image: VolumeLike,
        adapter: AdapterLike | None = None,
        *,
        base: str | None = None,
        spacing_mm: Any = None,
        axis: Axis | None = None,
        structure: str = "object",
        window: tuple[float, float] | None = None,
        device: str = "auto",
    ) -> None:
        self.volume = as_volume(image, spacing_mm)
        self.axis = self.volume.acquisition_axis if axis is None else axis_index(axis)
        self.structure = structure
        predictor = predictor_for(as_adapter(adapter), base, choose_device(device, lambda sentence: None))
        if isinstance(predictor, VolumePredictor):
            raise InputError(
                "The adapter is a 3-D network, which segments whole volumes and does not take clicks: use segment(), "
                "or click with the base model."
            )
        self._predictor = predictor
        self._intensity = _intensity(window, predictor.adapter, self.volume)
        self._reader = SliceReader(self.volume, self._intensity, predictor.image_size, self.axis)
        self._states = [_State()]
        self._advised = False

    @property
    def mask(self) -> Mask:
        """The current mask; empty before the first prompt."""
        state = self._states[-1]
        array = np.zeros(self.volume.shape, bool)
        for index, (mask, _) in state.found.items():
            array[(slice(None),) * self.axis + (index,)] = mask
        iou = state.found[state.index][1] if state.index in state.found else 0.0
        return Mask(array, self.volume.affine, self.axis, state.index, iou, self.structure)

    def click(self, point_ijk: Point, *, positive: bool = True) -> Mask:
        """Click on the structure, or with `positive=False` outside it, and return the mask.

        `point_ijk` (3,): voxel coordinates i, j, k, may be fractional; the nearest slice is used. A point outside the
        volume is an `InputError`.
        """
        return self._point(_point(point_ijk)[np.newaxis], positive)

    def scribble(self, points_ijk: Iterable[Point], *, positive: bool = True) -> Mask:
        """Draw a line of points (N, 3), i, j, k, on one slice through the structure, or with `positive=False` outside
        it.

        It is converted to up to six equidistant clicks along the line.
        """
        line = np.array([_point(point) for point in points_ijk])
        if not len(line):
            raise InputError("A scribble needs at least one point (i, j, k), got none.")
        return self._point(along(line, SCRIBBLE_POINTS), positive)

    def box(self, corner_ijk: Point, opposite_ijk: Point) -> Mask:
        """Draw a box around the structure on one slice by two opposite corners (i, j, k), and return the mask."""
        corners = np.array([_point(corner_ijk), _point(opposite_ijk)])
        index = self._slice_of(corners[0])
        before = self._states[-1].prompts.get(index)
        if before is None:
            return self._ask(Prompt(self.axis, index, box_ijk=corners, structure=self.structure), level=3)
        return self._ask(replace(before, box_ijk=corners), level=3)

    def propagate(self, slices: int = 40, *, direction: int = 0, progress: bool | Report | None = None) -> Mask:
        """Propagate the mask to up to `slices` neighbouring slices of every prompted slice.

        Each mask prompts the next one, until the predicted IoU falls below 0.5 or the area changes twofold.
        `direction` 1: to higher slices, -1: to lower ones, 0: both. `progress`: see `segment`.
        """
        state = self._states[-1]
        if not state.prompts:
            raise InputError("There is nothing to propagate yet: click, scribble or draw a box first.")
        if direction not in (-1, 0, 1):
            raise InputError(f"The direction of propagation is -1, 0 (both) or 1, got {direction!r}.")
        options = SegmentOptions(max_propagation=slices, directions=(direction,) if direction else (1, -1))
        with reporting(progress) as report:
            found = propagate(
                self.volume,
                self._predictor,
                list(state.prompts.values()),
                intensity=self._intensity,
                options=options,
                report=report,
            )
        self._states.append(replace(state, found={**state.found, **found}))
        return self.mask

    def undo(self) -> Mask:
        """Undo the last click, scribble, box or propagation and return the previous mask."""
        if len(self._states) == 1:
            raise InputError("There is nothing to undo.")
        self._states.pop()
        return self.mask

    def reset(self) -> None:
        """Clear all prompts and masks, for another structure of the same volume; encoded slices are kept."""
        self._states = [_State()]

    def _point(self, points: NDArray[np.float64], positive: bool) -> Mask:
        index = self._slice_of(points[0])
        labels = np.full(len(points), int(positive))
        before = self._states[-1].prompts.get(index)
        if before is None:
            return self._ask(Prompt(self.axis, index, points_ijk=points, point_labels=labels, structure=self.structure))
        grown = np.concatenate([before.points_ijk, points]), np.concatenate([before.point_labels, labels])
        return self._ask(replace(before, points_ijk=grown[0], point_labels=grown[1]))

    def _slice_of(self, point: NDArray[np.float64]) -> int:
        where = float(point[2 - self.axis])
        index, count = int(np.floor(where + 0.5)), self.volume.shape[self.axis]
        if not 0 <= index < count:
            letter = AXIS_LETTERS[self.axis]
            raise InputError(f"The point is on slice {letter}={where:g}; the volume has {letter}=0 to {count - 1}.")
        return index

    def _ask(self, prompt: Prompt, level: int = 4) -> Mask:
        """`level`: how many calls up the user's is, to attribute a warning to it."""
        prompt.check_inside(self.volume)
        frame = self._reader.frame(prompt.index)
        embedding = self._predictor.encode([self._reader.square(prompt.index)])[0]
        if self._predictor.advice and not self._advised:
            self._advised = True
            warnings.warn(self._predictor.advice, stacklevel=level)
        learned = self._predictor.adapter.structures if self._predictor.adapter else {}
        values = [value for value, name in learned.items() if name == self.structure]
        masks = self._predictor.answer(embedding, prompt, frame, values)
        answer = self._predictor.on_voxels(masks, frame)[0] > 0, float(masks.iou[0])
        state = self._states[-1]
        self._states.append(
            _State({**state.prompts, prompt.index: prompt}, {**state.found, prompt.index: answer}, prompt.index)
        )
        return self.mask


def _point(point_ijk: Any) -> NDArray[np.float64]:
    try:
        point = np.asarray(point_ijk, dtype=np.float64)
    except (TypeError, ValueError):
        point = np.empty(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InputError(f"A point is three numbers (i, j, k), got {point_ijk!r}.")
    return point


def _intensity(window: tuple[float, float] | None, adapter: Any, volume: Any) -> IntensitySpec:
    if window is not None:
        return IntensitySpec("window", *window)
    return adapter.intensity if adapter is not None else IntensitySpec.auto(volume)
