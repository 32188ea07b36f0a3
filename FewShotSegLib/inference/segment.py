"""`segment`: a volume, an adapter or prompts -> a labelmap. Works slice by slice; only labels and, if requested,
float16 probabilities are kept for the volume.

Three modes, freely combined: an adapter's structure tokens on every slice; prompts on the slices where the user gave
them; propagation from prompted slices to their neighbours, each mask prompting the next one until confidence drops.

Where structures overlap, the higher logit wins; this is the only place where that is decided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.progress import Progress, Report, silent
from FewShotSegLib.sam.clicks import centre_click

from .predictor import Predictor
from .slice_range import shown_with_others, slice_ranges

Logits = NDArray[np.float32]

MAIN_SHARE = 0.3  # of the largest component's weight: minimum to keep a component, as two kidneys are two
CERTAINTY_STEPS = 16.0  # quantization steps per logit, in 8 bits


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment. `axis` None: the adapter's, or the acquisition axis."""

    axis: int | None = None
    propagate: bool = True
    max_propagation: int = 40
    directions: tuple[int, ...] = (1, -1)  # of propagation: to higher and to lower slices
    min_confidence: float = 0.5  # predicted IoU below which propagation stops
    max_growth: float = 2.0  # change of area between neighbouring slices at which propagation stops
    probabilities: bool = False
    largest_component: bool = False
    min_island_ml: float = 0.0
    all_pieces: bool = False  # keep separate components of structures that were connected in the training slices
    smoothing_mm: float = 0.0  # standard deviation of Gaussian smoothing of the final labels
    batch_slices: int = 4


@dataclass(frozen=True, eq=False)
class Segmentation:
    """labelmap on the volume's grid; probabilities {value: (K, J, I) float16} if requested; confidence {value:
    {slice: predicted IoU}}.
    """

    labelmap: Labelmap
    probabilities: dict[int, NDArray[np.float16]]
    confidence: dict[int, dict[int, float]]


def segment(
    volume: Volume,
    predictor: Predictor,
    *,
    intensity: IntensitySpec | None = None,
    prompts: Sequence[Prompt] = (),
    options: SegmentOptions | None = None,
    report: Report = silent,
) -> Segmentation:
    """Segments a volume.

    With an adapter and no prompts: all of its structures on all slices. With prompts: the prompted structures on the
    prompted slices and, by propagation, around them; the adapter's other structures everywhere. Without an adapter,
    every structure named in the prompts gets the next label value, in order of first mention ("object" if unnamed).
    """
    options = options or SegmentOptions()
    adapter = predictor.adapter
    axis = slice_axis(volume, adapter, prompts, options)
    if intensity is None:
        intensity = adapter.intensity if adapter else IntensitySpec.auto(volume)
    structures = _structures(predictor, prompts)
    by_structure = _prompts_by_structure(prompts, structures, volume)
    job = _Slices(volume, predictor, intensity, axis, report, options)
    with predictor.ready():
        for value, wanted in by_structure.items():
            job.prompted(value, wanted)
        if adapter is not None:
            job.prompt_free([value for value in adapter.structures if value not in by_structure])
        whole: list[int] = []
        together: list[list[int]] = []
        if adapter is not None and not options.all_pieces:
            whole, together = in_one_piece(adapter), shown_together(adapter)
        labels = job.labels(sorted(structures), whole, together)
    labels = cleaned(labels, volume.spacing_mm, options)
    return Segmentation(Labelmap(volume.like(labels), structures), job.probabilities, job.confidence)


