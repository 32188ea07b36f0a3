"""Fixtures for the extension. The same tests run in a real Slicer and, where there is none, on Testing/SlicerHost.

Which of the two is decided here alone, when pytest reads this file: if slicer.app is Slicer's own, it is used.
RunInSlicer.py tells how to run them in Slicer.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parents[2] / "FewShotSeg" / "FewShotSeg.py"
_APP = getattr(sys.modules.get("slicer"), "app", None)
IN_SLICER = _APP is not None and not type(_APP).__module__.startswith("Testing.")
ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}

if str(MODULE.parent) not in sys.path:  # as Slicer does for its modules
    sys.path.insert(0, str(MODULE.parent))

if IN_SLICER:
    REASON = None
else:
    from Testing.SlicerHost import screenshot as hostScreenshot
    from Testing.SlicerHost import start, whyUnavailable

    REASON = whyUnavailable()
    if REASON is None:
        start()

if IN_SLICER or REASON:
    pause = time.sleep
else:  # as Slicer's own loop: other threads have to wait meanwhile
    from Testing.SlicerHost.EventLoop import wait as pause


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where there is neither Slicer nor the host, read only test_host.py, which says why and skips."""
    isFolder = collection_path.is_dir() and collection_path != Path(__file__).parent
    isFile = collection_path.suffix == ".py" and collection_path.name != "test_host.py"
    return True if REASON and (isFolder or isFile) else None


def pytest_report_header() -> str:
    return f"extension tests: {'in Slicer' if IN_SLICER else REASON or 'on Testing/SlicerHost'}"


# ------------------------------------------------------------------ errors and messages


class Messages:
    """What slicer.util would have shown; nothing opens, and every question is answered with `answer`."""

    def __init__(self) -> None:
        self.answer = True
        self.shown: list[tuple[str, str]] = []  # ("error", text)

    def texts(self, kind: str) -> list[str]:
        """Of "error", "warning", "info" or "confirm", in their order."""
        return [text for shown, text in self.shown if shown == kind]

    def record(self, kind: str, returns: Callable[[], Any] = lambda: None) -> Callable[..., Any]:
        def show(text: str, *arguments: Any, **options: Any) -> Any:
            self.shown.append((kind, text))
            return returns()

        return show

    @contextmanager
    def tryWithErrorDisplay(
        self, message: str | None = None, show: bool = True, waitCursor: bool = False
    ) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if show:
                self.shown.append(("error", f"{message}\n\n{error}" if message else str(error)))
                error.wasShown = True  # type: ignore[attr-defined]
            raise


class FailedListeners(logging.Handler):
    """What listeners of signals raised, which is only logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(logging.Formatter().format(record))


@pytest.fixture(autouse=True)
def _listeners(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test if a listener raised, unless the test looks into the log itself."""
    failed, log = FailedListeners(), logging.getLogger("FewShotSegSlicer.Signal")
    log.addHandler(failed)
    yield
    log.removeHandler(failed)
    if failed.heard and "caplog" not in request.fixturenames:
        pytest.fail("A listener raised:\n" + "\n".join(failed.heard), pytrace=False)


@pytest.fixture(autouse=True)
def _messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Messages]:
    """Fails a test if a slot or observer raised, which Qt and VTK only print, or an error was shown unexpectedly."""
    import slicer.util

    recorded, raised = Messages(), list[str]()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not hasattr(error, "wasShown"):
            raised.append("".join(traceback.format_exception(kind, error, trace)))

    for kind in ("info", "warning", "error"):
        monkeypatch.setattr(slicer.util, f"{kind}Display", recorded.record(kind))
    for question in ("OkCancel", "YesNo", "RetryClose"):
        monkeypatch.setattr(
            slicer.util, f"confirm{question}Display", recorded.record("confirm", lambda: recorded.answer)
        )
    monkeypatch.setattr(slicer.util, "tryWithErrorDisplay", recorded.tryWithErrorDisplay)
    monkeypatch.setattr(sys, "excepthook", hook)
    yield recorded
    if raised:
        pytest.fail("A slot or an observer raised:\n" + "\n".join(raised), pytrace=False)
    if recorded.texts("error") and "messages" not in request.fixturenames:
        pytest.fail("An error was shown:\n" + "\n".join(recorded.texts("error")), pytrace=False)


