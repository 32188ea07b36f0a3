"""The bench with its volume in the views, and the tool in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Prompting.PromptTool import PromptTool
from FewShotSegSlicer.Scene import SliceViews
from Testing.Extension.bench import Bench, ras

VIEWS = ("Red", "Yellow", "Green")


class ToolBench(Bench):
    """The toolBench with its volume in the views, and the tool in them."""

    def __init__(self) -> None:
        super().__init__()
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        self.tool = PromptTool(self.live)
        self.tool.install()
        self.tool.mode = "positive"

    def where(self, view: str) -> tuple[int, int]:
        found = SliceViews.viewedSlice(self.volume, sliceNode(view))
        assert found is not None
        return found

    def prompt(self, view: str) -> SlicePrompt:
        return self.live.promptOn(*self.where(view))

    def shownIn(self, view: str) -> np.ndarray:
        axis, index = self.where(view)
        return self.shown(index, axis)

    def assertAnsweredIn(self, view: str) -> None:
        axis, index = self.where(view)
        self.assertAnswered(index, axis)

    def at(self, view: str, row: float, column: float) -> tuple[float, float, float]:
        """RAS of a place on the slice that a view shows."""
        axis, index = self.where(view)
        ijk = [0.0, 0.0, 0.0]
        rows, columns = (2 - a for a in range(3) if a != axis)
        ijk[rows], ijk[columns], ijk[2 - axis] = row, column, index
        return ras(*ijk)

    def offset(self, view: str, slices: int) -> None:
        """Scroll a view."""
        axis, index = self.where(view)
        SliceViews.jumpToSlice(self.volume, axis, index + slices, sliceNode(view))


def sliceNode(view: str) -> Any:
    return slicer.app.layoutManager().sliceWidget(view).mrmlSliceNode()


def pointsIn(view: str) -> list[tuple[float, ...]]:
    """Where the points that a view shows are, by the markups in the scene."""
    nodes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
        if node.GetDisplayNode().IsDisplayableInView(sliceNode(view).GetID())
    ]
    return [tuple(p) for node in nodes for p in slicer.util.arrayFromMarkupsControlPoints(node, world=True)]


def ownMarkups() -> list[Any]:
    return list(slicer.util.getNodesByClass("vtkMRMLMarkupsNode"))


def yellow(picture: np.ndarray) -> np.ndarray:
    """Rows and columns of the pixels of the outline."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return np.argwhere((red > 200) & (green > 150) & (blue < 100))