def propagate(
    volume: Volume,
    predictor: Predictor,
    prompts: Sequence[Prompt],
    *,
    intensity: IntensitySpec | None = None,
    options: SegmentOptions | None = None,
    report: Report = silent,
) -> dict[int, tuple[NDArray[np.bool_], float]]:
    """{slice: (mask (H, W), predicted IoU)} of one structure: its prompted slices, and those reached from them."""
    options = options or SegmentOptions()
    names = {prompt.structure for prompt in prompts}
    if len(names) != 1 or not all(prompt.shows_place for prompt in prompts):
        raise InputError(
            "Propagation follows one structure from slices where a point, a box or a mask shows it, got "
            f"{len(prompts)} prompts for {len(names)} structures; give at least one prompt, one structure at a time."
        )
    for prompt in prompts:
        prompt.check_inside(volume)
    adapter = predictor.adapter
    axis = slice_axis(volume, adapter, prompts, options)
    if intensity is None:
        intensity = adapter.intensity if adapter else IntensitySpec.auto(volume)
    learned = adapter.structures if adapter else {}
    value = next((value for value, name in learned.items() if name in names), 0)
    slices = _Slices(volume, predictor, intensity, axis, report, options)
    with predictor.ready():
        slices.prompted(value, prompts)
    decided, confidence = slices.decided[value], slices.confidence[value]
    return {index: (decided[index] > 0, confidence[index]) for index in sorted(decided)}