@pytest.fixture
def messages(_messages: Messages) -> Messages:
    """The message boxes of slicer.util during this test: recorded and answered, not opened."""
    return _messages


@pytest.fixture(scope="session", autouse=True)
def _workersOfEqualRank() -> Iterator[None]:
    """Workers that do not give way: beside other busy processes, as of pytest-xdist, their tests would wait minutes."""
    from FewShotSegSlicer.Workers import Workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "_NICENESS", dict.fromkeys(Workers._NICENESS, 0))
        yield


# ------------------------------------------------------------------ application and scene


@pytest.fixture(scope="session")
def slicerHost() -> Any:
    """slicer.app, of Slicer or of the host."""
    import slicer

    return slicer.app


@pytest.fixture
def scene(slicerHost: Any) -> Iterator[Any]:
    """slicer.mrmlScene, empty and with the views as at start; emptied again afterwards."""
    import slicer

    _resetScene()
    yield slicer.mrmlScene
    _resetScene()


def _resetScene() -> None:
    import slicer

    slicer.mrmlScene.Clear(0)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetPlaceModePersistence(0)
    interaction.SetCurrentInteractionMode(interaction.ViewTransform)
    for viewName, orientation in ORIENTATIONS.items():
        sliceNode = _view(viewName).mrmlSliceNode()
        sliceNode.SetOrientation(orientation)
        sliceNode.SetXYZOrigin(0, 0, 0)
        sliceNode.JumpSliceByCentering(0, 0, 0)
    slicer.app.processEvents()


@pytest.fixture
def panel(scene: Any) -> Iterator[Any]:
    """The widget of the module FewShotSeg, freshly made and entered as Slicer does; left and cleaned up afterwards."""
    import slicer

    name = MODULE.stem
    if not IN_SLICER and not hasattr(slicer.modules, name.lower()):
        slicer.app.moduleManager().loadModule(MODULE)
    slicer.util.selectModule(name)
    yield slicer.util.getModuleWidget(name)
    if IN_SLICER:
        slicer.util.selectModule("Data")
        slicer.util.reloadScriptedModule(name)
    else:
        slicer.util.selectModule("")
        slicer.util.getModule(name).discardWidget()


