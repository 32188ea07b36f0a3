"""How long from a click in a slice view to its mask in the segment, at rest and during an adaptation.

python Testing/Extension/benchmark_clicks.py [--clicks 40] [--shape 200 512 512]

Real events in the views of the test host, the default base model in its worker process, a timer that polls every 10 ms
as the panel does, and an event loop that keeps Python's lock while it waits, as Slicer's does: what was measured before
November 2026 was measured under a loop that gave it back. "New slices" are clicked on as soon as they are shown, before
anything of them is known to the model. Printed, not asserted: it depends on the machine. The longest stall is the
longest time in which the window did not react; without a graphics card most of that is drawing, so it is also told
without it. On a machine that is busy with other things it is time spent waiting for a processor; so the processor time
of the busiest turn of the event loop, and of the longest poll (the answer taken in and the mask written), stand beside
it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
POLL_MS = 10  # as the panel
SCROLL_S = 0.6  # a person looks at the slice before clicking


class Bench:
    """A patient in the views, the logic with its timer, and clocks on both."""

    def __init__(self, shape: Sequence[int] | None) -> None:
        import qt
        import slicer
        import slicer.util

        from FewShotSegSlicer.Logic import Logic
        from FewShotSegSlicer.Prompting.PromptTool import PromptTool
        from FewShotSegSlicer.Scene import SamplePatients, Segmentations

        volume, self.drawn = SamplePatients.load(1)
        self.volume = enlarged(volume, shape) if shape else volume
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        self.exemplars = [(volume, self.drawn)]
        self.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "clicked")
        self.segmentation.CreateDefaultDisplayNodes()
        self.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        self.logic = Logic()
        self.times: list[float] = []
        self.logic.live.timed.connect(self.times.append)
        self.logic.live.failed.connect(say)
        self.logic.live.setTarget(self.volume, self.segmentation, Segmentations.addSegment(self.segmentation, "liver"))
        self.tool = PromptTool(self.logic.live)
        self.tool.install()
        self.tool.mode = "positive"
        self.drawing = 0.0
        self.start = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceOffset()
        for name in slicer.app.layoutManager().sliceViewNames():
            window = slicer.app.layoutManager().sliceWidget(name).sliceView().renderWindow()
            window.AddObserver("StartEvent", lambda *_: self.draws(-time.perf_counter()))
            window.AddObserver("EndEvent", lambda *_: self.draws(time.perf_counter()))
        self.reset()
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.poll)
        self.timer.start()

    def reset(self) -> None:
        self.times.clear()
        self.longestPoll = self.longestTurn = self.longestStall = self.longestWithoutDrawing = 0.0

    def draws(self, seconds: float) -> None:
        self.drawing += seconds

    def poll(self) -> None:
        started = time.thread_time()
        self.logic.poll()
        self.longestPoll = max(self.longestPoll, time.thread_time() - started)

    def turn(self) -> None:
        import slicer

        from Testing.SlicerHost import EventLoop

        self.drawing, started, worked = 0.0, time.perf_counter(), time.thread_time()
        slicer.app.processEvents()
        stall = time.perf_counter() - started
        self.longestStall = max(self.longestStall, stall)
        self.longestWithoutDrawing = max(self.longestWithoutDrawing, stall - self.drawing)
        self.longestTurn = max(self.longestTurn, time.thread_time() - worked)
        EventLoop.wait(0.001)

    def until(self, condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nothing came within {timeout_s:g} s.")
            self.turn()

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def click(self, view: str, xy: tuple[int, int]) -> None:
        import slicer

        interactor = slicer.app.layoutManager().sliceWidget(view).sliceView().interactor()
        interactor.SetEventInformation(*xy, 0, 0, "\0", 0, None)
        for event in ("MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            interactor.InvokeEvent(event)

    def clickAt(self, x: float, y: float) -> None:
        """Click at a part of the red view, and wait for the mask."""
        import slicer

        width, height = slicer.app.layoutManager().sliceWidget("Red").sliceView().renderWindow().GetSize()
        wanted = len(self.times) + 1
        self.click("Red", (int(x * width), int(y * height)))
        self.until(lambda: len(self.times) == wanted)
        self.rest(0.1)

    def scroll(self, slices: int) -> None:
        """Show another slice in the red view."""
        import slicer

        logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
        logic.SetSliceOffset(self.start + self.volume.GetSpacing()[2] * slices)

    def measure(self, clicks: int) -> str:
        """Scroll to a slice, wait a moment, click three times on it, and so on; returns the times in words."""
        self.reset()
        for number in range(clicks):
            if number % 3 == 0:
                self.scroll(number // 3 % 8)
                self.rest(SCROLL_S)
                self.logic.live.clear(*self.logic.live.activeSlice)
            self.clickAt(*((0.45, 0.5), (0.55, 0.45), (0.5, 0.6))[number % 3])
        return self.told()

    def measureNew(self, clicks: int) -> str:
        """Go to slices that nobody has looked at, and click at once; returns the times in words."""
        from FewShotSegSlicer.Scene import SliceViews

        self.reset()
        count = self.volume.GetImageData().GetDimensions()[2]
        unseen = [index for index in range(count // 6, 5 * count // 6, 4) if not 0 <= index - count // 2 < 12]
        for index in unseen[:clicks]:
            SliceViews.jumpToSlice(self.volume, 0, index)
            self.clickAt(0.5, 0.5)
        return self.told()

    def told(self) -> str:
        self.scroll(0)
        median, late = 1e3 * np.percentile(self.times, (50, 90))
        stall, own, turn, poll = (
            1e3 * seconds
            for seconds in (self.longestStall, self.longestWithoutDrawing, self.longestTurn, self.longestPoll)
        )
        return (
            f"click to mask {median:.0f} ms (median; 90 %: {late:.0f} ms), longest stall {stall:.0f} ms, without "
            f"drawing {own:.0f} ms; processor time of the busiest turn {turn:.0f} ms, of the longest poll {poll:.0f} ms"
        )


def enlarged(volumeNode: Any, shape: Sequence[int]) -> Any:
    """The same body with more voxels."""
    import slicer.util

    from FewShotSegSlicer.Scene import Volumes

    volume = Volumes.volumeFromNode(volumeNode)
    picks = [np.linspace(0, old - 1, new).round().astype(int) for old, new in zip(volume.shape, shape, strict=True)]
    scale = np.diag([*(old / new for old, new in zip(volume.shape[::-1], shape[::-1], strict=True)), 1.0])
    return slicer.util.addVolumeFromArray(volume.array[np.ix_(*picks)], volume.affine @ scale, "large")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("K", "J", "I"), help="default: the sample patient's")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "FewShotSeg")]
    from Testing.SlicerHost import start

    start()
    bench = Bench(arguments.shape)
    size = " x ".join(map(str, bench.volume.GetImageData().GetDimensions()))
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, volume {size}")
    try:
        bench.click("Red", (400, 180))  # starts the worker
        bench.until(lambda: bench.times)
        say(f"at rest:        {bench.measure(arguments.clicks)}")
        say(f"new slices:     {bench.measureNew(min(arguments.clicks, 12))}")
        steps: list[Any] = []
        run = bench.logic.adapt(bench.exemplars, progress=steps.append, recipe={"steps": 100_000})
        bench.until(lambda: any(message["step"] > 1 for message in steps), 600)
        say(f"while adapting: {bench.measure(arguments.clicks)}")
        run.cancel()
        bench.until(lambda: not run.isRunning)
    finally:
        bench.tool.remove()
        bench.logic.live.setTarget(None, None, None)
        bench.logic.close()


if __name__ == "__main__":
    main()
