"""Stand-ins for the qMRML and qSlicer widgets of WidgetTable, on PySide6 and the real MRML scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from PySide6 import QtGui, QtWidgets
from PySide6.QtCore import Property, QObject, Signal
from vtk.util.numpy_support import vtk_to_numpy

from .Widgets import listed, stored


@listed
class qMRMLWidget(QtWidgets.QWidget):
    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@listed
class qSlicerWidget(qMRMLWidget):
    pass


@listed
class qMRMLUtils(QObject):
    @staticmethod
    def vtkImageDataToQImage(image: Any, picture: QtGui.QImage) -> bool:
        """Fill a QImage from 8-bit RGB or RGBA; VTK's first row is the lowest."""
        scalars = image.GetPointData().GetScalars() if image else None
        if scalars is None or scalars.GetDataType() != vtk.VTK_UNSIGNED_CHAR:
            return False
        width, height, _ = image.GetDimensions()
        pixels = np.ascontiguousarray(vtk_to_numpy(scalars).reshape(height, width, -1)[::-1])
        formats = {3: QtGui.QImage.Format_RGB888, 4: QtGui.QImage.Format_RGBA8888}
        if pixels.shape[2] not in formats:
            return False
        lent = QtGui.QImage(pixels.data, width, height, pixels.strides[0], formats[pixels.shape[2]])
        picture.swap(lent.copy())
        return True


class Observer:
    """Observations of VTK objects that end together."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def until(self, widget: QtWidgets.QWidget) -> Observer:
        """Observe no longer than the widget lives, as Slicer's own widgets do."""
        widget.destroyed.connect(self.clear)
        return self

    def add(self, subject: Any, events: list[Any], function: Any) -> None:
        self._tags += [(subject, subject.AddObserver(event, function)) for event in events]

    def clear(self) -> None:
        for subject, tag in self._tags:
            subject.RemoveObserver(tag)
        self._tags = []


