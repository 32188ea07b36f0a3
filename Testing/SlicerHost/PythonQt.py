"""Makes PySide6 objects behave as PythonQt's do inside Slicer, and refuse what PythonQt refuses.

Properties are attributes and hide getters of the same name (`button.text`, never `button.text()`); setters stay slots.
`object.connect("signal(type)", f)` needs the exact C++ signature. Children and dynamic properties are attributes,
`name` is the object name, `className()` exists, list properties come back as tuples. A widget that is not a Python
subclass takes no new attributes. `qt` is one flat namespace without PySide's own Signal, Slot and Property.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import QObject
from shiboken6 import Shiboken

from .Overloads import refuseRemoved
from .WidgetTable import WIDGETS, Api

_getRaw = QObject.__getattribute__
_rawProperty, _setRawProperty = QObject.property, QObject.setProperty


def install() -> types.ModuleType:
    """Change the classes of PySide6 in this process; returns the `qt` module."""
    qt = types.ModuleType("qt", "Qt as PythonQt shows it.")
    for source in (QtCore, QtGui, QtWidgets):
        for name in dir(source):  # not vars(): PySide6 fills its modules when asked
            member = getattr(source, name)
            if name.startswith("Q"):
                setattr(qt, name, member)
            if isinstance(member, type) and issubclass(member, Shiboken.Object):
                isObject = issubclass(member, QObject)
                setattr(member, "__setattr__", _setAttribute if isObject else _setField)  # noqa: B010
    QObject.__getattribute__ = _getAttribute
    QObject.__getattr__ = _getMissing
    QtCore.QEventLoop.exec_ = QtCore.QEventLoop.exec
    for waits in (QtWidgets.QDialog, QtWidgets.QMessageBox, QtWidgets.QMenu):
        waits.exec_ = waits.exec = _refuseToWait(f"{waits.__name__}.exec_")
    for source, functions in _MODAL.items():
        for function in functions:
            setattr(source, function, staticmethod(_refuseToWait(f"{source.__name__}.{function}")))
    refuseRemoved()
    return qt


_MODAL: dict[type, tuple[str, ...]] = {
    QtWidgets.QFileDialog: ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"),
    QtWidgets.QInputDialog: ("getText", "getItem", "getInt", "getDouble"),
    QtWidgets.QMessageBox: ("question", "information", "warning", "critical", "about"),
}


def _refuseToWait(name: str) -> Callable[..., Any]:
    """Instead of a dialog, which nobody would answer in a test: monkeypatch.setattr(qt.QFileDialog, ...) does."""

    def wait(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(f"{name}() waits for the user; a test has to replace it (PythonQt returns str, not a pair).")

    return wait


# ------------------------------------------------------------------ attributes


# Shiboken looks these up when Qt asks for them, so they must stay methods; PythonQt has them as attributes.
_VIRTUAL = frozenset({"sizeHint", "minimumSizeHint", "spacing"})


_known: dict[type, dict[str, bool]] = {}


def _properties(instance: QObject) -> dict[str, bool]:
    """The Qt properties of an object's class, and whether they can be set."""
    kind = type(instance)
    if kind not in _known:
        meta = kind.staticMetaObject
        found = (meta.property(i) for i in range(meta.propertyCount()))
        _known[kind] = {p.name(): p.isWritable() for p in found if p.isReadable() and p.name() not in _VIRTUAL}
    return _known[kind]


def _getAttribute(self: QObject, name: str) -> Any:
    if name[:1] == "_":  # millions of times in a run of the tests
        return _getRaw(self, name)
    if name in (_known.get(type(self)) or _properties(self)):
        value = _rawProperty(self, name)
        return tuple(value) if isinstance(value, list) else value
    if name in _OWN:
        return functools.partial(_OWN[name], self)
    value = _getRaw(self, name)
    if isinstance(value, QtCore.SignalInstance):
        overloads = _overloads(self, name)
        return BoundSignal(self, name, value[overloads[0]] if len(overloads) > 1 else value)
    return value


def _getMissing(self: QObject, name: str) -> Any:
    if name == "name":
        return _rawProperty(self, "objectName")
    if not name.startswith("_"):
        for child in QObject.children(self):
            if _rawProperty(child, "objectName") == name:
                return child
        if name.encode() in [bytes(key.data()) for key in QObject.dynamicPropertyNames(self)]:
            return _rawProperty(self, name)
    raise AttributeError(f"{className(self)} has no attribute named '{name}'")


def _setAttribute(self: QObject, name: str, value: Any) -> None:
    writable = _properties(self).get(name)
    if name == "name":
        QObject.setObjectName(self, value)
    elif isinstance(value, QtCore.SignalInstance):  # PySide itself, when a signal is first asked for
        self.__dict__[name] = value
    elif isinstance(value, QObject) and _rawProperty(value, "objectName") == name:
        pass  # PySide's QUiLoader, for each child; _getMissing finds them without
    elif writable:
        if not _setRawProperty(self, name, value):
            raise TypeError(f"Property '{name}' of {className(self)} does not take {value!r}.")
    elif writable is False:
        raise AttributeError(f"Property '{name}' of {className(self)} cannot be set.")
    elif isPlain(type(self)) and not (name.startswith("_") and className(self) in WIDGETS):
        raise AttributeError(f"{className(self)} has no attribute named '{name}'; a plain widget takes no new ones.")
    else:
        _store(self, name, value)


