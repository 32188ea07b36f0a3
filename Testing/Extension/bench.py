"""A segmenter with a worker that answers when, and in which order, a test says."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import slicer
import slicer.util

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import AXES, ras_from_ijk
from FewShotSegSlicer.Prompting.LiveSegmenter import SCROLLING_S, LiveSegmenter
from FewShotSegSlicer.Scene import Segmentations

SHAPE = (9, 20, 24)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 0, 2.0, -4], [0, -1.5, 0, 12], [0, 0, 0, 1.0]])  # coronal, no axis is RAS's
K = 4


def ras(i: float, j: float, k: float) -> tuple[float, float, float]:
    return tuple(ras_from_ijk(AFFINE, [[i, j, k]])[0])


class FakeWorkers:
    """Takes requests like Workers, and answers when told to.

    Masks depend on everything that a mask may depend on: squares around the points inside, without those around the
    points outside, the box, and a row of dots made of volume, model and structure.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.callbacks: dict[int, dict[str, Any]] = {}
        self.cancelled: list[int] = []
        self.volumes: dict[str, Any] = {}
        self.generation = 0

    def close(self) -> None:
        self.callbacks.clear()
        self.volumes.clear()
        self.generation += 1

    def request(self, worker: str, request: dict[str, Any], **callbacks: Any) -> int:
        assert worker == "prompt"
        assert request["volume"] in self.volumes
        self.requests.append(request)
        self.callbacks[len(self.requests) - 1] = {name: f for name, f in callbacks.items() if f is not None}
        return len(self.requests) - 1

    def sendVolume(self, name: str, array: Any, affine: Any, intensity: Any = None) -> None:
        self.volumes[name] = np.array(array)

    def forgetVolume(self, name: str) -> None:
        self.volumes.pop(name, None)

    def cancel(self, worker: str, number: int) -> None:
        self.cancelled.append(number)

    @property
    def open(self) -> list[int]:
        return list(self.callbacks)

    def asked(self, op: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["op"] == op]

    def answer(self, number: int | None = None, **more: Any) -> None:
        """Answer a request, by default the newest one; a mask with `more`."""
        number = max(self.callbacks) if number is None else number
        request, callbacks = self.requests[number], self.callbacks.pop(number)
        if request["op"] == "predict":
            prompt = request["prompt"]
            mask = Prompt(AXES[prompt["axis"]], prompt["index"], mask=maskOf(request)).to_dict()
            callbacks["onResult"]({**mask, "iou": 0.9, "seconds": 0.0, **more})
        elif request["op"] == "propagate":
            callbacks["onResult"]({"slices": [p.to_dict() | {"iou": 0.8} for p in propagated(request)]})
        else:
            callbacks["onResult"]({"seconds": 0.0})

    def answerAll(self) -> None:
        while self.callbacks:
            self.answer(min(self.callbacks))

    def fail(self, kind: str, message: str = "It broke.", number: int | None = None) -> None:
        self.callbacks.pop(max(self.callbacks) if number is None else number)["onError"](kind, message)


def maskOf(request: dict[str, Any]) -> np.ndarray:
    prompt, axis = request["prompt"], AXES[request["prompt"]["axis"]]
    shape = tuple(n for a, n in enumerate(SHAPE) if a != axis)
    mask = np.zeros(shape, bool)
    if "box_ras" in prompt:
        (top, left), (bottom, right) = sorted(pixel(corner, axis) for corner in prompt["box_ras"])
        mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    for point, label in zip(prompt.get("points_ras", ()), prompt.get("point_labels", ()), strict=True):
        row, column = pixel(point, axis)
        mask[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = bool(label)
    name = f"{request['volume']} {request['adapter']} {request['base']} {prompt['structure']}"
    dots = hashlib.sha256(name.encode()).digest()[: shape[1]]
    mask[0] = [byte > 127 for byte in (dots * 2)[: shape[1]]]
    return mask


def pixel(point: Any, axis: int) -> tuple[int, int]:
    ijk = np.linalg.solve(AFFINE, [*point, 1.0])[:3]
    row, column = (int(np.floor(ijk[2 - a] + 0.5)) for a in range(3) if a != axis)
    return row, column


def propagated(request: dict[str, Any]) -> list[Prompt]:
    """Squares of another size on every slice within reach, the prompted ones too."""
    found = {}
    for prompt in request["prompts"]:
        axis, step = AXES[prompt["axis"]], request["direction"]
        for distance in range(request["count"] + 1):
            for way in (step,) if step else (1, -1):
                index = prompt["index"] + way * distance
                if 0 <= index < SHAPE[axis]:
                    mask = np.zeros([n for a, n in enumerate(SHAPE) if a != axis], bool)
                    mask[3 : 6 + len(request["prompts"]), 4:9] = True
                    found[index] = Prompt(axis, index, mask=mask)
    return [found[index] for index in sorted(found)]


class Bench:
    """A volume, a segmentation with two structures, a segmenter, a fake worker and a clock that a test sets."""

    def __init__(self) -> None:
        array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
        self.volume = slicer.util.addVolumeFromArray(array, AFFINE, "CT")
        self.segmentation = aSegmentation(self.volume)
        self.liver = Segmentations.addSegment(self.segmentation, "liver")
        self.spleen = Segmentations.addSegment(self.segmentation, "spleen")
        self.workers, self.now = FakeWorkers(), 100.0
        self.live = LiveSegmenter(self.workers, clock=lambda: self.now)
        self.failures: list[str] = []
        self.live.failed.connect(self.failures.append)
        self.live.setTarget(self.volume, self.segmentation, self.liver)

    def click(self, i: float, j: float, k: int = K, positive: bool = True) -> None:
        self.live.addPoint(0, k, ras(i, j, k), positive)

    def wait(self, seconds: float = SCROLLING_S) -> None:
        self.now += seconds
        self.live.poll()

    def scroll(self, index: int, axis: int = 0, view: str = "") -> None:
        self.live.setSlice(axis, index, view)
        self.wait()

    def shown(self, index: int = K, axis: int = 0, segmentId: str | None = None) -> np.ndarray:
        return Segmentations.sliceMask(self.segmentation, segmentId or self.liver, self.volume, axis, index)

    def wanted(self, index: int = K, axis: int = 0, segmentId: str | None = None) -> np.ndarray:
        """The mask that belongs to the prompts of a slice as they are now."""
        segmentId = segmentId or self.liver
        prompt = self.live.prompts.get(segmentId, axis, index)
        if prompt.isEmpty:
            return np.zeros([n for a, n in enumerate(SHAPE) if a != axis], bool)
        structure = self.segmentation.GetSegmentation().GetSegment(segmentId).GetName()
        request = {"volume": max(self.workers.volumes, key=list(self.workers.volumes).index)}
        request |= {"prompt": prompt.toDict(axis, index) | {"structure": structure}, **self.live._model.toDict()}
        return maskOf(request)

    def assertAnswered(self, index: int = K, axis: int = 0) -> None:
        np.testing.assert_array_equal(self.shown(index, axis), self.wanted(index, axis))
        assert self.shown(index, axis).any()

    def assertNothing(self, index: int = K, axis: int = 0) -> None:
        assert not self.shown(index, axis).any()


def aSegmentation(volume: Any) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return node
