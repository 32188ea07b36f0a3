"""What a user may do while a click is answered, and what there is to see of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from FewShotSegSlicer.Scene import Segmentations
from Testing.Extension.bench import AFFINE, SHAPE, Bench, K


def leaveTheSlice(bench: Bench) -> None:
    bench.live.setSlice(0, K + 1)


def chooseAnotherSegment(bench: Bench) -> None:
    bench.live.setTarget(bench.volume, bench.segmentation, bench.spleen)


def chooseAnotherModel(bench: Bench) -> None:
    bench.live.setModel("new.safetensors", None)


def chooseAnotherVolume(bench: Bench) -> None:
    other = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), AFFINE, "MR")
    bench.live.setTarget(other, bench.segmentation, bench.liver)


def changeTheVolume(bench: Bench) -> None:
    slicer.util.arrayFromVolume(bench.volume)[:] += 1
    slicer.util.arrayFromVolumeModified(bench.volume)


def moveTheVolume(bench: Bench) -> None:
    bench.volume.SetOrigin(31, -4, 12)


def clickAgain(bench: Bench) -> None:
    bench.click(14, 12)


def dropAPoint(bench: Bench) -> None:
    bench.live.clear(0, K)


def undo(bench: Bench) -> None:
    bench.live.undo()


def leaveTheModule(bench: Bench) -> None:
    bench.live.leave()


def removeTheSegment(bench: Bench) -> None:
    bench.segmentation.GetSegmentation().RemoveSegment(bench.liver)
    bench.liver = bench.spleen


def renameTheSegment(bench: Bench) -> None:
    bench.segmentation.GetSegmentation().GetSegment(bench.liver).SetName("kidney")


def everything(bench: Bench) -> tuple[Any, ...]:
    texts = [bench.live.prompts.toJson(segmentId) for segmentId in (bench.liver, bench.spleen)]
    masks = [
        Segmentations.sliceMask(bench.segmentation, segmentId, bench.volume, 0, k).tobytes()
        for segmentId in (bench.liver, bench.spleen)
        for k in range(2, 7)
    ]
    return (*texts, *masks)


def annotated(bench: Bench) -> list[int]:
    return Segmentations.annotatedSlices(bench.segmentation, bench.volume, 0, [bench.liver])


def clicked(bench: Bench) -> Bench:
    bench.click(8, 7)
    bench.workers.answer()
    return bench
