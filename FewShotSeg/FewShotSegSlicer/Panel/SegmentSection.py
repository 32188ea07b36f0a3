"""Section 1: what is segmented, by which model, and with which clicks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegSlicer.Prompting.PromptTool import PromptTool
from FewShotSegSlicer.Prompting.PromptView import Mode
from FewShotSegSlicer.Scene import OwnSegmentations, Segmentations, SliceViews

from .Chooser import Chooser
from .Status import Status, allow, unless

if TYPE_CHECKING:
    from .Panel import Panel

_OBLIQUE_DEG = 2.0  # from here on the difference can be seen


class SegmentSection:
    """Volume, segmentation, structures and model; the tools; and a line that says what to do next."""

    def __init__(self, panel: Panel) -> None:
        self.panel, self.ui, self.logic, self.live = panel, panel.ui, panel.logic, panel.logic.live
        self.status = Status(self.ui.clickStatusLabel)
        self.tool = PromptTool(self.live)
        self._said = ""
        self._chosenVolume: Any = None
        self.model = Chooser(self.ui.modelSelector, self._onModel)
        self.overwrite = Chooser(self.ui.overwriteSelector, self._setWriterOptions)
        self.inside = Chooser(self.ui.insideSelector, self._setWriterOptions)
        self.overwrite.offer(
            [
                (_("May overlap"), "none"),
                (_("Are overwritten where visible"), "visible"),
                (_("Are overwritten"), "all"),
            ]
        )
        self._tools: dict[Mode, Any] = {
            "positive": self.ui.positiveButton,
            "negative": self.ui.negativeButton,
            "box": self.ui.boxButton,
        }
        self._connect()

    def _connect(self) -> None:
        ui, live = self.ui, self.live
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onVolume)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onNodes)
        ui.structureTable.connect("selectionChanged(QItemSelection,QItemSelection)", self._onStructure)
        ui.structureNameEdit.connect("returnPressed()", self.addStructure)
        ui.structureNameEdit.connect("textChanged(QString)", self.update)
        for mode, button in self._tools.items():
            button.connect("clicked(bool)", lambda on, mode=mode: self._setMode(mode if on else "none"))
        actions = {
            ui.addStructureButton: self.addStructure,
            ui.removeStructureButton: self.removeStructure,
            ui.acceptButton: live.accept,
            ui.undoButton: live.undo,
            ui.redoButton: live.redo,
            ui.clearButton: self._clear,
            ui.propagateBackButton: lambda: self._propagate(-1),
            ui.propagateBothButton: lambda: self._propagate(0),
            ui.propagateForwardButton: lambda: self._propagate(1),
            ui.stopPropagationButton: live.cancelPropagation,
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        ui.intensityCheckBox.connect("toggled(bool)", self._setWriterOptions)
        for box in (ui.lowestSpinBox, ui.highestSpinBox):
            box.connect("valueChanged(double)", self._setWriterOptions)
        for signal, slot in self._listening():
            signal.connect(slot)

    def _listening(self) -> list[tuple[Any, Any]]:
        return [
            (self.live.changed, self._onLiveChanged),
            (self.live.failed, self.status.fail),
            (self.live.timed, self._onTimed),
            (self.live.moved, self._onMoved),
            (self.live.progressed, self._onProgress),
            (self.tool.modeChanged, self.update),
        ]

    # ----------------------------------------------------------------------------------------------- life of the panel

    def enter(self) -> None:
        self._showOwn()
        self.tool.install()
        if slicer.util.mainWindow() is not None:
            self.tool.installHotkeys(slicer.util.mainWindow())
        self._onNodes()

    def exit(self) -> None:
        self.tool.mode = "none"
        self.tool.removeHotkeys()
        self.tool.remove()
        self.live.leave()

    def close(self) -> None:
        self.live.setTarget(None, None, None)
        for signal, slot in self._listening():
            signal.disconnect(slot)

    # ------------------------------------------------------------------------------------------------------ structures

    def addStructure(self) -> None:
        """Add the structure that was typed, or choose it when it is there already."""
        name = self.ui.structureNameEdit.text.strip()
        if not name or self.panel.volumeNode is None:
            return
        node = self.panel.segmentationNode
        if node is None:
            node = Segmentations.newSegmentation(self.panel.volumeNode)
            self.ui.segmentationSelector.setCurrentNode(node)
        segmentId = Segmentations.segmentsByName(node).get(name) or Segmentations.addSegment(node, name)
        self.ui.structureNameEdit.clear()
        self.choose(segmentId)

    def removeStructure(self) -> None:
        segmentId = self.segmentId
        if segmentId is None:
            return
        segmentation = self.panel.segmentationNode.GetSegmentation()
        name = segmentation.GetSegment(segmentId).GetName()
        question = _("Remove {name} with all its masks and clicks? This cannot be undone.").format(name=name)
        if slicer.util.confirmOkCancelDisplay(question, _("Remove structure")):
            self.live.setTarget(self.panel.volumeNode, self.panel.segmentationNode, None)
            segmentation.RemoveSegment(segmentId)
            self.panel.update()

    @property
    def segmentId(self) -> str | None:
        """The chosen structure."""
        chosen = self.ui.structureTable.selectedSegmentIDs()
        return chosen[0] if self.panel.segmentationNode is not None and chosen else None

    @property
    def structure(self) -> str:
        """Name of the chosen structure, "" for none."""
        segmentId = self.segmentId
        return self.panel.segmentationNode.GetSegmentation().GetSegment(segmentId).GetName() if segmentId else ""

    def choose(self, segmentId: str) -> None:
        if self.segmentId != segmentId:
            self.ui.structureTable.setSelectedSegmentIDs([segmentId])
        self._onStructure()

    def _onVolume(self, _node: Any = None) -> None:
        """Another volume comes with its own segmentation, and without those of others."""
        self._showOwn()
        volumeNode, node = self.panel.volumeNode, self.panel.segmentationNode
        if volumeNode is not None and (node is None or not OwnSegmentations.belongsTo(node, volumeNode)):
            self.ui.segmentationSelector.setCurrentNode(OwnSegmentations.ofVolume(volumeNode))
        self._onNodes()

    def _showOwn(self) -> None:
        """Only when the volume has changed: what the user turns on afterwards stays on."""
        volumeNode = self.panel.volumeNode
        if volumeNode is self._chosenVolume or not self.panel.isEntered:
            return
        self._chosenVolume = volumeNode
        if volumeNode is not None and OwnSegmentations.showOnly(volumeNode):
            self.panel.say(_("Masks of other volumes are hidden; the module Data can show them."))

    def _onNodes(self, _node: Any = None) -> None:
        volumeNode, node = self.panel.volumeNode, self.panel.segmentationNode
        if node is not None and self.panel.isEntered:
            OwnSegmentations.want(node)
        if node is not None and node.GetDisplayNode() is None:  # the selector has just made it
            node.CreateDefaultDisplayNodes()
            if volumeNode is not None:
                node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        if self.ui.structureTable.segmentationNode() is not node:
            self.ui.structureTable.setSegmentationNode(node)
        if volumeNode is not None and self.panel.isEntered:
            self.panel.showVolume(volumeNode)
        ids = self.panel.segmentIds
        if ids and self.segmentId not in ids:
            self.ui.structureTable.setSelectedSegmentIDs([ids[0]])
        self._onStructure()

    def _onStructure(self, *_selection: Any) -> None:
        if not self.panel.isEntered:
            return
        self.status.say("")
        with self.status.trying():
            self.live.setTarget(self.panel.volumeNode, self.panel.segmentationNode, self.segmentId)
            Segmentations.claim(self.panel.segmentationNode, self.panel.volumeNode)
            self._said = ""
            self._setWriterOptions()
        self.panel.remember()
        self.panel.update()

    def onSceneChanged(self) -> None:
        """The scene was closed or another one was loaded."""
        self._chosenVolume = None
        self._showOwn()
        self._onNodes()

    def _onMoved(self, segmentId: str, _axis: int, _index: int) -> None:
        """Undo may reach into another structure; show it."""
        self.choose(segmentId)

    # ----------------------------------------------------------------------------------------------------------- model

    def _onModel(self) -> None:
        if self.model.value is not None:
            self.live.setModel(*self.model.value)
            self.panel.remember()

    # ----------------------------------------------------------------------------------------------------------- tools

    def _setMode(self, mode: Mode) -> None:
        self.tool.mode = mode
        self.update()

    def _try(self, action: Any) -> None:
        self._said = ""
        self.status.say("")
        with self.status.trying():
            action()
        self.update()

    def _clear(self) -> None:
        where = self.panel.slice
        if where is not None:
            self.live.clear(*where)

    def _propagate(self, direction: int) -> None:
        self.live.propagate(direction, self.ui.propagateSpinBox.value)

    def _setWriterOptions(self, *_value: Any) -> None:
        writer = self.live.writer
        if writer is None:
            return
        writer.overwriteMode = self.overwrite.value
        writer.editableInside = self.inside.value
        ui = self.ui
        limited = ui.intensityCheckBox.checked
        writer.editableIntensity = (ui.lowestSpinBox.value, ui.highestSpinBox.value) if limited else None

    # --------------------------------------------------------------------------------------------------------- display

    def _onLiveChanged(self) -> None:
        self.update()
        self.panel.onMasksChanged()

    def _onTimed(self, seconds: float) -> None:
        duration = f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        self._said = _("Mask after {duration}.").format(duration=duration)
        self.status.say("")
        self.update()

    def _onProgress(self, message: Any) -> None:
        if message["total"]:
            self._said = _("{step} of {total} slices.").format(step=message["step"], total=message["total"])
        self.update()

    def update(self, *_value: Any) -> None:
        """Enable what can be done now, and say what comes next."""
        ui, live, reason = self.ui, self.live, self._whyNotClick()
        names = self._otherStructures()
        self.inside.offer([(_("Everywhere"), None), *((_("Inside {name}").format(name=n), i) for i, n in names)])
        volume = unless(self.panel.volumeNode, _("choose a volume first"))
        allow(ui.structureNameEdit, volume)
        allow(ui.addStructureButton, volume, unless(ui.structureNameEdit.text.strip(), _("type a name first")))
        allow(ui.removeStructureButton, unless(self.segmentId, _("choose a structure first")))
        for mode, button in self._tools.items():
            allow(button, reason)
            button.checked = not reason and self.tool.mode == mode
        allow(ui.acceptButton, reason, unless(live.hasPreview or live.isWaiting, _("there is no new mask")))
        allow(ui.undoButton, unless(live.canUndo, _("there is nothing to undo")))
        allow(ui.redoButton, unless(live.canRedo, _("there is nothing to redo")))
        allow(ui.clearButton, reason, unless(self.panel.prompt(), _("this slice has no clicks and no box")))
        hasPrompts = live.segmentId is not None and live.prompts.slices(live.segmentId)
        for button in (ui.propagateBackButton, ui.propagateBothButton, ui.propagateForwardButton):
            allow(button, reason, unless(hasPrompts, _("click on a slice first")))
            button.setVisible(not live.isPropagating)
        ui.stopPropagationButton.setVisible(live.isPropagating)
        for box in (ui.lowestSpinBox, ui.highestSpinBox):
            box.setEnabled(ui.intensityCheckBox.checked)
        if not self.status.isFailure:
            self.status.say(self._sentence())

    def _otherStructures(self) -> list[tuple[str, str]]:
        node = self.panel.segmentationNode
        if node is None:
            return []
        return [(i, name) for name, i in Segmentations.segmentsByName(node).items() if i != self.segmentId]

    def _whyNotClick(self) -> str:
        volume = unless(self.panel.volumeNode, _("choose a volume first"))
        return self.panel.whyNotCompute() or volume or unless(self.segmentId, _("add a structure first"))

    def _sentence(self) -> str:
        if self.panel.volumeNode is None:
            return _("Load a volume and choose it above. Module Sample Data has two patients to try.")
        if self.panel.missing:
            return self.panel.whyNotCompute() + "."
        if self.segmentId is None:
            return _("Name a structure and press Add.")
        if self.live.isPropagating:
            return _("Following {name} through the slices. {said}").format(name=self.structure, said=self._said).strip()
        if self.live.hasPreview:
            return _("{said} Accept it, or correct it with more clicks.").format(said=self._said).strip()
        if self.tool.mode == "none":
            return self._adapterHint() or _("Press Inside, then click on {name} in a slice view.").format(
                name=self.structure
            )
        if self.tool.mode == "box":
            return self._oblique() or _("Drag a box around {name} in a slice view.").format(name=self.structure)
        if self.tool.mode == "positive":
            return self._oblique() or _("Click on {name} in a slice view.").format(name=self.structure)
        return self._oblique() or _("Click where there is no {name} in a slice view.").format(name=self.structure)

    def _adapterHint(self) -> str:
        """An adapter that has learned the structure, while a base model is chosen."""
        names = [card["name"] for card in self.panel.cards if self.structure in card["structures"].values()]
        if not names or self.model.value is None or self.model.value[0] is not None:
            return ""
        return _("The adapter {name} has learned {structure}: choose it as the model.").format(
            name=names[0], structure=self.structure
        )

    def _oblique(self) -> str:
        """A hint where the view cuts the volume askew: masks lie on the volume's own slices."""
        views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
        angle = max((SliceViews.sliceObliqueness(self.panel.volumeNode, view) for view in views), default=0.0)
        if angle < _OBLIQUE_DEG:
            return ""
        return _("A view is turned by {angle:.0f}° against the slices of the volume; masks follow the volume.").format(
            angle=angle
        )


def setIcons(ui: Any, icon: Any) -> None:
    """Give the tools their pictures; `icon(name)` is the path of one."""
    pictures = {
        ui.positiveButton: "Inside",
        ui.negativeButton: "Outside",
        ui.boxButton: "Box",
        ui.acceptButton: "Accept",
        ui.undoButton: "Undo",
        ui.redoButton: "Redo",
        ui.clearButton: "Clear",
        ui.propagateBackButton: "Back",
        ui.propagateBothButton: "Both",
        ui.propagateForwardButton: "Forward",
    }
    for button, name in pictures.items():
        button.setIcon(qt.QIcon(icon(name)))
