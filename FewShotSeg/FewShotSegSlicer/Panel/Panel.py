"""The module panel: its sections, and what they share. Wiring only: no arrays, no torch, no paths worked out."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Scene import SliceViews, Volumes

from .AdaptSection import AdaptSection
from .BatchSection import BatchSection
from .Choices import Choices
from .ExemplarSection import ExemplarSection
from .ResultSection import ResultSection
from .SegmentSection import SegmentSection, setIcons
from .SetupSection import SetupSection
from .Status import unless, waiting

_POLL_MS = 30
_SLOW_POLL_MS = 300  # while another module is shown
_WIDEST = 380  # pixels of a picture; the module panel is seldom wider than 400
_BESIDE = 34  # pixels beside a picture: margins, and a scroll bar that may come with it


class Panel:
    """Belongs to the module's widget, which hands on what Slicer calls: setup, enter, exit, cleanup, scene closing."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self.logic = widget.logic
        self.ui: Any = None
        self.missing: tuple[str, ...] = ()
        """Python packages that are not installed."""
        self.choices = Choices(self.logic.getParameterNode)
        self.cards: list[dict[str, Any]] = []
        """The cards of the adapters, newest first."""
        self._isClosing = self._isReady = False
        self._isRecalling = True  # until the scene has been asked

    # ------------------------------------------------------------------------------------------------- life of a panel

    def setup(self) -> None:
        self.logic.whileBusy = waiting
        top = slicer.util.loadUI(self._widget.resourcePath("UI/FewShotSeg.ui"))
        self._widget.layout.addWidget(top)
        self.ui = slicer.util.childWidgetVariables(top)
        setIcons(self.ui, lambda name: self._widget.resourcePath(f"Icons/{name}.svg"))
        self.segment = SegmentSection(self)
        self.exemplars = ExemplarSection(self)
        self.adapt = AdaptSection(self)
        self.result = ResultSection(self)
        self.batch = BatchSection(self)
        self.setupSection = SetupSection(self)
        self._sections = (self.segment, self.exemplars, self.adapt, self.result, self.batch, self.setupSection)
        self.logic.adapterFolder.changed.connect(self.refreshModels)
        top.setMRMLScene(slicer.mrmlScene)
        self._isReady = True
        self.lookForPackages()
        self.refreshModels()
        self.recall()
        self._timer = qt.QTimer()
        self._timer.setInterval(_SLOW_POLL_MS)
        self._timer.connect("timeout()", self._poll)
        self._timer.start()
        scene = slicer.mrmlScene
        self._observation = scene.AddObserver(scene.EndImportEvent, lambda _caller, _event: self.onSceneImported())
        self.update()

    def enter(self) -> None:
        self.lookForPackages()
        self.recall()
        self._timer.setInterval(_POLL_MS)
        self.segment.enter()
        self.refreshModels()

    def exit(self) -> None:
        self._timer.setInterval(_SLOW_POLL_MS)
        self.segment.exit()

    def cleanup(self) -> None:
        self._timer.stop()
        slicer.mrmlScene.RemoveObserver(self._observation)
        self.segment.exit()
        self.logic.adapterFolder.changed.disconnect(self.refreshModels)
        for section in (self.segment, self.exemplars, self.result):
            section.close()

    def onSceneStartClose(self, *_arguments: Any) -> None:
        self._isClosing = True
        self.segment.live.setTarget(None, None, None)

    def onSceneEndClose(self, *_arguments: Any) -> None:
        self._isClosing = False
        self.segment.onSceneChanged()
        self.update()

    def onSceneImported(self) -> None:
        """A scene was loaded; the choices that were saved with it hold again."""
        self.recall()
        self.segment.onSceneChanged()
        self.update()

    def _poll(self) -> None:
        self.logic.poll()

    # --------------------------------------------------------------------------------------------- what sections share

    @property
    def isEntered(self) -> bool:
        return bool(self._widget.parent.isEntered)

    @property
    def width(self) -> int:
        """Pixels a picture may take."""
        return min(self.ui.adaptSection.width - _BESIDE, 2 * _WIDEST) if self.ui.adaptSection.width > 100 else _WIDEST

    @property
    def volumeNode(self) -> Any:
        return None if self._isClosing else self.ui.volumeSelector.currentNode()

    @property
    def segmentationNode(self) -> Any:
        return None if self._isClosing else self.ui.segmentationSelector.currentNode()

    @property
    def segmentIds(self) -> tuple[str, ...]:
        node = self.segmentationNode
        return tuple(node.GetSegmentation().GetSegmentIDs()) if node is not None else ()

    @property
    def slice(self) -> tuple[int, int] | None:
        """(axis, index) of the slice that was last clicked or scrolled to; None when no view shows the volume."""
        layoutManager = slicer.app.layoutManager()
        if self.volumeNode is None or layoutManager is None:
            return None
        views = [layoutManager.sliceWidget(name).mrmlSliceNode() for name in layoutManager.sliceViewNames()]
        try:
            shown = [where for view in views if (where := SliceViews.viewedSlice(self.volumeNode, view)) is not None]
        except InputError:  # a volume without voxels, or under a warp: told where it is chosen
            return None
        active = self.logic.live.activeSlice
        return active if active in shown else next(iter(shown), None)

    @property
    def structure(self) -> str:
        """Name of the chosen structure."""
        return self.segment.structure

    def prompt(self) -> Any:
        """The clicks of the structure on the slice, None where there are none."""
        live, where = self.logic.live, self.slice
        if where is None or live.segmentId is None or live.promptOn(*where).isEmpty:
            return None
        return live.promptOn(*where)

    @property
    def hasPrompts(self) -> bool:
        """Whether any structure of the segmentation has clicks."""
        return bool(self.logic.live.prompts.segmentIds()) if self.segmentationNode is not None else False

    @property
    def device(self) -> str:
        return self.setupSection.device.value

    @property
    def isBusy(self) -> bool:
        """Whether the worker for jobs has something to do."""
        return bool(self.logic.runs)

    def lookForPackages(self) -> None:
        """See which Python packages are missing."""
        self.missing = Dependencies.missing()
        self.setupSection.refresh()

    def whyNotCompute(self) -> str:
        """Why nothing can be computed now, "" when it can."""
        return unless(not self.missing, _("Python packages are missing; see Settings and installation"))

    def say(self, sentence: str) -> None:
        """Show a sentence in Slicer's status bar for a moment."""
        slicer.util.showStatusMessage(sentence, 5000)

    def showVolume(self, volumeNode: Any) -> None:
        """Show a volume in the slice views, unless they show it already."""
        layoutManager = slicer.app.layoutManager()
        if layoutManager is None:
            return
        shown = {
            layoutManager.sliceWidget(name).sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID()
            for name in layoutManager.sliceViewNames()
        }
        if shown != {volumeNode.GetID()}:
            slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)

    def shownWindow(self) -> tuple[float, float] | None:
        """Lowest and highest intensity that the slice views show of the volume."""
        return Volumes.shownWindow(self.volumeNode) if self.volumeNode is not None else None

    def update(self) -> None:
        """Bring every section in step with what can be done now."""
        if self._isReady and not self._isClosing:
            for section in self._sections:
                section.update()

    def onMasksChanged(self) -> None:
        """A mask or a prompt changed: what other sections allow may have changed with it."""
        self.exemplars.update()
        self.result.update()

    def onInstalled(self) -> None:
        """Packages were installed: the processes start anew, with them."""
        self.lookForPackages()
        self.logic.restartWorkers()
        self.adapt.reload()
        self.update()

    def onAdapted(self, path: str) -> None:
        """Show a new adapter, and let it answer the clicks."""
        self.refreshModels()
        self.result.choose(path)
        self.ui.resultSection.collapsed = False
        self.segment.model.choose((path, None))
        self.update()

    # ---------------------------------------------------------------------------------------------------------- models

    def refreshModels(self) -> None:
        """Offer the base models that are on this computer, and the adapters that go with them."""
        if not self._isReady:
            return
        bases = [model.name for model in registry.models() if registry.location(model) is not None]
        self.cards = [card for card in self.logic.adapters() if card["base_model"] in (*bases, "")]
        ofBases = [(_("{name} (base model)").format(name=name), (None, name)) for name in bases]
        # A network of its own, without a base model, answers no clicks and cannot be gone on from.
        ofAdapters = [(card["name"], (card["path"], None)) for card in self.cards if card["base_model"]]
        self.segment.model.offer(ofBases + ofAdapters)
        self.adapt.start.offer(
            ofBases + [(_("go on from {name}").format(name=name), value) for name, value in ofAdapters]
        )
        self.batch.adapter.offer([(card["name"], card["path"]) for card in self.cards])
        self.result.showCards()
        self.update()

    # ---------------------------------------------------------------------------------------- what the scene remembers

    def remember(self) -> None:
        """Keep the choices in the scene."""
        if not self._isRecalling and not self._isClosing:
            self.choices.keep(
                {"Volume": self.volumeNode, "Segmentation": self.segmentationNode},
                {
                    "Recipes": self.adapt.recipes,
                    "Folders": self.adapt.folders,
                    "Method": self.adapt.method.value or self.choices.value("Method"),
                    "Model": self.segment.model.value,
                    "Device": self.device,
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
            self.setupSection.device.choose(device)
        self.adapt.recall()
        self._isRecalling = False
        self.remember()