@listed
class qMRMLNodeComboBox(QtWidgets.QWidget):
    """As Slicer's, it goes to the neighbour of a node that is removed, and tells of a node anew when it was renamed."""

    _currentNodeChanged_vtkMRMLNode = Signal(object)
    _currentNodeChanged_bool = Signal(bool)
    currentNodeIDChanged = Signal(str)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeActivated = Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._observer, self._renames = Observer().until(self), Observer().until(self)
        self._nodeTypes: list[str] = []
        self._noneEnabled = False
        self._ids: list[str] = []  # of the items; "" is the item "None"
        self._names: dict[str, str] = {}
        self._current = ""
        self._attributes: dict[tuple[str, str], str | None] = {}
        self._box = QtWidgets.QComboBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.activated.connect(self._onActivated)
        self._box.setEnabled(False)

    # ---- scene
    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._observer.clear()
        self._scene = scene
        self._box.setEnabled(scene is not None)
        if scene:
            events = [scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent]
            self._observer.add(scene, events, self._onScene)
        self._refresh()

    def _onScene(self, caller: Any, event: str) -> None:
        if not self._scene.IsBatchProcessing():
            self._refresh()

    def _accepts(self, node: Any) -> bool:
        kinds = [kind for kind in self._nodeTypes if node.IsA(kind)]
        if not kinds or (node.GetHideFromEditors() and not self.showHidden):
            return False
        if not self.showChildNodeTypes and node.GetClassName() not in kinds:
            return False
        if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
            return False
        wanted = [(name, value) for (kind, name), value in self._attributes.items() if kind in kinds]
        return all(node.GetAttribute(n) is not None and v in (None, node.GetAttribute(n)) for n, v in wanted)

    def _nodes(self) -> list[Any]:
        if not self._scene:
            return []
        # Of one class the scene has a list, in the same order; most choosers are for one.
        every = self._scene.GetNodesByClass(*self._nodeTypes) if len(self._nodeTypes) == 1 else self._scene.GetNodes()
        return [
            node for node in (every.GetItemAsObject(i) for i in range(every.GetNumberOfItems())) if self._accepts(node)
        ]

    def _refresh(self) -> None:
        nodes, before = self._nodes(), self._ids
        self._ids = [""] * self._noneEnabled + [node.GetID() for node in nodes]
        self._box.clear()
        self._box.addItems([self.noneDisplay] * self._noneEnabled + [node.GetName() or "" for node in nodes])
        if self.addEnabled:
            names = (kind.removeprefix("vtkMRML").removesuffix("Node") for kind in self._nodeTypes)
            self._box.addItems([f"Create new {name}" for name in names])
        self._names = {node.GetID(): node.GetName() for node in nodes}
        self._renames.clear()
        for node in nodes:
            self._renames.add(node, ["ModifiedEvent"], self._onModified)
        self._select(self._current if self._current in self._ids else self._neighbour(before))

    def _neighbour(self, before: list[str]) -> str:
        """What is chosen when the chosen node goes: the row above it, and without None in the list never nothing."""
        row = max(before.index(self._current) - 1, 0) if self._current in before else 0
        return self._ids[min(row, len(self._ids) - 1)] if self._ids else ""

    def _onModified(self, node: Any, event: str) -> None:
        if self._names.get(node.GetID()) not in (None, node.GetName()):
            self._refresh()
            if node.GetID() == self._current:
                self._tell()

    def _select(self, nodeId: str) -> None:
        nodeId = nodeId if nodeId in self._ids else ""
        self._box.setCurrentIndex(self._ids.index(nodeId) if nodeId in self._ids else -1)
        if nodeId != self._current:
            self._current = nodeId
            self._tell()

    def _tell(self) -> None:
        self._currentNodeChanged_vtkMRMLNode.emit(self.currentNode())
        self._currentNodeChanged_bool.emit(bool(self._current))
        self.currentNodeIDChanged.emit(self._current)

    def _onActivated(self, index: int) -> None:
        """By the user."""
        if index < len(self._ids):
            self._select(self._ids[index])
            self.nodeActivated.emit(self.currentNode())
        else:
            self.addNode(self._nodeTypes[index - len(self._ids)])

    # ---- slots
    def addNode(self, kind: str = "") -> Any:
        node = self._scene.AddNewNodeByClass(kind or self._nodeTypes[0], self.baseName)
        if self.selectNodeUponCreation:
            self._select(node.GetID())
        self.nodeAdded.emit(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    def addAttribute(self, nodeType: str, name: str, value: Any = None) -> None:
        self._attributes[nodeType, name] = None if value is None else str(value)
        self._refresh()

    def removeAttribute(self, nodeType: str, name: str) -> None:
        del self._attributes[nodeType, name]
        self._refresh()

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        self._select(node if isinstance(node, str) else node.GetID() if node else "")

    def setCurrentNodeID(self, nodeId: str) -> None:
        self._select(nodeId)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    def _set(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
        self._refresh()

    nodeTypes = Property(
        "QStringList", lambda self: self._nodeTypes, lambda self, value: self._set("_nodeTypes", list(value))
    )
    noneEnabled = Property(
        bool, lambda self: self._noneEnabled, lambda self, value: self._set("_noneEnabled", bool(value))
    )
    currentNodeID = Property(str, lambda self: self._current, setCurrentNodeID)
    addEnabled = stored(bool, "addEnabled", True)
    removeEnabled = stored(bool, "removeEnabled", True)
    renameEnabled = stored(bool, "renameEnabled", False)
    editEnabled = stored(bool, "editEnabled", False)
    showHidden = stored(bool, "showHidden", False)
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True)
    hideChildNodeTypes = stored("QStringList", "hideChildNodeTypes", [])
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    noneDisplay = stored(str, "noneDisplay", "None")
    baseName = stored(str, "baseName", "")


MRML: tuple[type, ...] = (qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox, qMRMLUtils)
