"""Stand-ins for the widgets that show the segments of a segmentation node."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .MrmlWidgets import Observer, qMRMLNodeComboBox, qMRMLWidget
from .Widgets import listed, stored


class _SegmentsWidget(qMRMLWidget):
    """Follows the segments of one segmentation node."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observer = Observer().until(self)

    def _follow(self, node: Any) -> None:
        self._observer.clear()
        self._node = node
        if node:
            changes = slicer.vtkSegmentation
            events = [
                changes.SegmentAdded,
                changes.SegmentRemoved,
                changes.SegmentModified,
                changes.SegmentsOrderModified,
            ]
            self._observer.add(node, [*events, node.DisplayModifiedEvent], self._onSegments)
        self._refresh()

    def _onSegments(self, caller: Any, event: str) -> None:
        self._refresh()

    def _segments(self) -> dict[str, Any]:
        """ID: segment."""
        segmentation = self._node.GetSegmentation() if self._node else None
        return {i: segmentation.GetSegment(i) for i in segmentation.GetSegmentIDs()} if segmentation else {}

    def _refresh(self) -> None:
        raise NotImplementedError


@listed
class qMRMLSegmentSelectorWidget(_SegmentsWidget):
    _currentNodeChanged_vtkMRMLNode = Signal(object)
    _currentNodeChanged_bool = Signal(bool)
    currentSegmentChanged = Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._segmentId = ""
        self._noneEnabled = False
        self._nodeBox, self._box = qMRMLNodeComboBox(), QtWidgets.QComboBox()
        self._nodeBox.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._nodeBox.addEnabled = False
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._nodeBox)
        layout.addWidget(self._box)
        self._nodeBox._currentNodeChanged_vtkMRMLNode.connect(self._onNode)
        self._box.activated.connect(lambda index: self.setCurrentSegmentID(self._ids()[index]))
        self.mrmlSceneChanged.connect(self._nodeBox.setMRMLScene)

    def _onNode(self, node: Any) -> None:
        self._follow(node)
        self._currentNodeChanged_vtkMRMLNode.emit(node)
        self._currentNodeChanged_bool.emit(node is not None)

    def _ids(self) -> list[str]:
        return [""] * self._noneEnabled + list(self._segments())

    def _refresh(self) -> None:
        self._box.clear()
        self._box.addItems(["None"] * self._noneEnabled + [s.GetName() or "" for s in self._segments().values()])
        ids = self._ids()
        self.setCurrentSegmentID(self._segmentId if self._segmentId in ids else ids[0] if ids else "")

    def currentNode(self) -> Any:
        return self._node

    def currentNodeID(self) -> str:
        return self._node.GetID() if self._node else ""

    def currentSegmentID(self) -> str:
        return self._segmentId

    def setCurrentNode(self, node: Any) -> None:
        self._nodeBox.setCurrentNode(node)

    def setCurrentNodeID(self, nodeId: str) -> None:
        self._nodeBox.setCurrentNodeID(nodeId)

    def setCurrentSegmentID(self, segmentId: str) -> None:
        ids = self._ids()
        self._box.setCurrentIndex(ids.index(segmentId) if segmentId in ids else -1)
        if segmentId != self._segmentId:
            self._segmentId = segmentId
            self.currentSegmentChanged.emit(segmentId)

    def _setNoneEnabled(self, enabled: bool) -> None:
        self._noneEnabled = bool(enabled)
        self._nodeBox.noneEnabled = enabled
        self._refresh()

    noneEnabled = Property(bool, lambda self: self._noneEnabled, _setNoneEnabled)
    horizontalLayout = stored(bool, "horizontalLayout", True)
    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not self._nodeBox.isHidden(), lambda self, value: self._nodeBox.setVisible(value)
    )


def _swatch(color: QtGui.QColor) -> QtGui.QIcon:
    """A square of a colour that a selected row does not tint."""
    pixmap, icon = QtGui.QPixmap(16, 16), QtGui.QIcon()
    pixmap.fill(color)
    for mode in (QtGui.QIcon.Normal, QtGui.QIcon.Selected):
        icon.addPixmap(pixmap, mode)
    return icon


_COLUMNS = ("visibility", "color", "opacity", "name", "status", "layer")


def _columnProperty(column: str) -> Any:
    number = _COLUMNS.index(column)
    return Property(
        bool,
        lambda self: not self._table.isColumnHidden(number),
        lambda self, visible: self._table.setColumnHidden(number, not visible),
    )


