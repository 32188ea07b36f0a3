"""The box of a prompt, or the line that is being drawn, in a slice view."""

from __future__ import annotations

from typing import Any

import vtk

_RGB = (1.0, 0.85, 0.1)


class Outline:
    """A line through corners in pixels of a view."""

    def __init__(self, view: Any) -> None:
        self._view, self._corners = view, [(0.0, 0.0)][:0]
        self._data = vtk.vtkPolyData()
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._data)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*_RGB)
        self._actor.GetProperty().SetLineWidth(2)
        self._actor.SetLayerNumber(1)  # above the fill of segments
        self._actor.PickableOff()
        self._renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        self._renderer.AddViewProp(self._actor)

    def close(self) -> None:
        """Take the line out of the view."""
        self._renderer.RemoveViewProp(self._actor)
        self._view.scheduleRender()

    def show(self, corners: list[tuple[float, float]], isClosed: bool = True) -> None:
        """Draw the line through corners, and back to the first if it is closed; none without any."""
        if corners == self._corners:
            return
        self._corners = corners
        points, lines = vtk.vtkPoints(), vtk.vtkCellArray()
        if corners:
            lines.InsertNextCell(len(corners) + isClosed)
            for number, (x, y) in enumerate(corners):
                points.InsertNextPoint(x, y, 0.0)
                lines.InsertCellPoint(number)
            if isClosed:
                lines.InsertCellPoint(0)
        self._data.SetPoints(points)
        self._data.SetLines(lines)
        self._view.scheduleRender()
