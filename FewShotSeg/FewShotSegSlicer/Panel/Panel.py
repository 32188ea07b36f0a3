"""The module panel, put together from its sections. Wiring only: no arrays, no torch, no paths worked out."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from .AdaptSection import AdaptSection
from .BatchSection import BatchSection
from .Choices import Choices
from .ExemplarSection import ExemplarSection
from .ResultSection import ResultSection
from .SegmentSection import SegmentSection, setIcons
from .Selection import Selection
from .SetupSection import SetupSection
from .Status import busyCursor

_POLL_MS = 10  # an answer is shown at the next one
_BESIDE_POLL_MS = 50  # while another module is shown: a job that is not listened to would come to a stop
_IDLE_POLL_MS = 300


class Panel:
    """Belongs to the module's widget, which hands on what Slicer calls: setup, enter, exit, cleanup, scene closing."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self.logic = widget.logic
        self.ui: Any = None
        self.choices = Choices(self.logic.getParameterNode)
        self._isRecalling = True  # until the scene has been asked

    # ------------------------------------------------------------------------------------------------- life of a panel

    def setup(self) -> None:
        """Build the form and its sections."""
        self.logic.whileBusy = busyCursor
        top = slicer.util.loadUI(self._widget.resourcePath("UI/FewShotSeg.ui"))
        self._widget.layout.addWidget(top)
        self.ui = ui = slicer.util.childWidgetVariables(top)
        setIcons(ui, lambda name: self._widget.resourcePath(f"Icons/{name}.svg"))
        self.selection = selection = Selection(ui, self.logic)
        self.segment = SegmentSection(ui, self.logic, selection, lambda: bool(self._widget.parent.isEntered))
        self.exemplars = ExemplarSection(ui, self.logic, selection)
        self.adapt = AdaptSection(ui, self.logic, selection, self.choices)
        self.result = ResultSection(ui, self.logic, selection)
        self.batch = BatchSection(ui, self.logic, selection)
        self.installation = SetupSection(ui, self.logic, selection)
        self._sections = (self.segment, self.exemplars, self.adapt, self.result, self.batch, self.installation)
        top.setMRMLScene(slicer.mrmlScene)
        self._connect()
        self._lookForPackages()
        selection.lookForModels()
        self.recall()
        self._timer = qt.QTimer()
        self._timer.setInterval(_IDLE_POLL_MS)
        self._timer.connect("timeout()", self._poll)
        self._timer.start()
        scene = slicer.mrmlScene
        self._observation = scene.AddObserver(scene.EndImportEvent, lambda _caller, _event: self.onSceneImported())
        self.update()

    def _connect(self) -> None:
        """Only now, when all of it is there."""
        self.selection.changed.connect(self.update)
        self.selection.chosen.connect(self.remember)
        for section in (self.segment, self.adapt, self.batch, self.result):
            self.selection.modelsChanged.connect(section.showModels)
        self.selection.modelsChanged.connect(self.update)
        self.logic.live.changed.connect(self._onMasksChanged)
        self.adapt.adapted.connect(self._onAdapted)
        self.result.continued.connect(self.adapt.startFrom)
        self.installation.installed.connect(self._onInstalled)

    def enter(self) -> None:
        """The module is shown from now on."""
        self._lookForPackages()
        self.recall()
        self._poll()
        self.segment.enter()
        self.selection.lookForModels()

    def exit(self) -> None:
        """Another module is shown."""
        self._poll()
        self.segment.exit()

    def cleanup(self) -> None:
        """Leave nothing behind that still listens."""
        self._timer.stop()
        slicer.mrmlScene.RemoveObserver(self._observation)
        self.segment.exit()
        self.logic.live.changed.disconnect(self._onMasksChanged)
        for part in (self.selection, self.segment, self.exemplars, self.result, self.installation):
            part.close()

    def onSceneStartClose(self) -> None:
        """Let go of the nodes before they go."""
        self.selection.isClosing = True
        self.logic.live.setTarget(None, None, None)

    def onSceneEndClose(self) -> None:
        """The scene is empty."""
        self.selection.isClosing = False
        self.segment.onSceneChanged()
        self.update()

    def onSceneImported(self) -> None:
        """A scene was loaded; the choices that were saved with it hold again."""
        self.recall()
        self.segment.onSceneChanged()
        self.update()

    def _poll(self) -> None:
        """Take in what has been answered; again as soon as somebody looks at it."""
        self.logic.poll()
        self.installation.poll()
        beside = _BESIDE_POLL_MS if self.logic.runs else _IDLE_POLL_MS
        wanted = _POLL_MS if self._widget.parent.isEntered else beside
        if self._timer.interval != wanted:
            self._timer.setInterval(wanted)

    # --------------------------------------------------------------------------------------- what concerns all sections

    def update(self) -> None:
        """Bring every section in step with what can be done now."""
        if not self.selection.isClosing:
            for section in self._sections:
                section.update()

    def _lookForPackages(self) -> None:
        self.selection.lookForPackages()
        self.installation.refresh()

    def _onMasksChanged(self) -> None:
        """A mask or a prompt changed: what other sections allow may have changed with it."""
        self.exemplars.update()
        self.result.update()

    def _onInstalled(self) -> None:
        """Packages were installed: the processes start anew, with them."""
        self._lookForPackages()
        self.logic.restartWorkers()
        self.adapt.reload()
        self.update()

    def _onAdapted(self, path: str) -> None:
        """Show a new adapter, and let it answer the clicks."""
        self.selection.lookForModels()
        self.result.choose(path)
        self.ui.resultSection.collapsed = False
        self.segment.model.choose((path, None))
        self.exemplars.noteAdapted()
        self.update()

    # ---------------------------------------------------------------------------------------- what the scene remembers

    def remember(self) -> None:
        """Keep the choices in the scene."""
        if not self._isRecalling and not self.selection.isClosing:
            self.choices.keep(
                {"Volume": self.selection.volumeNode, "Segmentation": self.selection.segmentationNode},
                {
                    "Recipes": self.adapt.recipes,
                    "Folders": self.adapt.folders,
                    "Method": self.adapt.method.value or self.choices.value("Method"),
                    "Model": self.segment.model.value,
                    "Device": self.selection.device,
                },
            )

    def recall(self) -> None:
        """Choose what the scene remembers; where it says nothing, the volume that is shown."""
        self._isRecalling = True
        model, device = self.choices.value("Model"), self.choices.value("Device")
        shown = slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID()
        volumeNode = self.choices.node("Volume") or (slicer.mrmlScene.GetNodeByID(shown) if shown else None)
        remembered = (
            (self.ui.volumeSelector, volumeNode),
            (self.ui.segmentationSelector, self.choices.node("Segmentation")),
        )
        unset = [
            (selector, node) for selector, node in remembered if node is not None and selector.currentNode() is None
        ]
        for selector, node in unset:  # in this order: a volume brings a segmentation along
            selector.setCurrentNode(node)
        if model is not None:
            self.segment.model.choose(tuple(model))
        if device is not None:
            self.installation.device.choose(device)
        self.adapt.recall()
        self._isRecalling = False
        self.remember()
