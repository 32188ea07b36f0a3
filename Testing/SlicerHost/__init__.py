"""A headless stand-in for 3D Slicer, so that the extension is tested and photographed without a Slicer binary.

Real: the MRML scene, module logics, slice logics, displayable managers and interactors (the wheel slicer-core), all of
slicer.util, and Qt (PySide6). Imitated: PythonQt's way with Qt, the ctk and qMRML widgets of WidgetTable, slicer.app.
What is not imitated raises. Not there: 3-D views, the Segment Editor's widget, other modules than those of Mrml.py.

`start()` once per process; from then on `import slicer, vtk, qt, ctk` give what they give in Slicer. Needs Linux x86_64
with Mesa's EGL; see whyUnavailable().
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

# PySide6 6.12.0 loses a reference to None with each call on Python 3.11, which ends the process after some thousand.
REQUIRED = {"slicer_core": "slicer-core==5.12.4.0", "PySide6": "PySide6-Essentials==6.11.3"}
LIBRARIES = {"libEGL.so.1": "libegl1 libegl-mesa0 libgl1-mesa-dri", "libxkbcommon.so.0": "libxkbcommon0"}
ENVIRONMENT = {"QT_QPA_PLATFORM": "offscreen", "VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow"}


def whyUnavailable() -> str | None:
    """One sentence if the host cannot run here, else None."""
    if sys.platform != "linux":
        return "The Slicer test host runs on Linux only; run these tests in Slicer (Testing/Extension/RunInSlicer.py)."
    missing = [package for module, package in REQUIRED.items() if importlib.util.find_spec(module) is None]
    if missing:
        return f"The Slicer test host needs: pip install {' '.join(missing)}"
    absent = [packages for library, packages in LIBRARIES.items() if not _canLoad(library)]
    return f"The Slicer test host needs: apt-get install {' '.join(absent)}" if absent else None


def _canLoad(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@functools.cache
def start() -> Any:
    """Start the host in this process, with its settings and files in a new temporary folder; returns slicer.app."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["SLICER_HOST_PYTHON"] = sys.executable
    os.environ["PATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PATH", "")])  # for PythonSlicer
    folder = Path(tempfile.mkdtemp(prefix="SlicerHost-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import slicer

    qApplication = _startQt(folder)
    _removeWhatSlicerKeepsInUtil(slicer)
    slicer.__path__.append(str(Path(__file__).parent / "Namespace"))
    _installWidgets(slicer)

    from . import Mrml

    slicer.mrmlScene, applicationLogic, slicer.modules = Mrml.createScene(folder)
    from . import Application

    for kind in (Application.qSlicerScriptedLoadableModule, Application.qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, kind.__name__, kind)
    slicer.app = Application.qSlicerApplication(applicationLogic, slicer.modules, folder)
    slicer.app._qApplication = qApplication
    slicer.util.mainWindow().show()
    return slicer.app


def _startQt(folder: Path) -> Any:
    from PySide6 import QtCore, QtWidgets

    from . import Appearance

    QtCore.qInstallMessageHandler(_report)
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
    QtCore.QSettings.setPath(QtCore.QSettings.IniFormat, QtCore.QSettings.UserScope, str(folder))
    application = QtWidgets.QApplication(["Slicer"])
    application.setOrganizationName("NA-MIC")
    application.setApplicationName("Slicer")
    Appearance.apply(application)
    return application


def _report(kind: Any, context: Any, message: str) -> None:
    if "propagateSizeHints" not in message:  # of the offscreen platform, each time a window is shown
        sys.stderr.write(f"Qt: {message}\n")


def _removeWhatSlicerKeepsInUtil(slicer: ModuleType) -> None:
    """The wheel copies slicer.util into slicer itself; in Slicer slicer.loadVolume does not exist."""
    for name in vars(slicer.util):
        if not name.startswith("_") and getattr(slicer, name, None) is getattr(slicer.util, name):
            delattr(slicer, name)


def _installWidgets(slicer: ModuleType) -> None:
    from . import MrmlWidgets, PythonQt, SegmentWidgets, UiLoader, Widgets

    qt = PythonQt.install()
    ctk = ModuleType("ctk", "The CTK widgets of WidgetTable.")
    inSlicer = MrmlWidgets.MRML + SegmentWidgets.SEGMENTS
    qt.QUiLoader = UiLoader.uiLoaderClass(Widgets.CTK + inSlicer)  # type: ignore[attr-defined]
    for widgets, module in ((Widgets.CTK, ctk), (inSlicer, slicer)):
        for widget in widgets:
            setattr(module, widget.__name__, widget)
    sys.modules["qt"], sys.modules["ctk"] = qt, ctk


def screenshot(path: str | Path, theme: str = "dark", width: int = 1280, height: int = 800) -> None:
    """Write the main window, with the selected module beside the rendered slice views, as a PNG."""
    import slicer

    from . import Appearance

    if theme != "dark":
        Appearance.apply(slicer.app._qApplication, theme)
    window, layoutManager = slicer.util.mainWindow(), slicer.app.layoutManager()
    before = window.size
    window.resize(width, height)
    slicer.app.processEvents()
    for name in layoutManager.sliceViewNames():
        layoutManager.sliceWidget(name).sliceView().forceRender()
    if not window.grab().save(str(path), "PNG"):
        raise OSError(f"{path} cannot be written.")
    window.resize(before)
    if theme != "dark":
        Appearance.apply(slicer.app._qApplication)