class _Slices:
    """The slices of one volume, their embeddings, and the logits computed so far."""

    def __init__(
        self,
        volume: Volume,
        predictor: Predictor,
        intensity: IntensitySpec,
        axis: int,
        report: Report,
        options: SegmentOptions,
    ) -> None:
        self.volume, self.predictor, self.intensity, self.axis = volume, predictor, intensity, axis
        self.report, self.options = report, options
        self.reader = SliceReader(volume, intensity, predictor.image_size, axis)
        self.count = volume.shape[axis]
        # Only masks of prompted structures are kept for the whole volume, cropped to the slices they occur on.
        self.decided: dict[int, dict[int, Logits]] = {}
        self.confidence: dict[int, dict[int, float]] = {}
        self.probabilities: dict[int, NDArray[np.float16]] = {}
        self.free: list[int] = []
        self.certainty: NDArray[np.uint8] | None = None

    def prompt_free(self, structures: Sequence[int]) -> None:
        self.free = list(structures)

    def prompted(self, value: int, prompts: Sequence[Prompt]) -> None:
        """Segments a structure on its prompted slices, then propagates outwards."""
        decided, confidence = self.decided.setdefault(value, {}), self.confidence.setdefault(value, {})
        for prompt in prompts:
            logits, iou = self._answer(prompt, value)
            seen = decided.get(prompt.index)
            decided[prompt.index] = logits if seen is None else np.maximum(seen, logits)
            confidence[prompt.index] = iou
            self.report(Progress(prompt.index + 1, self.count, f"slice {prompt.index}"))
        if self.options.propagate:
            asked = sorted({prompt.index for prompt in prompts})
            for index in asked:
                for direction in self.options.directions:
                    self._propagate(value, index, direction, asked)

    def _answer(self, prompt: Prompt, value: int) -> tuple[Logits, float]:
        frame = self.reader.frame(prompt.index)
        embedding = self.predictor.encode([self.reader.square(prompt.index)])[0]
        known = [value] if self.predictor.knows(value) else []
        masks = self.predictor.answer(embedding, prompt, frame, known)
        return self.predictor.on_voxels(masks, frame)[0], float(masks.iou[0])

    def _propagate(self, value: int, start: int, direction: int, asked: Sequence[int]) -> None:
        """Propagates from a prompted slice; the mask of each slice, and a click at its centre, prompt the next."""
        decided, confidence = self.decided[value], self.confidence[value]
        mask = decided[start] > 0
        for step in range(1, self.options.max_propagation + 1):
            index = start + direction * step
            # Halfway to the next prompted slice, that slice's propagation takes over.
            if not 0 <= index < self.count or any(abs(index - other) < step for other in asked) or index in asked:
                return
            if not mask.any():
                return
            logits, iou = self._answer(self._guided(index, mask), value)
            area, before = int((logits > 0).sum()), int(mask.sum())
            if iou < self.options.min_confidence or not 1 / self.options.max_growth <= area / before <= (
                self.options.max_growth
            ):
                return
            seen = decided.get(index)
            if seen is None or confidence[index] < iou:
                decided[index], confidence[index] = logits, iou
            mask = logits > 0
            self.report(Progress(index + 1, self.count, f"slice {index}"))

    def _guided(self, index: int, mask: NDArray[np.bool_]) -> Prompt:
        column, row = centre_click(mask)
        rows, columns = self.reader.frame(index).source_axes
        point = np.full((1, 3), float(index))
        point[0, rows], point[0, columns] = row, column
        return Prompt(self.axis, index, points_ijk=point, point_labels=np.array([1]), mask=mask)

    def labels(
        self, structures: Sequence[int], whole: Collection[int] = (), together: Collection[Collection[int]] = ()
    ) -> NDArray[Any]:
        """Labels (K, J, I): per voxel the structure with the highest positive logit. Of structures that are `whole` and
        not prompted, only the main components, and where it is known which structures appear `together`, only the
        range between their ends.
        """
        whole = [value for value in whole if value in self.free]
        labels = np.zeros(self.volume.shape, np.uint8 if max(structures, default=0) < 256 else np.uint16)
        if whole:
            self.certainty = np.zeros(self.volume.shape, np.uint8)
        if self.options.probabilities:
            self.probabilities = {v: np.zeros(self.volume.shape, np.float16) for v in structures}
        for index, found in self._per_slice():
            self._write(labels, index, found)
            self.report(Progress(index + 1, self.count, f"slice {index + 1} of {self.count}"))
        if self.certainty is not None:
            sets = [[value for value in values if value in self.free] for values in together]
            # Structures annotated with others are disambiguated by them; those annotated alone, by the most certain
            # component.
            for value in set(whole) - shown_with_others(sets):
                keep_main_pieces(labels, self.certainty, value)
            cut_beyond_ends(labels, self.certainty, self.axis, self.free, whole, [rows for rows in sets if rows])
            for value in whole:
                keep_main_pieces(labels, self.certainty, value)
        return labels

    def _per_slice(self) -> Iterator[tuple[int, dict[int, Logits]]]:
        """Slice index and {value: logits (H, W)}, a few slices at a time."""
        for first in range(0, self.count, self.options.batch_slices):
            indices = range(first, min(first + self.options.batch_slices, self.count))
            found = self._by_token(indices) if self.free else {}
            for index in indices:
                known = {v: logits[index] for v, logits in self.decided.items() if index in logits}
                yield index, {**found.get(index, {}), **known}

    def _by_token(self, indices: Sequence[int]) -> dict[int, dict[int, Logits]]:
        embeddings = self.predictor.encode([self.reader.square(index) for index in indices])
        found: dict[int, dict[int, Logits]] = {}
        for index, embedding in zip(indices, embeddings, strict=True):
            masks = self.predictor.decode_structures(embedding, self.free)
            logits = self.predictor.on_voxels(masks, self.reader.frame(index))
            found[index] = dict(zip(self.free, logits, strict=True))
            for value, iou in zip(self.free, masks.iou, strict=True):
                self.confidence.setdefault(value, {})[index] = float(iou)
        return found

    def _write(self, labels: NDArray[Any], index: int, found: Mapping[int, Logits]) -> None:
        at: list[Any] = [slice(None)] * 3
        at[self.axis] = index
        if found:
            values = np.array([0, *found], labels.dtype)
            stack = np.stack([np.zeros(next(iter(found.values())).shape, np.float32), *found.values()])
            labels[tuple(at)] = values[np.argmax(stack, axis=0)]
            if self.certainty is not None:
                self.certainty[tuple(at)] = np.clip(stack.max(axis=0) * CERTAINTY_STEPS, 0, 255)
        for value, logits in found.items():
            if self.options.probabilities:
                self.probabilities[value][tuple(at)] = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def cut_beyond_ends(
    labels: NDArray[Any],
    certainty: NDArray[np.uint8],
    axis: int,
    structures: Sequence[int],
    whole: Collection[int],
    together: Collection[Sequence[int]],
) -> None:
    """Remove from labels (K, J, I) `whole` structures beyond their first and last slice along `axis`; certainty
    (K, J, I) are quantized logits. A structure that is in no set of `together` is left alone.
    """
    known: set[int] = set().union(*together)
    if not known:
        return
    slices, steps = np.moveaxis(labels, axis, 0), np.moveaxis(certainty, axis, 0)
    most = max(int(labels.max()), *structures)  # includes labels of prompted structures
    weights = np.stack(_per_slice(slices, most, steps), axis=1)[list(structures)]
    rows = [[structures.index(value) for value in values] for values in together]

    def iou(row: int, one: int, other: int) -> float:
        first, second = (slices[index] == structures[row] for index in (one, other))
        return float((first & second).sum() / max((first | second).sum(), 1))

    for value, (first, last) in zip(structures, slice_ranges(weights, rows, iou), strict=True):
        if value in whole and value in known:
            for beyond in (slices[:first], slices[last + 1 :]):
                beyond[beyond == value] = 0


