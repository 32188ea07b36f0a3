"""Follows a segment from its prompted slices to their neighbours."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import Segmentations
from FewShotSegSlicer.Workers.Workers import Workers

from .History import Mask, PropagationStep
from .Prompts import PromptStore, SlicePrompt
from .Question import Model
from .Target import Target


@dataclass(eq=False)
class _Origin:
    """What a propagation starts from."""

    target: Target
    segmentId: str
    axis: int
    prompts: dict[int, SlicePrompt]
    number: int = 0
    """The worker's, to cancel by."""


class Propagation:
    """One at a time. Tells `onDone(step)` (None: nothing to write), `onFailed(message)`, `onProgress(message)`."""

    def __init__(
        self,
        workers: Workers,
        prompts: PromptStore,
        *,
        onDone: Callable[[PropagationStep | None], Any],
        onFailed: Callable[[str], Any],
        onProgress: Callable[[dict[str, Any]], Any],
    ) -> None:
        self._workers, self._prompts = workers, prompts
        self._onDone, self._onFailed, self._onProgress = onDone, onFailed, onProgress
        self._origin: _Origin | None = None

    @property
    def isUnderWay(self) -> bool:
        """Whether the worker is at it."""
        return self._origin is not None

    def start(self, target: Target, model: Model, axis: int, direction: int, count: int) -> None:
        """Ask for up to `count` slices below (-1), above (1) or on both sides (0) of each prompted slice."""
        segmentId = target.segmentId or ""
        indices = [index for known, index in self._prompts.slices(segmentId) if known == axis]
        if not indices:
            raise InputError("Propagation starts from slices with a prompt: click on one of this direction first.")
        origin = _Origin(
            target, segmentId, axis, {index: self._prompts.get(segmentId, axis, index) for index in indices}
        )
        prompts = [prompt.toDict(axis, index) for index, prompt in origin.prompts.items()]
        request = {
            "op": "propagate",
            "volume": target.volumeName(),
            "direction": direction,
            "count": int(count),
            "prompts": [prompt | {"structure": target.structure} for prompt in prompts],
            **model.toDict(),
        }
        self._origin = origin
        origin.number = self._workers.request(
            "prompt",
            request,
            onResult=lambda result: self._take(origin, result),
            onError=lambda kind, message: self._fail(origin, kind, message),
            onProgress=lambda message: self._onProgress(message) if self._origin is origin else None,
        )

    def mark(self, target: Target, step: PropagationStep) -> None:
        """Remember the slices that a step has just written as they came out; masking may have left less of them."""
        shown = {index: _maskOn(target, step.segmentId, step.axis, index) for index in step.masks}
        step.after = step.before | {(step.axis, index): _checksum(mask) for index, mask in shown.items()}
        self._prompts.setPropagated(step.segmentId, step.after)

    def cancel(self) -> bool:
        """Give up, with nothing written; returns whether there was something to give up."""
        origin, self._origin = self._origin, None
        if origin is not None:
            self._workers.cancel("prompt", origin.number)
        return origin is not None

    def _take(self, origin: _Origin, result: dict[str, Any]) -> None:
        if self._origin is not origin:
            return  # cancelled, or started anew
        self._origin = None
        target = origin.target
        if target.areNodesThere and target.segment(origin.segmentId) is not None and target.isVolumeSent:
            self._onDone(self._stepOf(origin, result))
        else:
            self._onFailed("Volume or segment were changed during propagation; nothing was written. Start it again.")

    def _fail(self, origin: _Origin, kind: str, message: str) -> None:
        if self._origin is origin:
            self._origin = None
            if kind != "cancelled":
                self._onFailed(message)

    def _stepOf(self, origin: _Origin, result: dict[str, Any]) -> PropagationStep | None:
        answers = [
            Prompt.from_dict({key: entry[key] for key in ("axis", "index", "mask")}) for entry in result["slices"]
        ]
        masks = {a.index: a.mask for a in answers if a.mask is not None and self._isFree(origin, a.index)}
        if not masks:
            return None
        nearest = min(masks, key=lambda index: min(abs(index - other) for other in origin.prompts))
        before = self._prompts.propagated(origin.segmentId)
        return PropagationStep(origin.segmentId, origin.axis, nearest, masks, before, before)

    def _isFree(self, origin: _Origin, index: int) -> bool:
        """Whether a slice has no prompt, and is empty or as an earlier propagation has left it."""
        if index in origin.prompts:
            return False
        mask = _maskOn(origin.target, origin.segmentId, origin.axis, index)
        mark = self._prompts.propagated(origin.segmentId).get((origin.axis, index))
        return not mask.any() or mark == _checksum(mask)


def _maskOn(target: Target, segmentId: str, axis: int, index: int) -> Mask:
    return Segmentations.sliceMask(target.segmentationNode, segmentId, target.volumeNode, axis, index)


def _checksum(mask: Mask) -> int:
    return zlib.crc32(np.packbits(mask).tobytes())
