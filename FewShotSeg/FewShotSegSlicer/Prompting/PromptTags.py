"""Prompts in the scene: a tag of each segment, saved with the segmentation."""

from __future__ import annotations

from typing import Any

import vtk

from FewShotSegLib.errors import InputError

from .Prompts import PromptStore, SlicePrompt
from .Target import Target

TAG = "FewShotSeg.Prompts"


def save(prompts: PromptStore, segmentationNode: Any) -> None:
    """Write the prompts of all segments; a tag that says the same already is not touched."""
    segmentation, known = segmentationNode.GetSegmentation(), prompts.segmentIds()
    for segmentId in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segmentId)
        text = prompts.toJson(segmentId) if segmentId in known else None
        if text == _textOf(segment):
            continue
        if text is None:
            segment.RemoveTag(TAG)
        else:
            segment.SetTag(TAG, text)


def restore(prompts: PromptStore, target: Target) -> list[str]:
    """Replace the prompts by those in the tags. Returns a sentence for each segment with prompts that were left out."""
    prompts.clear()
    problems = []
    segmentation = target.segmentationNode.GetSegmentation()
    for segmentId in segmentation.GetSegmentIDs():
        text = _textOf(segmentation.GetSegment(segmentId))
        try:
            if text is not None:
                prompts.fromJson(segmentId, text)
                _align(prompts, target, segmentId)
        except InputError as error:
            problems.append(str(error))
    return problems


def entries(segmentationNode: Any) -> list[dict[str, Any]]:
    """Return the saved prompts of all segments as entries of a prompt file, each with the name of its structure.

    They are found by their places in RAS: the index of a slice is left out.
    """
    prompts, found = PromptStore(), []
    segmentation = segmentationNode.GetSegmentation()
    for segmentId in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segmentId)
        text = _textOf(segment)
        if text is not None:
            prompts.fromJson(segmentId, text)
        for where in prompts.slices(segmentId):
            entry = prompts.get(segmentId, *where).toDict(*where) | {"structure": segment.GetName()}
            del entry["index"]
            found.append(entry)
    return found


def _align(prompts: PromptStore, target: Target, segmentId: str) -> None:
    """Find the slices by their places in RAS: a file can come back with its slices in another order."""
    saved = {where: prompts.get(segmentId, *where) for where in prompts.slices(segmentId)}
    found = {where: target.sliceOf(where[0], prompt) for where, prompt in saved.items()}
    for where in saved:
        prompts.set(segmentId, *where, SlicePrompt())
    for (axis, old), index in found.items():
        if index is not None:
            prompts.set(segmentId, axis, index, saved[axis, old])
    if any(where[1] != index for where, index in found.items()):
        prompts.setPropagated(segmentId, {})
    if lost := sum(index is None for index in found.values()):
        name = target.segment(segmentId).GetName()
        raise InputError(f"The prompts of {name} on {lost} slices lie outside the volume's slices and were left out.")


def _textOf(segment: Any) -> str | None:
    text = vtk.mutable("")
    return str(text) if segment.GetTag(TAG, text) else None
