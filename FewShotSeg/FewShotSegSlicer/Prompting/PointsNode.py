"""The points of a prompt in one slice view: drawn, dragged and removed as markups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

from .Prompts import Point, SlicePrompt

Plane = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # one of its points, and its normal, in RAS

_POSITIVE_RGB, _NEGATIVE_RGB = (0.15, 0.9, 0.25), (1.0, 0.2, 0.15)
_SIZE = 3.0  # per cent of the view


class PointsNode:
    """The positive or the negative points of a view, as a markups node that no one else sees and that is not saved."""

    def __init__(
        self,
        viewName: str,
        sliceNode: Any,
        isPositive: bool,
        *,
        onMoved: Callable[[int, Point, bool], Any],
        onRemoved: Callable[[int], Any],
    ) -> None:
        """What the user does to a point, by its number in the prompt, is told: onMoved(number, point_ras, whether the
        drag has ended) and onRemoved(number)."""
        self._viewName, self._sliceNode, self._label = viewName, sliceNode, int(isPositive)
        self._onMoved, self._onRemoved = onMoved, onRemoved
        self._node: Any = None
        self._tags: list[int] = []
        self._numbers: list[int] = []  # of the points in the prompt
        self._shown: list[Point] = []
        self._isUpdating = self._isDragged = False

    def close(self) -> None:
        """Take the points out of the scene."""
        if self._node is not None:
            for tag in self._tags:
                self._node.RemoveObserver(tag)
            if self._node.GetScene() is not None:  # it goes with a scene that is closed
                slicer.mrmlScene.RemoveNode(self._node)
        self._node, self._tags, self._numbers, self._shown = None, [], [], []

    @property
    def isUnderMouse(self) -> bool:
        """Whether the mouse is on one of the points: then a press takes hold of it."""
        return self.numberUnderMouse is not None

    @property
    def numberUnderMouse(self) -> int | None:
        """The number in the prompt of the point that the mouse is on."""
        if self._node is None or self._node.GetScene() is None:
            return None
        display = self._node.GetDisplayNode()
        if display.GetActiveComponentType() != display.ComponentControlPoint:
            return None
        index = display.GetActiveComponentIndex()
        return self._numbers[index] if 0 <= index < len(self._numbers) else None

    def show(self, prompt: SlicePrompt, plane: Plane) -> None:
        """Show the prompt's points of this kind, each at its foot on the view's plane."""
        if self._isDragged:
            return
        numbers = [number for number, label in enumerate(prompt.labels) if label == self._label]
        points = [_onPlane(prompt.points_ras[number], *plane) for number in numbers]
        isGone = self._node is not None and self._node.GetScene() is None  # the scene was closed
        if isGone:
            self.close()
        if (numbers, points) == (self._numbers, self._shown):
            return
        if self._node is None:
            self._create()
        self._isUpdating = True
        with slicer.util.NodeModify(self._node):
            self._node.RemoveAllControlPoints()
            for point in points:
                self._node.AddControlPointWorld(vtk.vtkVector3d(point))
        self._isUpdating = False
        self._numbers, self._shown = numbers, points

    def _create(self) -> None:
        name = f"FewShotSeg {'inside' if self._label else 'outside'} {self._viewName}"
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLMarkupsFiducialNode")
        node.UnRegister(None)
        node.SetName(name)
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetUndoEnabled(False)
        with _keepingPlaceNode():
            self._node = slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.AddViewNodeID(self._sliceNode.GetID())
        color = _POSITIVE_RGB if self._label else _NEGATIVE_RGB
        display.SetSelectedColor(*color)
        display.SetActiveColor(*(0.5 + part / 2 for part in color))
        display.SetGlyphType(display.Circle2D if self._label else display.ThickCross2D)
        display.SetGlyphScale(_SIZE)
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        display.SetSnapMode(display.SnapModeUnconstrained)
        handlers = {
            node.PointStartInteractionEvent: self._onStart,
            node.PointModifiedEvent: self._onModified,
            node.PointEndInteractionEvent: self._onEnd,
            node.PointRemovedEvent: self._onPointRemoved,
        }
        self._tags = [node.AddObserver(event, handler) for event, handler in handlers.items()]

    def _onStart(self, *_: Any) -> None:
        self._isDragged = True

    def _onModified(self, *_: Any) -> None:
        if self._isDragged and not self._isUpdating:
            self._tellMoved(isLast=False)

    def _onEnd(self, *_: Any) -> None:
        self._isDragged = False
        self._tellMoved(isLast=True)

    def _tellMoved(self, isLast: bool) -> None:
        positions = [
            self._node.GetNthControlPointPositionWorld(i) for i in range(self._node.GetNumberOfControlPoints())
        ]
        for number, position, shown in zip(self._numbers, positions, self._shown, strict=True):
            if not np.allclose(position, shown, atol=1e-6):
                self._onMoved(number, tuple(position), isLast)

    def _onPointRemoved(self, *_: Any) -> None:
        if self._isUpdating:
            return
        left = [self._node.GetNthControlPointPositionWorld(i) for i in range(self._node.GetNumberOfControlPoints())]
        removed = [n for n, p in zip(self._numbers, self._shown, strict=True) if not _isAmong(p, left)]
        self._numbers, self._shown = [], []  # so that what is left is shown anew
        for number in reversed(removed):
            self._onRemoved(number)


@contextmanager
def _keepingPlaceNode() -> Iterator[None]:
    """Slicer takes a new markups node for the one that is placed into next, which ours is not."""
    selection = slicer.app.applicationLogic().GetSelectionNode()
    before = selection.GetActivePlaceNodeID(), selection.GetActivePlaceNodeClassName()
    yield
    selection.SetActivePlaceNodeID(before[0])
    selection.SetActivePlaceNodeClassName(before[1])


def _onPlane(point: Point, origin: np.ndarray[Any, Any], normal: np.ndarray[Any, Any]) -> Point:
    r, a, s = (np.array(point) + ((origin - point) @ normal) * normal).tolist()
    return r, a, s


def _isAmong(point: Point, others: Sequence[Sequence[float]]) -> bool:
    return any(np.allclose(point, other, atol=1e-6) for other in others)
