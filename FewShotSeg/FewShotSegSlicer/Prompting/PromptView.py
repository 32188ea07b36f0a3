"""One slice view: clicks and drags in it become prompts, and the prompts of the slice it shows are drawn in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import slicer.util
import vtk

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import SliceViews

from .LiveSegmenter import LiveSegmenter
from .Prompts import Point, SlicePrompt

if TYPE_CHECKING:
    from .PromptTool import PromptTool

Slice = tuple[int, int]
Position = tuple[int, int]  # pixels from the lower left corner of the view

POSITIVE_RGB, NEGATIVE_RGB, BOX_RGB = (0.15, 0.9, 0.25), (1.0, 0.2, 0.15), (1.0, 0.85, 0.1)
POINT_SIZE = 3.0  # per cent of the view
CORNER_PX = 8  # a press that near to a corner of the box takes hold of it
SMALLEST_DRAG_PX = 4
_FIRST = 10.0  # priority of our observers: before the view's own at 0, and the Segment Editor's at 1


class PromptView:
    """Watches a view from its making until `close`."""

    def __init__(self, name: str, sliceWidget: Any, tool: PromptTool) -> None:
        self.name, self._tool, self._live = name, tool, tool.live
        self._view, self._sliceNode = sliceWidget.sliceView(), sliceWidget.mrmlSliceNode()
        self._interactor = self._view.interactor()
        self.where: Slice | None = None
        self._isPressed = False
        self._anchor: Point | None = None  # the corner of a box that stays while the opposite one is dragged
        self._started: Position = (0, 0)
        self._box: tuple[Point, Point] | None = None
        self._points = [PointsNode(self, positive=True), PointsNode(self, positive=False)]
        self._outline = Outline(self._view)
        self._sliceTag = self._sliceNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self.update())
        handlers: dict[str, Callable[[], bool]] = {
            "LeftButtonPressEvent": self._press,
            "LeftButtonDoubleClickEvent": self._pressTwice,
            "MouseMoveEvent": self._move,
            "LeftButtonReleaseEvent": self._release,
        }
        self._eventTags = {event: self._observe(event, handler) for event, handler in handlers.items()}
        self.update()

    def close(self) -> None:
        for tag in self._eventTags.values():
            self._interactor.RemoveObserver(tag)
        self._sliceNode.RemoveObserver(self._sliceTag)
        for points in self._points:
            points.close()
        self._outline.close()
        self._live.closeView(self.name)

    def _observe(self, event: str, handler: Callable[[], bool]) -> int:
        """Call the handler before the view's own; the view does not hear of an event that it returns True for."""

        def handle(_interactor: Any, _event: str) -> None:
            if handler():
                self._interactor.GetCommand(self._eventTags[event]).SetAbortFlag(1)

        return self._interactor.AddObserver(event, handle, _FIRST)

    # -------------------------------------------------------------------------------------------------------- showing

    def update(self) -> None:
        """Tell which slice is shown, and draw its prompts."""
        where = self._viewedSlice()
        if where is None:
            self._live.closeView(self.name)
        else:
            self._live.setSlice(*where, self.name)
        self.where = where
        self.draw()

    def _viewedSlice(self) -> Slice | None:
        target = self._live.target
        if target is None or not target.areNodesThere:
            return None
        try:
            return SliceViews.viewedSlice(target.volumeNode, self._sliceNode)
        except InputError:  # a volume that cannot be worked on, as whoever chose it was told
            return None

    def draw(self) -> None:
        """Draw the prompts of the slice as they are now."""
        prompt = self._live.promptOn(*self.where) if self.where is not None else SlicePrompt()
        for points in self._points:
            points.show(prompt, self._plane())
        box = self._box or prompt.box_ras
        target = self._live.target
        corners = target.boxCorners(self.where[0], box) if box and target is not None and self.where else []
        self._outline.show([self._xy(corner) for corner in corners])

    def _plane(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return a point of the view's plane, and its normal."""
        matrix = slicer.util.arrayFromVTKMatrix(self._sliceNode.GetSliceToRAS())
        return matrix[:3, 3], matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])

    def _ras(self, position: Position) -> Point:
        r, a, s, _ = self._sliceNode.GetXYToRAS().MultiplyPoint((*position, 0.0, 1.0))
        return r, a, s

    def _xy(self, point_ras: Sequence[float]) -> tuple[float, float]:
        xyFromRas = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._sliceNode.GetXYToRAS(), xyFromRas)
        x, y, *_ = xyFromRas.MultiplyPoint((*point_ras, 1.0))
        return x, y

    # --------------------------------------------------------------------------------------------------------- events

    def _press(self) -> bool:
        """A click with a point tool, or the beginning of a box; a press on a point is the point's."""
        self.update()  # a volume that was moved does not tell the view
        mode = self._tool.modeOfClick(self._interactor)
        if mode == "none" or self.where is None or any(points.isUnderMouse for points in self._points):
            return False
        self._isPressed = True
        position = self._interactor.GetEventPosition()
        if mode == "box":
            self._beginBox(position)
        else:
            with self._tool.tellingErrors():
                self._live.addPoint(*self.where, self._ras(position), mode == "positive")
        return True

    def _pressTwice(self) -> bool:
        """The second half of a double click is nothing of its own, and does not enlarge the view."""
        return self.where is not None and self._tool.modeOfClick(self._interactor) != "none"

    def _beginBox(self, position: Position) -> None:
        assert self.where is not None
        self._started, self._anchor = position, self._ras(position)
        target, box = self._live.target, self._live.promptOn(*self.where).box_ras
        if box is None or target is None:
            return
        corners = target.boxCorners(self.where[0], box)
        distances = [np.hypot(*np.subtract(self._xy(corner), position)) for corner in corners]
        nearest = int(np.argmin(distances))
        if distances[nearest] <= CORNER_PX:
            self._anchor = corners[(nearest + 2) % 4]

    def _move(self) -> bool:
        if self._anchor is None or self.where is None:
            return False
        position = self._interactor.GetEventPosition()
        if max(abs(a - b) for a, b in zip(position, self._started, strict=True)) >= SMALLEST_DRAG_PX:
            self._setBox((self._anchor, self._ras(position)), dragging=True)
        return True

    def _setBox(self, box: tuple[Point, Point], dragging: bool) -> None:
        assert self.where is not None
        try:
            self._live.setBox(*self.where, box, dragging=dragging)
        except InputError:  # not yet, or no longer, a box that holds anything
            return
        target = self._live.target
        self._box = target.boxOnSlice(*self.where, box) if target is not None and dragging else None
        self.draw()

    def _release(self) -> bool:
        wasPressed, self._isPressed = self._isPressed, False
        self._anchor = None
        if self._box is not None:
            self._setBox(self._box, dragging=False)
        return wasPressed

    # --------------------------------------------------------------------------------- what happens to a drawn point

    def movePoint(self, number: int, point_ras: Point, isLast: bool) -> None:
        if self.where is None:
            return
        try:
            self._live.movePoint(*self.where, number, point_ras, dragging=not isLast)
        except InputError:  # outside the volume: it stays where it could last be
            points = self._live.promptOn(*self.where).points_ras
            if isLast and number < len(points):
                self._live.movePoint(*self.where, number, points[number])
        if isLast:
            self.draw()

    def removePoint(self, number: int) -> None:
        if self.where is not None:
            self._live.removePoint(*self.where, number)

    def removePointUnderMouse(self) -> bool:
        """Remove the point that the mouse is on; returns whether there was one."""
        number = next((points.numberUnderMouse for points in self._points if points.isUnderMouse), None)
        if number is not None:
            self.removePoint(number)
        return number is not None

    @property
    def sliceNode(self) -> Any:
        return self._sliceNode

    @property
    def live(self) -> LiveSegmenter:
        return self._live