def keep_main_pieces(labels: NDArray[Any], certainty: NDArray[np.uint8], value: int) -> None:
    """Remove from labels (K, J, I) the minor connected components of a structure. The weight of a component is the sum
    of its quantized logits (K, J, I), so certainty counts, not only size.
    """
    window = ndimage.find_objects(labels, max_label=value)[value - 1]
    if window is None:
        return
    pieces, count = ndimage.label(labels[window] == value, np.ones((3, 3, 3)))
    weights = np.sum(_per_slice(pieces, count, certainty[window]), axis=0)
    light = weights < MAIN_SHARE * weights[1:].max()
    _remove(labels[window], pieces, light)


def _per_slice(numbers: NDArray[Any], most: int, weights: NDArray[Any] | None = None) -> list[NDArray[Any]]:
    """For each slice (J, I) of numbers (K, J, I), how many voxels have each of the values 0 to `most`, or the sum of
    their weights. Slice by slice, because counting takes 16 bytes a voxel.
    """
    each = [None] * len(numbers) if weights is None else weights
    return [
        np.bincount(plane.ravel(), None if how is None else how.ravel(), most + 1)
        for plane, how in zip(numbers, each, strict=True)
    ]


def _remove(labels: NDArray[Any], pieces: NDArray[Any], unwanted: NDArray[np.bool_]) -> None:
    """Set the unwanted (components + 1,) connected components (K, J, I) to background; entry 0 is the background."""
    unwanted[0] = False
    for plane, piece in zip(labels, pieces, strict=True):
        plane[unwanted[piece]] = 0


def in_one_piece(adapter: Adapter) -> list[int]:
    """The structures with one component, or a few of similar size, on their training slices."""
    names = set(adapter.metrics.get("in_one_piece", ()))
    return [value for value, name in adapter.structures.items() if name in names]


def shown_together(adapter: Adapter) -> list[list[int]]:
    """The structures that occurred together on a training slice, one list per distinct set; empty for an adapter
    without that information.
    """
    values = {name: value for value, name in adapter.structures.items()}
    return [[values[name] for name in names if name in values] for names in adapter.metrics.get("shown_together", ())]


def cleaned(labels: NDArray[Any], spacing_mm: NDArray[Any], options: SegmentOptions) -> NDArray[Any]:
    """Removes islands per structure (all but the largest, or those below a volume in mL), and smooths the rest."""
    if options.largest_component or options.min_island_ml > 0:
        labels = _without_islands(labels, spacing_mm, options)
    return smoothed(labels, spacing_mm, options.smoothing_mm) if options.smoothing_mm > 0 else labels


