"""Overloads of Qt that PySide6 has and PythonQt has not: as in Slicer, a call of one raises ValueError.

The table holds what the type systems of PythonQt 4.1 (typesystem_core.xml, typesystem_gui.xml) take away, as far as
Python code can call it at all. Arguments that only return something are left out, as Python leaves them out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

_ITSELF = "new"
_TABLE = {
    "QBrush": "new(Qt.GlobalColor,Qt.BrushStyle)",
    "QColor": "new(QColor.Spec) getCmyk() getCmykF() getHsv() getHsvF() getRgb() getRgbF()",
    "QFontMetricsF": "new(QFontMetricsF) new(QFontMetrics)",
    "QGridLayout": "addWidget(QWidget) getItemPosition(int)",
    "QImage": "new(bytes,int,int,QImage.Format) new(bytes,int,int,int,QImage.Format) new(list) "
    "bits() constBits() scanLine(int) constScanLine(int) setColorTable(list)",
    "QLayout": "getContentsMargins()",
    "QListWidgetItem": "new(QListWidgetItem)",
    "QMovie": "cacheMode()",
    "QPainter": "setBrush(Qt.BrushStyle) drawText(QPointF,str,int,int)",
    "QPalette": "new(QColor,QColor,QColor,QColor,QColor,QColor,QColor)",
    "QPixmap": "new(list)",
    "QRect": "getCoords() getRect()",
    "QRectF": "getCoords() getRect()",
    "QShortcutEvent": "isAmbiguous() key() shortcutId()",
    "QSplitter": "getRange(int)",
    "QTableWidgetItem": "new(QTableWidgetItem)",
    "QTransform": "map(int,int) map(float,float)",
    "QTreeView": "sortByColumn(int)",
    "QTreeWidgetItem": "new(QTreeWidgetItem)",
    "QWidget": "isTopLevel() topLevelWidget()",
}
Types = tuple[type, ...]


def removed() -> Iterator[tuple[type, str, list[Types]]]:
    """The classes, their functions ("new" for making one), and the types of each overload that is missing."""
    for name, signatures in _TABLE.items():
        overloads: dict[str, list[Types]] = {}
        for signature in signatures.split():
            function, _, types = signature.rstrip(")").partition("(")
            overloads.setdefault(function, []).append(tuple(map(_type, filter(None, types.split(",")))))
        for function, missing in overloads.items():
            yield _type(name), function, missing


def refuseRemoved() -> None:
    """Let these overloads raise in this process, for all but the host itself."""
    for kind, name, missing in removed():
        attribute = "__init__" if name == _ITSELF else name
        setattr(kind, attribute, _refusing(getattr(kind, attribute), kind.__name__, name, missing))


def _refusing(function: Callable[..., Any], kind: str, name: str, missing: list[Types]) -> Callable[..., Any]:
    called = kind if name == _ITSELF else name

    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        isOurs = sys._getframe(1).f_globals.get("__name__", "").startswith(__package__)
        if not isOurs and any(_fit(arguments, types) for types in missing):
            raise ValueError(f"Called {called} with wrong arguments: {arguments}")
        return function(self, *arguments, **options)

    return call


def _fit(arguments: tuple[Any, ...], types: Types) -> bool:
    return len(arguments) == len(types) and all(map(isinstance, arguments, types))


def _type(name: str) -> type:
    for source in ({"int": int, "float": float, "str": str, "bytes": bytes, "list": list}, QtCore, QtGui, QtWidgets):
        first, *rest = name.split(".")
        found = source.get(first) if isinstance(source, dict) else getattr(source, first, None)
        if found is not None:
            return functools.reduce(getattr, rest, found)
    raise LookupError(f"PySide6 has no {name}.")
