"""slicer.app, the main window, and modules written in Python: created, shown and reloaded as Slicer does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, QObject, Signal

from . import EventLoop
from .FileIO import CoreIOManager
from .MrmlWidgets import qSlicerWidget
from .SliceView import LayoutManager


class qSlicerScriptedLoadableModule:
    """What a module's Python class gets as `parent`; no other attribute can be set."""

    __slots__ = (
        "_widget",
        "acknowledgementText",
        "associatedNodeTypes",
        "categories",
        "contributors",
        "dependencies",
        "helpText",
        "hidden",
        "icon",
        "index",
        "name",
        "path",
        "title",
    )

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, str(path)
        self.title = self.helpText = self.acknowledgementText = ""
        self.categories: list[str] = []
        self.contributors: list[str] = []
        self.dependencies: list[str] = []
        self.associatedNodeTypes: list[str] = []
        self.hidden, self.index, self.icon = False, -1, QtGui.QIcon()
        self._widget: qSlicerScriptedLoadableModuleWidget | None = None

    def logic(self) -> None:
        """None for a module written in Python: slicer.util.getModuleLogic asks the widget instead."""

    def widgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        widget = qSlicerScriptedLoadableModuleWidget(self)
        widget.setMRMLScene(slicer.mrmlScene)
        widget.reload()
        return widget

    def discardWidget(self) -> None:
        """Leave, clean up and delete the widget, as at the end of Slicer; the next use makes a new one."""
        if self._widget is not None:
            widget, self._widget = self._widget, None
            widget.exit()
            widget.self().cleanup()
            delattr(slicer.modules, self.name + "Widget")
            widget.setParent(None)
            widget.deleteLater()
            QtCore.QCoreApplication.sendPostedEvents(widget, QtCore.QEvent.DeferredDelete)


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The Qt widget around a module's Python widget class, of which it is `parent`."""

    def __init__(self, module: qSlicerScriptedLoadableModule) -> None:
        super().__init__()
        self._module = module
        self._self: Any = None
        self._entered = False
        QtWidgets.QVBoxLayout(self)

    isEntered = Property(bool, lambda self: self._entered)
    moduleName = Property(str, lambda self: self._module.name)

    def self(self) -> Any:
        return self._self

    def module(self) -> qSlicerScriptedLoadableModule:
        return self._module

    def reload(self) -> None:
        """Make the Python widget from the module in sys.modules, and set it up; as in Slicer it is not entered."""
        name = self._module.name
        self._self = getattr(sys.modules[name], name + "Widget")(self)
        setattr(slicer.modules, name + "Widget", self._self)
        self._self.setup()

    def enter(self) -> None:
        if not self._entered:
            self._entered = True
            self._self.enter()

    def exit(self) -> None:
        if self._entered:
            self._entered = False
            self._self.exit()