def smoothed(labels: NDArray[Any], spacing_mm: NDArray[Any], sigma_mm: float) -> NDArray[Any]:
    """Smoothed labels (K, J, I): each voxel gets the structure, or background, with the largest Gaussian-weighted vote.

    `spacing_mm` is in the order I, J, K; the kernel is in mm, so thick slices influence each other little.
    """
    windows = [window for window in ndimage.find_objects(labels) if window is not None]
    if not windows:
        return labels
    sigma = sigma_mm / np.asarray(spacing_mm, float)[::-1]
    reach = np.ceil(4 * sigma).astype(int)
    low = np.maximum(np.min([[s.start for s in w] for w in windows], axis=0) - reach, 0)
    high = np.max([[s.stop for s in w] for w in windows], axis=0) + reach
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = labels[window]
    found, most = np.zeros_like(part), np.full(part.shape, -1.0, np.float32)
    for value in np.unique(part):
        share = ndimage.gaussian_filter((part == value).astype(np.float32), sigma, mode="nearest")
        better = share > most
        found[better], most[better] = value, share[better]
    labels = labels.copy()
    labels[window] = found
    return labels


def _without_islands(labels: NDArray[Any], spacing_mm: NDArray[Any], options: SegmentOptions) -> NDArray[Any]:
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    labels = labels.copy()
    for value, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        islands, number = ndimage.label(labels[window] == value)
        if number < 2 and not options.min_island_ml:
            continue
        sizes = np.sum(_per_slice(islands, number), axis=0)
        sizes[0] = 0
        keep: NDArray[np.bool_] = sizes * voxel_ml >= options.min_island_ml
        if options.largest_component:
            keep &= np.arange(len(sizes)) == int(np.argmax(sizes))
        _remove(labels[window], islands, ~keep)
    return labels


def slice_axis(volume: Volume, adapter: Adapter | None, prompts: Sequence[Prompt], options: SegmentOptions) -> int:
    axes = {prompt.axis for prompt in prompts}
    if len(axes) > 1:
        raise InputError("The prompts lie on slices of different axes; segment with those of one axis at a time.")
    wanted = options.axis
    if axes and wanted is not None and wanted not in axes:
        raise InputError(f"The prompts lie on axis {'kji'[axes.pop()]}, the axis asked for is {'kji'[wanted]}.")
    if axes:
        return axes.pop()
    if wanted is not None:
        return wanted
    # An adapter's axis is an array axis of its exemplars; another volume may have a different axis order, but what was
    # annotated in its acquisition plane is best segmented in the acquisition plane again.
    return adapter.axis if adapter and volume.acquisition_axis == 0 else volume.acquisition_axis


def _structures(predictor: Predictor, prompts: Sequence[Prompt]) -> dict[int, str]:
    known = dict(predictor.adapter.structures) if predictor.adapter else {}
    if predictor.adapter is None and not prompts:
        raise InputError("Without an adapter there is nothing to segment: give prompts, or an adapter.")
    if not known and not prompts:
        raise InputError("The adapter has no named structures: give prompts, or a support set as well.")
    for prompt in prompts:
        name = prompt.structure or "object"
        if name not in known.values():
            known[max(known, default=0) + 1] = name
    learned = predictor.adapter.structures.values() if predictor.adapter else ()
    for name in known.values():
        if name not in learned and not any(p.shows_place for p in prompts if (p.structure or "object") == name):
            raise InputError(
                f"The adapter has not learned {name} and nothing points at {name}: give a point, a box or a mask."
                if predictor.adapter
                else f"Without an adapter nothing points at {name}: give a point, a box or a mask."
            )
    return known


def _prompts_by_structure(
    prompts: Sequence[Prompt], structures: Mapping[int, str], volume: Volume
) -> dict[int, list[Prompt]]:
    """{value: prompts}; a prompt that only names a structure requests it on every slice, by its tokens."""
    values = {name: value for value, name in structures.items()}
    grouped: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        prompt.check_inside(volume)
        if prompt.shows_place:
            grouped.setdefault(values[prompt.structure or "object"], []).append(prompt)
    return grouped
