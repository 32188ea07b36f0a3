"""One slice view: clicks and drags in it become prompts, and the prompts of the slice it shows are drawn in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import slicer.util
import vtk

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene import SliceViews

from .LiveSegmenter import LiveSegmenter
from .Outline import Outline
from .PointsNode import Plane, PointsNode
from .Prompts import Point, Slice, SlicePrompt

Mode = Literal["none", "positive", "negative", "box"]
"""What a click in a view does; "none": what it does in Slicer."""
Position = tuple[int, int]  # pixels from the lower left corner of the view

# In pixels of Qt; on a HiDPI screen each is several pixels of the view.
CORNER_PX = 8  # a press that near to a corner of the box takes hold of it
SMALLEST_DRAG_PX = 4
_FIRST = 10.0  # priority of our observers: before the view's own at 0, and the Segment Editor's at 1


class PromptView:
    """Watches a view from its making until `close`."""

    def __init__(self, name: str, sliceWidget: Any, live: LiveSegmenter, modeOfClick: Callable[[Any], Mode]) -> None:
        """`modeOfClick(interactor)` says what a click that begins now does."""
        self.name, self._live, self._modeOfClick = name, live, modeOfClick
        self._view, self._sliceNode = sliceWidget.sliceView(), sliceWidget.mrmlSliceNode()
        self._interactor = self._view.interactor()
        self.where: Slice | None = None
        self._isPressed = False
        self._anchor: Point | None = None  # the corner of a box that stays while the opposite one is dragged
        self._started: Position = (0, 0)
        self._box: tuple[Point, Point] | None = None
        self._scribble: list[Position] = []  # from where a point was set to where the mouse is, while it is pressed
        self._isPositive = True
        self._points = [
            PointsNode(name, self._sliceNode, isPositive, onMoved=self._movePoint, onRemoved=self._removePoint)
            for isPositive in (True, False)
        ]
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
        """Watch the view no longer, and take everything out of it."""
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

    def _plane(self) -> Plane:
        """Return a point of the view's plane, and its normal."""
        matrix = slicer.util.arrayFromVTKMatrix(self._sliceNode.GetSliceToRAS())
        return matrix[:3, 3], matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])

    def _ras(self, position: Position) -> Point:
        r, a, s, _ = self._sliceNode.GetXYToRAS().MultiplyPoint((*position, 0.0, 1.0))
        return r, a, s

    def _pixelRatio(self) -> float:
        """Pixels of the view for one of Qt: 2 on many HiDPI screens. VTK's positions are in those of the view."""
        return self._view.renderWindow().GetSize()[0] / max(self._view.width, 1)

    def _xy(self, point_ras: Sequence[float]) -> tuple[float, float]:
        xyFromRas = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._sliceNode.GetXYToRAS(), xyFromRas)
        x, y, *_ = xyFromRas.MultiplyPoint((*point_ras, 1.0))
        return x, y

    # --------------------------------------------------------------------------------------------------------- events

    def _press(self) -> bool:
        """A click with a point tool, or the beginning of a box; a press on a point is the point's."""
        self.update()  # a volume that was moved does not tell the view
        mode = self._modeOfClick(self._interactor)
        if mode == "none" or self.where is None or any(points.isUnderMouse for points in self._points):
            return False
        self._isPressed = True
        position = self._interactor.GetEventPosition()
        if mode == "box":
            self._beginBox(position)
        else:
            self._started, self._scribble, self._isPositive = position, [position], mode == "positive"
            with self._live.signals.tellingErrors():
                self._live.addPoint(*self.where, self._ras(position), self._isPositive)
        return True

    def _pressTwice(self) -> bool:
        """The second half of a double click is nothing of its own, and does not enlarge the view."""
        return self.where is not None and self._modeOfClick(self._interactor) != "none"

    def _beginBox(self, position: Position) -> None:
        assert self.where is not None
        self._started, self._anchor = position, self._ras(position)
        target, box = self._live.target, self._live.promptOn(*self.where).box_ras
        if box is None or target is None:
            return
        corners = target.boxCorners(self.where[0], box)
        distances = [np.hypot(*np.subtract(self._xy(corner), position)) for corner in corners]
        nearest = int(np.argmin(distances))
        if distances[nearest] <= CORNER_PX * self._pixelRatio():
            self._anchor = corners[(nearest + 2) % 4]

    def _move(self) -> bool:
        if self.where is None or (self._anchor is None and not self._scribble):
            return False
        position = self._interactor.GetEventPosition()
        moved_px = max(abs(a - b) for a, b in zip(position, self._started, strict=True))
        isDrag = moved_px >= SMALLEST_DRAG_PX * self._pixelRatio()
        if self._anchor is not None and isDrag:
            self._setBox((self._anchor, self._ras(position)), dragging=True)
        elif self._scribble and (isDrag or len(self._scribble) > 1):
            self._scribble.append(position)
            self._outline.show([(float(x), float(y)) for x, y in self._scribble], isClosed=False)
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
        self._endScribble()
        return wasPressed

    def _endScribble(self) -> None:
        """A line that was drawn goes on from the point that was set where it began."""
        drawn, self._scribble = self._scribble, []
        if len(drawn) < 2 or self.where is None:
            return
        line = [self._ras(position) for position in drawn]
        with self._live.signals.tellingErrors():
            self._live.addScribble(*self.where, line, self._isPositive)
        self.draw()

    # --------------------------------------------------------------------------------- what happens to a drawn point

    def _movePoint(self, number: int, point_ras: Point, isLast: bool) -> None:
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

    def _removePoint(self, number: int) -> None:
        if self.where is not None:
            self._live.removePoint(*self.where, number)

    def removePointUnderMouse(self) -> bool:
        """Remove the point that the mouse is on; returns whether there was one."""
        number = next((points.numberUnderMouse for points in self._points if points.isUnderMouse), None)
        if number is not None:
            self._removePoint(number)
        return number is not None