def _setField(self: Any, name: str, value: Any) -> None:
    """For what is no QObject: a style option has fields, the item of a list has none."""
    if isPlain(type(self)) and not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}' that can be set.")
    _store(self, name, value)


def _store(self: Any, name: str, value: Any) -> None:
    descriptor = inspect.getattr_static(type(self), name, None)
    if hasattr(type(descriptor), "__set__"):
        type(descriptor).__set__(descriptor, self, value)
    else:
        self.__dict__[name] = value


def isPlain(kind: type) -> bool:
    """Whether a class would be a C++ class in Slicer, not a Python subclass."""
    return kind.__module__.startswith("PySide6.") or kind.__name__ in WIDGETS


def className(self: QObject) -> str:
    """The C++ name of the class."""
    return next(base.__name__ for base in type(self).__mro__ if isPlain(base))


# ------------------------------------------------------------------ signals


def connect(self: QObject, signal: str, receiver: Any, slot: str | None = None) -> bool:
    """Call `receiver` (or the slot named `slot` of it) when `signal`, a full C++ signature, is emitted."""
    if not isinstance(signal, str):
        raise TypeError(f"connect() needs a signature such as 'clicked(bool)', not {signal!r}.")
    bound, argumentCount = _findSignal(self, signal)
    return _attach(self, signal, bound, argumentCount, receiver if slot is None else _findSlot(receiver, slot))


def disconnect(self: QObject, signal: str, receiver: Any = None, slot: str | None = None) -> bool:
    """Undo `connect` with the same arguments, or everything that was connected to `signal`."""
    bound, _ = _findSignal(self, signal)
    return _detach(self, signal, bound, receiver if slot is None else _findSlot(receiver, slot))


class BoundSignal:
    """What `button.clicked` is: connected without a signature, emitted by calling it."""

    def __init__(self, sender: QObject, name: str, bound: QtCore.SignalInstance) -> None:
        self._sender, self._name, self._bound = sender, name, bound

    def connect(self, receiver: Any) -> bool:
        return _attach(self._sender, self._name, self._bound, _ALL, receiver)

    def disconnect(self, receiver: Any = None) -> bool:
        return _detach(self._sender, self._name, self._bound, receiver)

    def emit(self, *arguments: Any) -> None:
        self._bound.emit(*arguments)

    __call__ = emit


_ALL = 99


def _attach(sender: QObject, signal: str, bound: Any, argumentCount: int, receiver: Any) -> bool:
    if not callable(receiver):
        raise TypeError(f"connect('{signal}') needs something to call, not {receiver!r}.")
    accepted = min(argumentCount, _acceptedArguments(receiver))

    def call(*arguments: Any) -> None:
        receiver(*arguments[:accepted])

    bound.connect(call)
    sender.__dict__.setdefault("_receivers", []).append((signal, receiver, call))
    return True


def _detach(sender: QObject, signal: str, bound: Any, receiver: Any) -> bool:
    known = sender.__dict__.get("_receivers", [])
    matching = [one for one in known if one[0] == signal and (receiver is None or one[1] == receiver)]
    for one in matching:
        bound.disconnect(one[2])
        known.remove(one)
    return bool(matching)


def _acceptedArguments(receiver: Any) -> int:
    """How many arguments PythonQt passes on: to functions and methods what they take, to anything else all."""
    function = receiver.__func__ if isinstance(receiver, types.MethodType) else receiver
    if not isinstance(function, types.FunctionType) or function.__code__.co_flags & inspect.CO_VARARGS:
        return _ALL
    return function.__code__.co_argcount - isinstance(receiver, types.MethodType)


def _findSignal(sender: QObject, signature: str) -> tuple[Any, int]:
    """The PySide signal behind a C++ signature, and how many arguments the signature has."""
    normalized = _normalized(signature)
    name, _, inside = normalized.rstrip(")").partition("(")
    argumentCount = len(inside.split(",")) if inside else 0
    for row in _rows(sender):
        if normalized in row.attributes:
            return _getRaw(sender, row.attributes[normalized]), argumentCount
    if sender.metaObject().indexOfSignal(normalized) < 0 or "PyObject" in normalized:
        raise ValueError(f"connect(): signal '{signature}' does not exist on {className(sender)}.")
    bound = _getRaw(sender, name)
    return (bound[inside] if inside and len(_overloads(sender, name)) > 1 else bound), argumentCount


def _overloads(sender: QObject, name: str) -> list[str]:
    """The argument types of each signal of this name, in the order of C++; the shorter for arguments with a default."""
    meta = sender.metaObject()
    methods = (meta.method(i) for i in range(meta.methodCount()))
    signatures = [bytes(one.methodSignature().data()).decode() for one in methods if one.name() == name]
    return [signature.partition("(")[2].rstrip(")") for signature in signatures]


def _findSlot(receiver: QObject, slot: str) -> Callable[..., Any]:
    name, normalized = slot.partition("(")[0], _normalized(slot)
    listed = any(name in row.slots.split() for row in _rows(receiver))
    if not listed and receiver.metaObject().indexOfMethod(normalized) < 0:
        raise ValueError(f"connect(): slot '{slot}' does not exist on {className(receiver)}.")
    return _getRaw(receiver, name)


def _rows(instance: QObject) -> list[Api]:
    """The rows of the table for an object's class and its bases."""
    return [WIDGETS[kind.__name__] for kind in type(instance).__mro__ if kind.__name__ in WIDGETS]


def _normalized(signature: str) -> str:
    return bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()


_OWN: dict[str, Callable[..., Any]] = {"connect": connect, "disconnect": disconnect, "className": className}
