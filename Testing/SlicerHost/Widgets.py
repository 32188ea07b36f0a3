"""Stand-ins for the CTK widgets of WidgetTable, on PySide6."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, QObject, Signal

from .WidgetTable import WIDGETS

read = QObject.property


def listed(cls: type) -> type:
    """Check a stand-in against its row of the table, and add the slot setX for each property X that has one."""
    api = WIDGETS[cls.__name__]
    for name in api.properties.split():
        setter = "set" + name[0].upper() + name[1:]
        if setter in api.slots.split() and not hasattr(cls, setter):
            setattr(cls, setter, lambda self, value, name=name: setattr(self, name, value))
    for name, value in api.constants.items():
        setattr(cls, name, value)
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    own = {name for name in vars(cls) if not name.startswith("_")} - inherited - {"staticMetaObject"}
    if own - api.names or api.names - {*dir(cls)}:
        raise TypeError(f"{cls.__name__} differs from WidgetTable: {own ^ (api.names - inherited)}")
    return cls


def stored(kind: Any, name: str, default: Any) -> Any:
    """A Qt property that is only remembered."""

    def write(self: Any, value: Any) -> None:
        self.__dict__["_" + name] = value

    return Property(kind, lambda self: self.__dict__.get("_" + name, default), write)


def forwarded(kind: Any, name: str, part: str) -> Any:
    """A Qt property that is one of the child widget `part`."""

    def write(self: Any, value: Any) -> None:
        QObject.setProperty(self.__dict__[part], name, value)

    return Property(kind, lambda self: read(self.__dict__[part], name), write)


class _Collapse:
    """Hides the children of a widget, and shows again those that were not hidden before."""

    def __init__(self, owner: QtWidgets.QWidget) -> None:
        self.owner = owner
        self.hidden: list[QtWidgets.QWidget] = []

    def __call__(self, collapsed: bool, height: int) -> None:
        if collapsed:
            for child in QObject.findChildren(self.owner, QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
                self.hide(child)
        else:
            for child in self.hidden:
                child.show()
            self.hidden = []
        self.owner.setMaximumHeight(height if collapsed else 16777215)

    def hide(self, child: QObject) -> None:
        if isinstance(child, QtWidgets.QWidget) and not child.isHidden():
            child.hide()
            self.hidden.append(child)


def _drawArrow(painter: QtWidgets.QStylePainter, owner: QtWidgets.QWidget, collapsed: bool, rectangle: Any) -> None:
    arrow = QtWidgets.QStyleOption()
    arrow.initFrom(owner)
    arrow.rect = rectangle
    style = QtWidgets.QStyle
    painter.drawPrimitive(style.PE_IndicatorArrowRight if collapsed else style.PE_IndicatorArrowDown, arrow)


@listed
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    contentsCollapsed = Signal(bool)
    _barHeight = 24

    def __init__(self, text: str | QtWidgets.QWidget | None = "", parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent if isinstance(text, str) else text)
        self._collapse = _Collapse(self)
        if isinstance(text, str):
            self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self._barHeight + 2, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Preferred)
        self.toggled.connect(self._onToggled)

    def _onToggled(self, expanded: bool) -> None:
        self._collapse(not expanded, self._barHeight)
        self.contentsCollapsed.emit(not expanded)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        if event.polished() and self.collapsed:
            self._collapse.hide(event.child())

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < self._barHeight

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, read(self, "width"), self._barHeight)
        painter.drawControl(QtWidgets.QStyle.CE_PushButtonBevel, option)
        _drawArrow(painter, self, self.collapsed, QtCore.QRect(6, 7, 10, 10))
        text = read(self, "text").replace("&&", "&")
        painter.drawText(option.rect.adjusted(22, 0, 0, 0), QtCore.Qt.AlignVCenter, text)

    collapsed = Property(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))
    collapsedHeight = stored(int, "collapsedHeight", 10)
    contentsFrameShape = stored(int, "contentsFrameShape", 0)
    contentsLineWidth = stored(int, "contentsLineWidth", 1)


@listed
class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    def __init__(self, title: str | QtWidgets.QWidget | None = "", parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent if isinstance(title, str) else title)
        self._collapse = _Collapse(self)
        if isinstance(title, str):
            self.setTitle(title)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._onToggled)

    def _onToggled(self, expanded: bool) -> None:
        self._collapse(not expanded, self.fontMetrics().height() + 8)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        if event.polished() and self.collapsed:
            self._collapse.hide(event.child())

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionGroupBox()
        self.initStyleOption(option)
        style, kind = QtWidgets.QStyle, QtWidgets.QStyle.CC_GroupBox
        arrow, title = (
            self.style().subControlRect(kind, option, part, self)
            for part in (style.SC_GroupBoxCheckBox, style.SC_GroupBoxLabel)
        )
        option.subControls = style.SC_GroupBoxFrame
        if not self.collapsed:
            painter.drawComplexControl(kind, option)
        _drawArrow(painter, self, self.collapsed, arrow)
        painter.drawText(title, QtCore.Qt.AlignVCenter, read(self, "title"))

    collapsed = Property(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))
    collapsedHeight = stored(int, "collapsedHeight", 14)


@listed
class ctkDoubleSpinBox(QtWidgets.QWidget):
    _valueChanged_double = Signal(float)
    _valueChanged_QString = Signal(str)
    editingFinished = Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._spin = QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._spin)
        self._spin.valueChanged.connect(self._valueChanged_double)
        self._spin.textChanged.connect(self._valueChanged_QString)
        self._spin.editingFinished.connect(self.editingFinished)

    def stepUp(self) -> None:
        self._spin.stepUp()

    def stepDown(self) -> None:
        self._spin.stepDown()

    value = forwarded(float, "value", "_spin")
    minimum = forwarded(float, "minimum", "_spin")
    maximum = forwarded(float, "maximum", "_spin")
    singleStep = forwarded(float, "singleStep", "_spin")
    decimals = forwarded(int, "decimals", "_spin")
    prefix = forwarded(str, "prefix", "_spin")
    suffix = forwarded(str, "suffix", "_spin")
    readOnly = forwarded(bool, "readOnly", "_spin")


@listed
class ctkSliderWidget(QtWidgets.QWidget):
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    _ticks = 10000

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._spin = QtWidgets.QSlider(QtCore.Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        self._slider.setRange(0, self._ticks)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._spin.valueChanged.connect(self._onSpin)
        self._slider.valueChanged.connect(self._onSlider)

    def _range(self) -> tuple[float, float]:
        return read(self._spin, "minimum"), read(self._spin, "maximum")

    def _showOnSlider(self) -> None:
        low, high = self._range()
        self._slider.blockSignals(True)
        self._slider.setValue(round(self._ticks * (read(self._spin, "value") - low) / ((high - low) or 1)))
        self._slider.blockSignals(False)

    def _onSpin(self, value: float) -> None:
        self._showOnSlider()
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _onSlider(self, tick: int) -> None:
        low, high = self._range()
        self._spin.setValue(low + (high - low) * tick / self._ticks)

    def _limit(self, name: str, value: float) -> None:
        QObject.setProperty(self._spin, name, value)
        self._showOnSlider()

    def reset(self) -> None:
        self._spin.setValue(0)

    value = forwarded(float, "value", "_spin")
    minimum = Property(float, lambda self: self._range()[0], lambda self, value: self._limit("minimum", value))
    maximum = Property(float, lambda self: self._range()[1], lambda self, value: self._limit("maximum", value))
    singleStep = forwarded(float, "singleStep", "_spin")
    decimals = forwarded(int, "decimals", "_spin")
    prefix = forwarded(str, "prefix", "_spin")
    suffix = forwarded(str, "suffix", "_spin")
    pageStep = stored(float, "pageStep", 10.0)
    tracking = stored(bool, "tracking", True)
    spinBoxVisible = Property(
        bool, lambda self: not self._spin.isHidden(), lambda self, value: self._spin.setVisible(value)
    )


@listed
class ctkComboBox(QtWidgets.QComboBox):
    defaultText = stored(str, "defaultText", "")

    def _selectData(self, data: str) -> None:
        self.setCurrentIndex(self.findData(data))

    currentUserDataAsString = Property(str, lambda self: str(read(self, "currentData") or ""), _selectData)


@listed
class ctkPathLineEdit(QtWidgets.QWidget):
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box, self._button = QtWidgets.QComboBox(), QtWidgets.QToolButton()
        self._box.setEditable(True)
        self._button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box, 1)
        layout.addWidget(self._button)
        self._box.editTextChanged.connect(self.currentPathChanged)
        self._button.clicked.connect(self.browse)

    def comboBox(self) -> QtWidgets.QComboBox:
        return self._box

    def browse(self) -> None:
        path = QtWidgets.QFileDialog.getOpenFileName(self)
        if path:
            self._box.setEditText(path)

    def addCurrentPathToHistory(self) -> None:
        """Nothing: the host keeps no history."""

    retrieveHistory = addCurrentPathToHistory

    currentPath = Property(str, lambda self: read(self._box, "currentText"), lambda self, v: self._box.setEditText(v))
    filters = stored(int, "filters", 0x0F)
    nameFilters = stored("QStringList", "nameFilters", [])
    label = stored(str, "label", "")
    settingKey = stored(str, "settingKey", "")
    showBrowseButton = stored(bool, "showBrowseButton", True)
    showHistoryButton = stored(bool, "showHistoryButton", True)
    sizeAdjustPolicy = stored(int, "sizeAdjustPolicy", 2)
    minimumContentsLength = stored(int, "minimumContentsLength", 0)


@listed
class ctkMessageBox(QtWidgets.QMessageBox):
    dontShowAgainVisible = stored(bool, "dontShowAgainVisible", False)
    dontShowAgain = stored(bool, "dontShowAgain", False)
    dontShowAgainSettingsKey = stored(str, "dontShowAgainSettingsKey", "")


CTK: tuple[type, ...] = (
    ctkCollapsibleButton,
    ctkCollapsibleGroupBox,
    ctkComboBox,
    ctkDoubleSpinBox,
    ctkMessageBox,
    ctkPathLineEdit,
    ctkSliderWidget,
)
