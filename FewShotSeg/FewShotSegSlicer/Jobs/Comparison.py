"""Base model and adapter side by side: their masks for the same prompt on the same slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Scene.Geometry import Array, checkedSlice, rasFromIjk, voxelsOf
from FewShotSegSlicer.Scene.Thumbnails import asOnScreen
from FewShotSegSlicer.Scene.Volumes import shownWindow
from FewShotSegSlicer.Workers.Workers import Workers


@dataclass(frozen=True, eq=False)
class Comparison:
    """Masks (rows, columns) of a slice and the confidence (predicted IoU) of both; None where a model was not asked.

    `image` is the slice as it is shown, uint8. A base model cannot be asked by name alone: then its mask is empty.
    """

    axis: int
    index: int
    image: Array
    base: Array
    adapted: Array
    baseConfidence: float | None
    adaptedConfidence: float
    affine: Array

    @property
    def added(self) -> int:
        """Voxels that only the adapter has."""
        return int(np.count_nonzero(self.adapted & ~self.base))

    @property
    def removed(self) -> int:
        """Voxels that only the base model has."""
        return int(np.count_nonzero(self.base & ~self.adapted))

    def onScreen(self, picture: Array, size: int = 512) -> Array:
        """Return a picture (rows, columns) or (rows, columns, 3) of the slice turned as in Slicer's views, with square
        pixels, at most `size` of them high and wide."""
        return asOnScreen(picture, self.axis, self.affine, size)


class Comparing:
    """Asks both models, and calls back when both have answered or one has failed."""

    def __init__(
        self,
        workers: Workers,
        volumeNode: Any,
        axis: int,
        index: int,
        onDone: Callable[[Comparison], Any],
        onError: Callable[[str, str], Any],
    ) -> None:
        self._workers, self._onDone, self._onError = workers, onDone, onError
        shape = checkedSlice(volumeNode, axis, index)
        self._slice = (axis, index, _imageShown(volumeNode, axis, index))
        self._affine = rasFromIjk(volumeNode)
        self._answers: dict[str, tuple[Array, float | None]] = {}
        self._nothing = np.zeros(shape, bool)

    def start(self, volumeName: str, prompt: Mapping[str, Any], card: Mapping[str, Any], device: str = "auto") -> None:
        """Ask about a volume that the prompt worker knows; `prompt` is an entry of a prompt file."""
        models = {"base": None, "adapted": card["path"]}
        if not any(key in prompt for key in ("points_ras", "points_ijk", "box_ras", "box_ijk", "mask")):
            self._answers["base"] = self._nothing, None
        for name, adapter in models.items():
            if name not in self._answers:
                request = {"op": "predict", "volume": volumeName, "view": f"compare {name}", "prompt": dict(prompt)}
                self._workers.request(
                    "prompt",
                    {**request, "adapter": adapter, "base": card["base_model"] or None, "device": device},
                    onResult=partial(self._take, name),
                    onError=self._fail,
                    onSuperseded=lambda: self._fail("cancelled", "A newer comparison took its place."),
                )

    def _take(self, name: str, result: Mapping[str, Any]) -> None:
        mask = Prompt.from_dict({key: result[key] for key in ("axis", "index", "mask")}).mask
        assert mask is not None
        self._answers[name] = mask, float(result["iou"])
        if len(self._answers) == 2:
            (base, baseConfidence), (adapted, confidence) = self._answers["base"], self._answers["adapted"]
            assert confidence is not None
            self._onDone(Comparison(*self._slice, base, adapted, baseConfidence, confidence, self._affine))

    def _fail(self, kind: str, message: str) -> None:
        onError, self._onError = self._onError, lambda kind, message: None  # of two failures the first is told
        onError(kind, message)


def entryOf(prompt: Any, axis: int, index: int, structure: str | None) -> dict[str, Any]:
    """Return an entry of a prompt file for a prompt of any kind, or for the name of a structure alone."""
    if isinstance(prompt, Prompt):
        entry = prompt.to_dict()
    elif isinstance(prompt, SlicePrompt):
        entry = prompt.toDict(axis, index)
    else:
        entry = dict(prompt or {})
    entry = {"axis": "kji"[axis], "index": index, **entry}
    if structure:
        entry["structure"] = structure
    if set(entry) <= {"axis", "index"}:
        raise InputError(
            "There is nothing to compare: click on the structure, or name one that the adapter has learned."
        )
    return entry


def _imageShown(volumeNode: Any, axis: int, index: int) -> Array:
    image = voxelsOf(volumeNode).take(index, axis).astype(np.float32)
    low, high = shownWindow(volumeNode) or (float(image.min()), float(image.max()))
    return (255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).round().astype(np.uint8)