@listed
class qMRMLSegmentsTableView(_SegmentsWidget):
    selectionChanged = Signal(QtCore.QItemSelection, QtCore.QItemSelection)
    segmentAboutToBeModified = Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._table = table = QtWidgets.QTableWidget(0, len(_COLUMNS))
        table.setHorizontalHeaderLabels(["", "", "Opacity", "Name", "Status", "Layer"])
        table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectRows)
        table.verticalHeader().hide()
        header = table.horizontalHeader()  # not kept: Python would hold the wrapper, not the header
        header.setMinimumSectionSize(24)
        header.setSectionResizeMode(QtWidgets.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(_COLUMNS.index("name"), QtWidgets.QHeaderView.Stretch)
        table.setColumnHidden(_COLUMNS.index("layer"), True)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(table)
        table.itemSelectionChanged.connect(self._onSelection)
        table.cellClicked.connect(self._onClick)
        table.itemChanged.connect(self._onEdited)

    # ---- table and segmentation
    def _refresh(self) -> None:
        selected = self.selectedSegmentIDs()
        segments = self._segments()
        self._table.blockSignals(True)
        self._table.setRowCount(len(segments))
        for row, (segmentId, segment) in enumerate(segments.items()):
            for column, item in enumerate(self._items(segmentId, segment)):
                item.setData(QtCore.Qt.UserRole, segmentId)
                if self.readOnly or _COLUMNS[column] != "name":
                    item.setFlags(item.flags() & ~QtCore.Qt.ItemIsEditable)
                self._table.setItem(row, column, item)
        self._table.blockSignals(False)
        self.setSelectedSegmentIDs([i for i in selected if i in segments])

    def _items(self, segmentId: str, segment: Any) -> list[QtWidgets.QTableWidgetItem]:
        display = self._node.GetDisplayNode()
        visible = display is None or display.GetSegmentVisibility(segmentId)
        opacity = 1.0 if display is None else display.GetSegmentOpacity2DFill(segmentId)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        status = logic.GetSegmentStatusAsHumanReadableString(logic.GetSegmentStatus(segment))
        texts = ("\N{BULLET}" if visible else "", "", f"{opacity:.2f}", segment.GetName() or "", status, "")
        items = [QtWidgets.QTableWidgetItem(text) for text in texts]
        items[_COLUMNS.index("color")].setIcon(_swatch(QtGui.QColor.fromRgbF(*segment.GetColor())))
        return items

    def _onClick(self, row: int, column: int) -> None:
        display = self._node.GetDisplayNode()
        if _COLUMNS[column] == "visibility" and display and not self.readOnly:
            segmentId = self.segmentIDForRow(row)
            display.SetSegmentVisibility(segmentId, not display.GetSegmentVisibility(segmentId))
            self._refresh()

    def _onEdited(self, item: QtWidgets.QTableWidgetItem) -> None:
        segmentId = item.data(QtCore.Qt.UserRole)
        self.segmentAboutToBeModified.emit(segmentId)
        self._segments()[segmentId].SetName(item.text())

    def _onSelection(self) -> None:
        self.selectionChanged.emit(QtCore.QItemSelection(), QtCore.QItemSelection())

    # ---- slots
    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._follow(node)

    def displayedSegmentIDs(self) -> tuple[str, ...]:
        return tuple(self._segments())

    def segmentIDForRow(self, row: int) -> str:
        return self._table.item(row, 0).data(QtCore.Qt.UserRole)

    def rowForSegmentID(self, segmentId: str) -> int:
        return list(self._segments()).index(segmentId)

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        rows = sorted(index.row() for index in self._table.selectionModel().selectedRows())
        return tuple(self.segmentIDForRow(row) for row in rows)

    def setSelectedSegmentIDs(self, segmentIds: Any) -> None:
        if set(segmentIds) == set(self.selectedSegmentIDs()):
            return
        self._table.blockSignals(True)
        self._table.clearSelection()
        model, flags = self._table.selectionModel(), QtCore.QItemSelectionModel
        for row in (self.rowForSegmentID(segmentId) for segmentId in segmentIds):
            model.select(self._table.model().index(row, 0), flags.Select | flags.Rows)
        self._table.blockSignals(False)
        self._onSelection()

    def clearSelection(self) -> None:
        self.setSelectedSegmentIDs(())

    segmentCount = Property(int, lambda self: len(self._segments()))
    selectionMode = Property(
        int,
        lambda self: QtWidgets.QTableWidget.selectionMode(self._table).value,
        lambda self, mode: self._table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode(mode)),
    )
    headerVisible = Property(
        bool,
        lambda self: not self._table.horizontalHeader().isHidden(),
        lambda self, value: self._table.horizontalHeader().setVisible(value),
    )
    visibilityColumnVisible = _columnProperty("visibility")
    colorColumnVisible = _columnProperty("color")
    opacityColumnVisible = _columnProperty("opacity")
    statusColumnVisible = _columnProperty("status")
    layerColumnVisible = _columnProperty("layer")
    readOnly = stored(bool, "readOnly", False)
    filterBarVisible = stored(bool, "filterBarVisible", False)
    jumpToSelectedSegmentEnabled = stored(bool, "jumpToSelectedSegmentEnabled", False)


SEGMENTS: tuple[type, ...] = (qMRMLSegmentSelectorWidget, qMRMLSegmentsTableView)
