"""The panel with everything it may ask of the logic replaced: no worker is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import qt
import slicer

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.methods import METHODS, method
from FewShotSegSlicer.Scene import Geometry, SliceViews
from FewShotSegSlicer.Workers.Run import RunProgress
from Testing.Extension.cases import addCase

WIDTH = 300  # pixels; Slicer's module panel is seldom made narrower


SECTIONS = ("segment", "exemplar", "adapt", "result", "batch", "setup")


class FakeRun:
    """A job that does nothing until it is told how it ends."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.isRunning = self.canKeepBest = True
        self.warnings: tuple[str, ...] = ()
        self.told: list[str] = []

    def cancel(self) -> None:
        self.told.append("cancel")

    def stopAndKeepBest(self) -> None:
        self.told.append("stopAndKeepBest")

    def drop(self, *_arguments: Any, **_options: Any) -> None:
        self.isRunning = False

    def progress(self, **message: Any) -> None:
        message = {"step": 0, "total": 0, "message": "", "metrics": {}, **message}
        share = message["step"] / message["total"] if message["total"] else None
        self.arguments["progress"](RunProgress(message, fraction=share, remaining_s=95.0))

    def done(self, result: Any) -> None:
        self.isRunning = False
        self.arguments["onDone"](result)

    def failed(self, kind: str, message: str) -> None:
        self.isRunning = False
        self.arguments["onError"](kind, message)


class Case:
    """The panel with everything it may ask of the logic replaced; `runs` are the jobs it has asked for, by name."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget, self.panel, self.ui, self.logic = widget, widget.panel, widget.panel.ui, widget.logic
        self.selection = self.panel.selection
        self.runs: dict[str, FakeRun] = {}
        self.requests: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for name in ("adapt", "segment", "processBatch", "preview", "measure", "suggestNextSlice", "compare"):
            monkeypatch.setattr(self.logic, name, self._asked(name))
        monkeypatch.setattr(self.logic, "methods", self._methods)
        monkeypatch.setattr(self.logic.workers, "request", self._request)
        monkeypatch.setattr(self.logic.workers, "sendVolume", lambda *arguments, **options: None)
        monkeypatch.setattr(
            type(self.logic), "runs", property(lambda _self: [run for run in self.runs.values() if run.isRunning])
        )

    def _asked(self, name: str) -> Callable[..., FakeRun]:
        def ask(*arguments: Any, **options: Any) -> FakeRun:
            self.runs[name] = FakeRun({"arguments": arguments, **options})
            return self.runs[name]

        return ask

    def _methods(self, onDone: Callable[..., Any], onError: Callable[..., Any]) -> None:
        modules = {name: method(name) for name in METHODS}
        onDone(
            [
                {
                    "name": name,
                    "label": m.LABEL,
                    "about": m.__doc__,
                    "needs": sorted(m.NEEDS),
                    "options": describe(m.Recipe),
                }
                for name, m in modules.items()
            ]
        )

    def _request(self, _worker: str, request: dict[str, Any], **callbacks: Any) -> int:
        self.requests.append((request, callbacks))
        return len(self.requests)

    def show(self, section: str) -> None:
        for name in SECTIONS:
            getattr(self.ui, name + "Section").collapsed = name != section
        slicer.app.processEvents()

    def load(self, **options: Any) -> tuple[Any, Any]:
        """A volume with two structures drawn on two slices, chosen, with the Red view on a drawn slice."""
        volumeNode, segmentationNode, _volume, _labels = addCase(**options)
        self.ui.volumeSelector.setCurrentNode(volumeNode)
        self.ui.segmentationSelector.setCurrentNode(segmentationNode)
        SliceViews.jumpToSlice(volumeNode, 0, 1)
        slicer.app.processEvents()
        self.logic.live.setSlice(0, 1, "Red")
        return volumeNode, segmentationNode

    def press(self, button: Any) -> None:
        assert button.enabled, button.toolTip
        button.click()
        slicer.app.processEvents()

    def click(self, volumeNode: Any) -> None:
        """A click on the drawn slice, without the mouse."""
        point_ras = Geometry.rasFromIjk(volumeNode)[:3] @ [40, 10, 1, 1]
        self.logic.live.addPoint(0, 1, tuple(point_ras), True)

    def answerClick(self, mask: np.ndarray) -> None:
        """Answer the newest question about a click."""
        request, callbacks = next(one for one in reversed(self.requests) if one[0]["op"] == "predict")
        axis, index = "kji".index(request["prompt"]["axis"]), request["prompt"]["index"]
        callbacks["onResult"]({**Prompt(axis, index, mask=mask).to_dict(), "iou": 0.9, "seconds": 0.01})
        slicer.app.processEvents()


METRICS = {
    "steps": 400,
    "best_step": 360,
    "estimated_dice": {"disc": 0.91, "square": 0.77},
    "estimate": "left-out exemplars (2 folds)",
    "guard": {"warnings": ["With clicks the adapter is worse than the base model."]},
}


def pixelsOf(pixmap: Any) -> np.ndarray:
    """A small pixmap as (H, W, 3), uint8, first row on top."""
    image = pixmap.toImage()
    rows = [[image.pixel(x, y) for x in range(image.width())] for y in range(image.height())]
    return (np.array(rows, np.int64)[..., None] >> np.array([16, 8, 0]) & 255).astype(np.uint8)


def dialogCalled(title: str) -> Any:
    """The visible window of this title."""
    (found,) = [w for w in slicer.util.mainWindow().findChildren(qt.QDialog) if w.windowTitle == title and w.visible]
    return found


def widgetsOf(case: Case) -> Iterator[tuple[str, Any]]:
    kinds = (qt.QAbstractButton, qt.QComboBox, qt.QLineEdit, qt.QAbstractSpinBox, qt.QListWidget, qt.QProgressBar)
    for name, widget in vars(case.ui).items():
        if isinstance(widget, kinds) and not name.startswith("qt_"):
            yield name, widget


def offerMethod(case: Case, monkeypatch: pytest.MonkeyPatch, *needs: str) -> None:
    """Have the worker know a single method, with these needs."""
    options = describe(method("lora").Recipe)
    entry = {"name": "other", "label": "Other", "about": "", "needs": list(needs), "options": options}
    monkeypatch.setattr(case.logic, "methods", lambda onDone, onError: onDone([entry]))
    case.show("adapt")