class PointsNode:
    """The positive or the negative points of a view, as a markups node that no one else sees and that is not saved."""

    def __init__(self, view: PromptView, positive: bool) -> None:
        self._view, self._label = view, int(positive)
        self._node: Any = None
        self._tags: list[int] = []
        self._numbers: list[int] = []  # of the points in the prompt
        self._shown: list[Point] = []
        self._isUpdating = self._isDragged = False

    def close(self) -> None:
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

    def show(self, prompt: SlicePrompt, plane: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> None:
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
        name = f"FewShotSeg {'inside' if self._label else 'outside'} {self._view.name}"
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
        display.AddViewNodeID(self._view.sliceNode.GetID())
        color = POSITIVE_RGB if self._label else NEGATIVE_RGB
        display.SetSelectedColor(*color)
        display.SetActiveColor(*(0.5 + part / 2 for part in color))
        display.SetGlyphType(display.Circle2D if self._label else display.ThickCross2D)
        display.SetGlyphScale(POINT_SIZE)
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        display.SetSnapMode(display.SnapModeUnconstrained)
        handlers = {
            node.PointStartInteractionEvent: self._onStart,
            node.PointModifiedEvent: self._onModified,
            node.PointEndInteractionEvent: self._onEnd,
            node.PointRemovedEvent: self._onRemoved,
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
                self._view.movePoint(number, tuple(position), isLast)

    def _onRemoved(self, *_: Any) -> None:
        if self._isUpdating:
            return
        left = [self._node.GetNthControlPointPositionWorld(i) for i in range(self._node.GetNumberOfControlPoints())]
        removed = [n for n, p in zip(self._numbers, self._shown, strict=True) if not _isAmong(p, left)]
        self._numbers, self._shown = [], []  # so that what is left is shown anew
        for number in reversed(removed):
            self._view.removePoint(number)


class Outline:
    """A closed line of corners in pixels of a view."""

    def __init__(self, view: Any) -> None:
        self._view, self._corners = view, [(0.0, 0.0)][:0]
        self._data = vtk.vtkPolyData()
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._data)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*BOX_RGB)
        self._actor.GetProperty().SetLineWidth(2)
        self._actor.SetLayerNumber(1)  # above the fill of segments
        self._actor.PickableOff()
        self._renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        self._renderer.AddViewProp(self._actor)

    def close(self) -> None:
        self._renderer.RemoveViewProp(self._actor)
        self._view.scheduleRender()

    def show(self, corners: list[tuple[float, float]]) -> None:
        if corners == self._corners:
            return
        self._corners = corners
        points, lines = vtk.vtkPoints(), vtk.vtkCellArray()
        if corners:
            lines.InsertNextCell(len(corners) + 1)
            for number, (x, y) in enumerate(corners):
                points.InsertNextPoint(x, y, 0.0)
                lines.InsertCellPoint(number)
            lines.InsertCellPoint(0)
        self._data.SetPoints(points)
        self._data.SetLines(lines)
        self._view.scheduleRender()


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
