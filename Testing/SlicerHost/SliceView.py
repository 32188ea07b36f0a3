"""Slice views: Slicer's own slice logic, displayable managers and interactor, drawn in a Qt widget."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtk.util.numpy_support import vtk_to_numpy

from .Widgets import listed

MANAGERS = (
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
)
COLORS = {"Red": "#f34a4a", "Yellow": "#edd54c", "Green": "#6eb04b"}
ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
OTHER_COLOR, OTHER_ORIENTATION = "#8c8c8c", "Axial"
OTHER_VIEWS = ("Slice4", "Slice5", "Slice6")  # the lower row of "three over three"
_BUTTONS = {QtCore.Qt.LeftButton: "Left", QtCore.Qt.RightButton: "Right", QtCore.Qt.MiddleButton: "Middle"}
_KEYS = {"Esc": "Escape", "Del": "Delete", "Backspace": "BackSpace", " ": "space"}  # VTK has them by X11's names


@listed
class qMRMLSliceView(QtWidgets.QWidget):
    """A VTK window rendered off screen whose picture is painted here; mouse and key events go to its interactor."""

    def __init__(self, name: str, applicationLogic: Any, scene: Any) -> None:
        super().__init__()
        self.setObjectName("qMRMLSliceView" + name)
        self.setMouseTracking(True)
        self.setFocusPolicy(QtCore.Qt.WheelFocus)
        self.setMinimumSize(120, 120)
        self._picture = QtGui.QImage()
        self._pixels: Any = None
        self._paused, self._missed = 0, False
        self._pixelRatio = self.devicePixelRatioF()
        self._createWindow()
        self._createLogic(name, applicationLogic, scene)
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._renderUnlessPaused)
        self._managers.AddObserver(vtk.vtkCommand.UpdateEvent, lambda *_: self.scheduleRender())
        self._logic.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self.scheduleRender())

    def _createWindow(self) -> None:
        self._renderer, overlay = vtk.vtkRenderer(), vtk.vtkRenderer()
        overlay.SetLayer(1)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)  # without a graphics card, three times as fast
        self._window.SetNumberOfLayers(2)
        for renderer in (self._renderer, overlay):
            renderer.GetActiveCamera().ParallelProjectionOn()
            self._window.AddRenderer(renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._interactor.Initialize()
        mapper = vtk.vtkImageMapper()  # the slice image is RGBA of 0..255
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(mapper)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddViewProp(self._image)

    def _createLogic(self, name: str, applicationLogic: Any, scene: Any) -> None:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        for manager in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._managers = slicer.vtkMRMLDisplayableManagerGroup()
        self._managers.SetRenderer(self._renderer)
        self._managers.Initialize(factory, self._renderer)
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(applicationLogic)
        applicationLogic.GetSliceLogics().AddItem(self._logic)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetSliceLogic(self._logic)
        self._style.SetDisplayableManagers(self._managers)
        self._logic.SetMRMLScene(scene)
        self._node = self._logic.AddSliceNode(name)
        self._managers.SetMRMLDisplayableNode(self._node)
        self._style.SetInteractor(self._interactor)

    # ---- what Slicer's class offers
    def mrmlSliceNode(self) -> Any:
        return self._node

    def interactor(self) -> Any:
        return self._interactor

    def interactorStyle(self) -> Any:
        return self._style

    def renderWindow(self) -> Any:
        return self._window

    def getDisplayableManagers(self, collection: Any) -> None:
        for i in range(self._managers.GetDisplayableManagerCount()):
            collection.AddItem(self._managers.GetNthDisplayableManager(i))

    def convertDeviceToXYZ(self, xy: Any) -> tuple[float, ...]:
        height = self._window.GetSize()[1]
        return (float(xy[0]), float(height - 1 - xy[1]), 0.0)

    def _setPixelRatio(self, ratio: float) -> None:
        """As if the view were moved to a screen with so many pixels for one of Qt."""
        self._pixelRatio = ratio
        self._resize(self.size)

    def convertRASToXYZ(self, ras: Any) -> tuple[float, ...]:
        xyFromRas = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._node.GetXYToRAS(), xyFromRas)
        return tuple(xyFromRas.MultiplyPoint((*ras, 1.0))[:3])

    def convertXYZToRAS(self, xyz: Any) -> tuple[float, ...]:
        return tuple(self._node.GetXYToRAS().MultiplyPoint((*xyz, 1.0))[:3])

    def setViewCursor(self, cursor: QtGui.QCursor) -> None:
        self.setCursor(cursor)

    def unsetViewCursor(self) -> None:
        self.unsetCursor()

    def scheduleRender(self) -> None:
        if not self._timer.isActive():
            self._timer.start(15)

    def _renderUnlessPaused(self) -> None:
        if self._paused:
            self._missed = True
        else:
            self.forceRender()

    def _pause(self, paused: bool) -> None:
        self._paused += 1 if paused else -1
        if self._missed and not self._paused:
            self._missed = False
            self.scheduleRender()

    def forceRender(self) -> None:
        connection = self._logic.GetImageDataConnection()
        self._image.GetMapper().SetInputConnection(connection)
        self._image.SetVisibility(connection is not None)
        self._window.Render()
        width, height = self._window.GetSize()
        rgba = vtk.vtkUnsignedCharArray()
        self._window.GetRGBACharPixelData(0, 0, width - 1, height - 1, 0, rgba)
        self._pixels = np.ascontiguousarray(vtk_to_numpy(rgba).reshape(height, width, 4)[::-1])
        self._pixels[..., 3] = 255
        self._picture = QtGui.QImage(self._pixels.data, width, height, 4 * width, QtGui.QImage.Format_RGBA8888)
        self._picture.setDevicePixelRatio(self._pixelRatio)
        self.update()

    # ---- Qt
    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        self._resize(event.size())

    def _resize(self, size: QtCore.QSize) -> None:
        width, height = (round(self._pixelRatio * side) for side in size.toTuple())
        self._window.SetSize(width, height)
        self._interactor.UpdateSize(width, height)
        self._logic.ResizeSliceNode(width, height)
        self.scheduleRender()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        if self._picture.isNull():
            self.forceRender()
        QtGui.QPainter(self).drawImage(0, 0, self._picture)

    def _send(self, event: QtGui.QSinglePointEvent, name: str) -> None:
        modifiers, point = event.modifiers(), event.position()
        control, shift = (bool(modifiers & m) for m in (QtCore.Qt.ControlModifier, QtCore.Qt.ShiftModifier))
        x, y = (int(self._pixelRatio * part) for part in (point.x(), point.y()))
        self._interactor.SetEventInformation(x, self._window.GetSize()[1] - 1 - y, control, shift, "\0", 0, None)
        self._interactor.InvokeEvent(name)

    def enterEvent(self, event: QtGui.QEnterEvent) -> None:
        self._send(event, "EnterEvent")

    def leaveEvent(self, event: QtCore.QEvent) -> None:
        self._interactor.InvokeEvent("LeaveEvent")

    def mouseMoveEvent(self, event: QtGui.QMouseEvent) -> None:
        self._send(event, "MouseMoveEvent")

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        self._send(event, f"{_BUTTONS[event.button()]}ButtonPressEvent")

    def mouseReleaseEvent(self, event: QtGui.QMouseEvent) -> None:
        self._send(event, f"{_BUTTONS[event.button()]}ButtonReleaseEvent")

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        self._sendKey(event, "KeyPressEvent")
        self._interactor.InvokeEvent("CharEvent")

    def keyReleaseEvent(self, event: QtGui.QKeyEvent) -> None:
        self._sendKey(event, "KeyReleaseEvent")

    def _sendKey(self, event: QtGui.QKeyEvent, name: str) -> None:
        modifiers, text = event.modifiers(), event.text()
        control, shift = (bool(modifiers & m) for m in (QtCore.Qt.ControlModifier, QtCore.Qt.ShiftModifier))
        symbol = text if text.isprintable() and text else QtGui.QKeySequence(event.key()).toString()
        self._interactor.SetKeyEventInformation(control, shift, text[:1] or "\0", 0, _KEYS.get(symbol, symbol))
        self._interactor.InvokeEvent(name)

    def wheelEvent(self, event: QtGui.QWheelEvent) -> None:
        self._send(event, "MouseWheelForwardEvent" if event.angleDelta().y() > 0 else "MouseWheelBackwardEvent")


class _SliceBar(QtWidgets.QWidget):
    """The coloured bar on top of a view: its letter, a slider and the offset."""

    def __init__(self, name: str, logic: Any) -> None:
        super().__init__()
        self._logic = logic
        self._slider, self._offset = QtWidgets.QSlider(QtCore.Qt.Horizontal), QtWidgets.QLabel()
        letter = QtWidgets.QLabel(name[0])
        letter.setAlignment(QtCore.Qt.AlignCenter)
        letter.setFixedWidth(24)
        letter.setStyleSheet("font-weight: bold; background: rgba(0, 0, 0, 40);")
        self._offset.setMinimumWidth(84)
        self._offset.setAlignment(QtCore.Qt.AlignRight | QtCore.Qt.AlignVCenter)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 6, 0)
        for part, stretch in ((letter, 0), (self._slider, 1), (self._offset, 0)):
            row.addWidget(part, stretch)
        self.setFixedHeight(24)
        self.setAttribute(QtCore.Qt.WA_StyledBackground)
        self.setStyleSheet(f"background: {COLORS.get(name, OTHER_COLOR)}; color: #202020;")
        self._slider.valueChanged.connect(lambda tick: self._logic.SetSliceOffset(tick / 100))
        logic.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._refresh())

    def _refresh(self) -> None:
        bounds, offset = [0.0] * 6, self._logic.GetSliceOffset()
        self._logic.GetLowestVolumeSliceBounds(bounds)
        self._slider.blockSignals(True)
        self._slider.setRange(round(100 * bounds[4]), round(100 * bounds[5]))
        self._slider.setValue(round(100 * offset))
        self._slider.blockSignals(False)
        toRAS = self._logic.GetSliceNode().GetSliceToRAS()
        axis = "RAS"[max(range(3), key=lambda row: abs(toRAS.GetElement(row, 2)))]
        self._offset.setText(f"{axis}: {offset:.1f} mm")


@listed
class qMRMLSliceWidget(QtWidgets.QWidget):
    """One view with its bar."""

    def __init__(self, name: str, applicationLogic: Any, scene: Any) -> None:
        super().__init__()
        self.setObjectName("qMRMLSliceWidget" + name)
        self._view = qMRMLSliceView(name, applicationLogic, scene)
        self._view._node.SetLayoutLabel(name[0])
        self._view._node.SetOrientation(ORIENTATIONS.get(name, OTHER_ORIENTATION))
        self._bar = _SliceBar(name, self._view._logic)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar)
        column.addWidget(self._view, 1)

    def sliceView(self) -> qMRMLSliceView:
        return self._view

    def sliceController(self) -> _SliceBar:
        return self._bar

    def sliceLogic(self) -> Any:
        return self._view._logic

    def mrmlSliceNode(self) -> Any:
        return self._view._node

    def mrmlSliceCompositeNode(self) -> Any:
        return self._view._logic.GetSliceCompositeNode()

    def interactorStyle(self) -> Any:
        return self._view._style

    def viewWidget(self) -> qMRMLSliceView:
        return self._view

    def fitSliceToBackground(self) -> None:
        self._view._logic.FitSliceToBackground()

    def setSliceOrientation(self, orientation: str) -> None:
        self._view._node.SetOrientation(orientation)

    sliceOrientation = QtCore.Property(
        str, lambda self: self._view._node.GetOrientation(), lambda self, value: self.setSliceOrientation(value)
    )


class LayoutManager(QtCore.QObject):
    """slicer.app.layoutManager(): three slice views, six in the layout "three over three", no 3-D view."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, applicationLogic: Any, scene: Any) -> None:
        super().__init__()
        self._applicationLogic, self._scene = applicationLogic, scene
        self._layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        self._logics = applicationLogic.GetSliceLogics()
        self._widgets = {name: qMRMLSliceWidget(name, applicationLogic, scene) for name in COLORS}
        self.threeDViewCount = 0

    def sliceWidget(self, name: str) -> qMRMLSliceWidget | None:
        return self._widgets.get(name)

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._widgets)

    layout = QtCore.Property(int, lambda self: self._layout)

    def setLayout(self, layout: int) -> None:
        """Slicer keeps views that a layout does not show; here they go, so that no test meets those of another."""
        isLarge = layout == slicer.vtkMRMLLayoutNode.SlicerLayoutThreeOverThreeView
        for name in OTHER_VIEWS:
            if isLarge and name not in self._widgets:
                self._widgets[name] = qMRMLSliceWidget(name, self._applicationLogic, self._scene)
                self._widgets[name].resize(300, 300)
            elif not isLarge and name in self._widgets:
                self._discard(self._widgets.pop(name))
        self._layout = layout
        self.layoutChanged.emit(layout)

    def _discard(self, widget: qMRMLSliceWidget) -> None:
        self._logics.RemoveItem(widget.sliceLogic())
        for node in (widget.mrmlSliceCompositeNode(), widget.mrmlSliceNode()):
            self._scene.RemoveNode(node)
        widget.deleteLater()

    def mrmlSliceLogics(self) -> Any:
        return self._logics

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.sliceLogic().FitSliceToBackground()

    def setRenderPaused(self, paused: bool) -> None:
        for widget in self._widgets.values():
            widget.sliceView()._pause(paused)
