"""Loads .ui files as Slicer does, and refuses widgets, properties and connections that Slicer would not know."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from .PythonQt import connect
from .WidgetTable import WIDGETS


def uiLoaderClass(customWidgets: tuple[type, ...]) -> type:
    """A QUiLoader that can make these widgets."""

    class QUiLoader(QtUiTools.QUiLoader):
        def __init__(self, parent: QtCore.QObject | None = None) -> None:
            super().__init__(parent)
            for widget in customWidgets:
                self.registerCustomWidget(widget)

        def load(self, file: QtCore.QFile, parentWidget: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
            root, connections, content = _parsed(bytes(QtCore.QFile.readAll(file).data()))
            buffer = QtCore.QBuffer()
            buffer.setData(content)
            buffer.open(QtCore.QIODevice.ReadOnly)
            widget = super().load(buffer, parentWidget)
            if widget is None:
                raise RuntimeError(f"{QtCore.QFile.fileName(file)}: {self.errorString()}")
            _checkWidgets(root, widget)
            for element in connections:
                _connect(widget, element)
            return widget

    return QUiLoader


@functools.cache
def _parsed(text: bytes) -> tuple[ET.Element, tuple[ET.Element, ...], bytes]:
    """The form without its connections, these, and the form as a file again; every panel loads the same file."""
    root = ET.fromstring(text)
    connections = root.find("connections")
    if connections is None:
        return root, (), ET.tostring(root)
    root.remove(connections)
    return root, tuple(connections), ET.tostring(root)


def _find(root: QtWidgets.QWidget, name: str) -> QtCore.QObject:
    found = root if QtCore.QObject.property(root, "objectName") == name else root.findChild(QtCore.QObject, name)
    if found is None:
        raise RuntimeError(f"A connection of the .ui file names '{name}', which is not in it.")
    return found


def _connect(root: QtWidgets.QWidget, element: ET.Element) -> None:
    sender, receiver = (_find(root, element.findtext(end, "")) for end in ("sender", "receiver"))
    connect(sender, element.findtext("signal", ""), receiver, element.findtext("slot", ""))


def _checkWidgets(root: ET.Element, top: QtWidgets.QWidget) -> None:
    for element in root.iter("widget"):
        kind, name = element.get("class", ""), element.get("name", "")
        if kind not in WIDGETS and not hasattr(QtWidgets, kind):
            raise RuntimeError(f"'{name}' of the .ui file is a {kind}, which WidgetTable does not list.")
        _checkProperties(element, _find(top, name))


_DESIGNER = frozenset({"buddy"})  # properties that the form builder understands, not the widget


def _checkProperties(element: ET.Element, widget: Any) -> None:
    for entry in element.findall("property"):
        name = entry.get("name", "")
        dynamic = entry.get("stdset") == "0" or name in _DESIGNER
        if not dynamic and widget.metaObject().indexOfProperty(name) < 0:
            raise RuntimeError(f"{element.get('class')} '{element.get('name')}' has no property '{name}'.")