@pytest.fixture
def runUntil(slicerHost: Any) -> Callable[..., None]:
    """runUntil(condition, timeout_s=10): process events until it is true; fails the test if it never is."""

    def run(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            if waited > timeout_s:
                pytest.fail(f"Not true within {timeout_s:g} s: {getattr(condition, '__qualname__', condition)}")
            slicerHost.processEvents()
            pause(0.002 if waited < 1 else 0.02)  # whatever takes long needs the processor more than this loop

    return run


# ------------------------------------------------------------------ views


def _view(viewName: str) -> Any:
    import slicer

    return slicer.app.layoutManager().sliceWidget(viewName).sliceView()


class Mouse:
    """Mouse events on the interactor of a slice view, as its window would send them.

    A position is (x, y) in pixels from the lower left corner, or (r, a, s) in mm.
    """

    def __init__(self) -> None:
        self._inside = ""

    def move(self, viewName: str, at: Any, control: bool = False, shift: bool = False) -> None:
        interactor = _view(viewName).interactor()
        if self._inside not in ("", viewName):
            _view(self._inside).interactor().InvokeEvent("LeaveEvent")
        interactor.SetEventInformation(*self.xy(viewName, at), control, shift, "\0", 0, None)
        if self._inside != viewName:
            self._inside = viewName
            interactor.InvokeEvent("EnterEvent")
        interactor.InvokeEvent("MouseMoveEvent")

    def press(self, viewName: str, button: str = "Left") -> None:
        _view(viewName).interactor().InvokeEvent(f"{button}ButtonPressEvent")

    def release(self, viewName: str, button: str = "Left") -> None:
        _view(viewName).interactor().InvokeEvent(f"{button}ButtonReleaseEvent")

    def wheel(self, viewName: str, steps: int) -> None:
        direction = "Forward" if steps > 0 else "Backward"
        for _ in range(abs(steps)):
            _view(viewName).interactor().InvokeEvent(f"MouseWheel{direction}Event")

    @staticmethod
    def xy(viewName: str, at: Any) -> tuple[int, int]:
        """A position in pixels."""
        if len(at) == 3:
            at = _view(viewName).convertRASToXYZ([float(coordinate) for coordinate in at])
        return round(at[0]), round(at[1])


@pytest.fixture
def mouse(scene: Any) -> Mouse:
    """For what clickIn and dragIn cannot say: mouse.move, press, release, wheel."""
    return Mouse()


@pytest.fixture
def clickIn(mouse: Mouse, slicerHost: Any) -> Callable[..., None]:
    """clickIn("Red", ras or xy, button="Left", control=False, shift=False): move there, press, release."""

    def click(viewName: str, at: Any, button: str = "Left", control: bool = False, shift: bool = False) -> None:
        mouse.move(viewName, at, control, shift)
        mouse.press(viewName, button)
        mouse.release(viewName, button)
        slicerHost.processEvents()

    return click


@pytest.fixture
def dragIn(mouse: Mouse, slicerHost: Any) -> Callable[..., None]:
    """dragIn("Red", start, end, button="Left", steps=8, control=False, shift=False): press, move, release."""

    def drag(viewName: str, start: Any, end: Any, button: str = "Left", steps: int = 8, **modifiers: bool) -> None:
        first, last = (np.array(mouse.xy(viewName, at)) for at in (start, end))
        mouse.move(viewName, first, **modifiers)
        mouse.press(viewName, button)
        for part in np.linspace(0, 1, steps + 1)[1:]:
            mouse.move(viewName, first + part * (last - first), **modifiers)
        mouse.release(viewName, button)
        slicerHost.processEvents()

    return drag


@pytest.fixture
def pressKey(slicerHost: Any) -> Callable[[str], None]:
    """pressKey("Ctrl+Z"): typed into the main window. In Slicer, which has no QTest, only its shortcuts notice."""
    import qt
    import slicer

    def inHost(keys: str) -> None:
        from PySide6.QtTest import QTest

        window = slicer.util.mainWindow()
        window.activateWindow()
        slicerHost.processEvents()
        QTest.keySequence(window.focusWidget() or window, qt.QKeySequence(keys))
        slicerHost.processEvents()

    def inSlicer(keys: str) -> None:
        for shortcut in slicer.util.mainWindow().findChildren(qt.QShortcut):
            if shortcut.enabled and shortcut.key == qt.QKeySequence(keys):
                shortcut.activated()
        slicerHost.processEvents()

    return inSlicer if IN_SLICER else inHost


@pytest.fixture
def sixViews(scene: Any, slicerHost: Any) -> Iterator[Callable[[], None]]:
    """sixViews(): the layout with three more slice views, Slice4 to Slice6, until the test ends."""
    import slicer

    before = slicerHost.layoutManager().layout

    def show() -> None:
        slicerHost.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutThreeOverThreeView)
        slicerHost.processEvents()

    yield show
    slicerHost.layoutManager().setLayout(before)
    slicerHost.processEvents()


@pytest.fixture
def snapshot(slicerHost: Any) -> Callable[[str], np.ndarray]:
    """snapshot("Red"): the view rendered now, uint8 (H, W, 3), first row on top."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    def take(viewName: str) -> np.ndarray:
        slicerHost.processEvents()
        view = _view(viewName)
        view.forceRender()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(view.renderWindow())
        reader.ReadFrontBufferOff()
        reader.Update()
        image = reader.GetOutput()
        width, height, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()

    return take


@pytest.fixture
def screenshot(slicerHost: Any) -> Callable[..., None]:
    """screenshot(path, theme="dark"): the main window, module panel and views, as a PNG; Slicer keeps its own theme."""
    import slicer

    def inSlicer(path: Path, theme: str = "dark") -> None:
        slicer.util.mainWindow().grab().save(str(path), "PNG")

    return inSlicer if IN_SLICER else hostScreenshot