class ModuleManager(QObject):
    """slicer.app.moduleManager(), and its factoryManager()."""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self, modules: SimpleNamespace) -> None:
        super().__init__()
        self._modules = modules
        self._loaded: dict[str, qSlicerScriptedLoadableModule] = {}

    def loadModule(self, path: Path) -> None:
        """Load a module written in Python from its file, as with --additional-module-paths."""
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        module = qSlicerScriptedLoadableModule(path)
        instance = getattr(_execute(path), module.name)(module)
        self._loaded[module.name] = module
        setattr(self._modules, module.name.lower(), module)
        setattr(self._modules, module.name + "Instance", instance)
        self.moduleLoaded.emit(module.name)

    def factoryManager(self) -> ModuleManager:
        return self

    def loadedModuleNames(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def module(self, name: str) -> Any:
        return self._loaded.get(name) or getattr(self._modules, name.lower(), None)


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class ModuleSelector(QObject):
    """slicer.util.moduleSelector(): which module is shown; `selectModule("")` leaves it."""

    moduleSelected = Signal(str)

    def __init__(self, panel: QtWidgets.QScrollArea) -> None:
        super().__init__()
        self._panel, self._selected = panel, ""

    selectedModule = Property(str, lambda self: self._selected)

    def selectModule(self, name: str) -> None:
        shown = self._panel.takeWidget()
        if shown is not None:
            shown.exit()
            shown.setParent(None)
        self._selected = name
        if name:
            widget = slicer.util.getModule(name).widgetRepresentation()
            self._panel.setWidget(widget)
            widget.show()
            widget.enter()
        self.moduleSelected.emit(name)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The module panel on the left; on the right Red above Yellow and Green."""

    panelWidth = 440

    def __init__(self, layoutManager: LayoutManager) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer")
        panel = QtWidgets.QScrollArea()
        panel.setWidgetResizable(True)
        panel.setFrameShape(QtWidgets.QFrame.NoFrame)
        panel.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarAlwaysOff)
        panel.setFixedWidth(self.panelWidth)
        self._selector = ModuleSelector(panel)
        views = QtWidgets.QGridLayout()
        views.setSpacing(3)
        places = {"Red": (0, 0, 1, 2), "Yellow": (1, 0, 1, 1), "Green": (1, 1, 1, 1)}
        for name, place in places.items():
            views.addWidget(layoutManager.sliceWidget(name), *place)
        for number in (0, 1):
            views.setRowStretch(number, 1)
            views.setColumnStretch(number, 1)
        center = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(center)
        row.setContentsMargins(3, 3, 3, 0)
        row.setSpacing(3)
        row.addWidget(panel)
        row.addLayout(views, 1)
        self.setCentralWidget(center)
        self.statusBar().setSizeGripEnabled(False)
        self.resize(1280, 800)

    def moduleSelector(self) -> ModuleSelector:
        return self._selector


class qSlicerApplication(QObject):
    """slicer.app: what modules use of it. Always in testing mode, so that slicer.util opens no message box."""

    startupCompleted = Signal()
    lastWindowClosed = Signal()
    aboutToQuit = Signal()

    def __init__(self, applicationLogic: Any, modules: SimpleNamespace, folder: Path) -> None:
        super().__init__()
        self._logic = applicationLogic
        self._io = CoreIOManager(slicer.mrmlScene, applicationLogic, modules)
        self._layoutManager = LayoutManager(applicationLogic, slicer.mrmlScene)
        self._moduleManager = ModuleManager(modules)
        self._window = qSlicerMainWindow(self._layoutManager)
        self._settings = QtCore.QSettings()
        self.temporaryPath, self.slicerHome = str(folder), str(folder)
        self.cachePath = str(folder / "Cache")
        self.applicationName, self.applicationVersion = "Slicer", "5.12.4"
        self.majorVersion, self.minorVersion = 5, 12
        self.os, self.revision, self.startupWorkingPath = "linux", "0", str(Path.cwd())

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def applicationLogic(self) -> Any:
        return self._logic

    def coreIOManager(self) -> CoreIOManager:
        return self._io

    ioManager = coreIOManager

    def layoutManager(self) -> LayoutManager:
        return self._layoutManager

    def moduleManager(self) -> ModuleManager:
        return self._moduleManager

    def topLevelWidgets(self) -> tuple[QtWidgets.QWidget, ...]:
        return tuple(QtWidgets.QApplication.topLevelWidgets())

    def userSettings(self) -> QtCore.QSettings:
        return self._settings

    settings = revisionUserSettings = userSettings

    def testingEnabled(self) -> bool:
        return True

    def processEvents(self, *arguments: Any) -> None:
        EventLoop.processEvents()

    def pauseRender(self) -> None:
        self._layoutManager.setRenderPaused(True)

    def resumeRender(self) -> None:
        self._layoutManager.setRenderPaused(False)

    def setOverrideCursor(self, cursor: Any) -> None:
        QtWidgets.QApplication.setOverrideCursor(QtGui.QCursor(cursor))

    def restoreOverrideCursor(self) -> None:
        QtWidgets.QApplication.restoreOverrideCursor()

    def translate(self, context: str, text: str) -> str:
        return text

    def commandOptions(self) -> SimpleNamespace:
        return SimpleNamespace(noMainWindow=False, testingEnabled=True, runPythonAndExit=False)
