"""Section 1: what is segmented, by which model, and with which clicks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Prompting.PromptTool import PromptTool
from FewShotSegSlicer.Prompting.PromptView import Mode
from FewShotSegSlicer.Scene import OwnSegmentations, Segmentations, SliceViews

from .Chooser import Chooser
from .NextStep import nextStep
from .NodeChooser import NodeChooser
from .Selection import Selection
from .Status import Status, allow, announce, unless


class SegmentSection:
    """Volume, segmentation, structures and model; the tools; and a line that says what to do next."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection, isEntered: Callable[[], bool]) -> None:
        """`isEntered()` says whether the module is shown; only then views and other nodes are touched."""
        self.ui, self.live, self.selection, self._isEntered = ui, logic.live, selection, isEntered
        self.status = Status(ui.clickStatusLabel)
        self.tool = PromptTool(self.live)
        self._said = ""
        self._chosenVolume: Any = None
        self.model = Chooser(ui.modelSelector, self._onModel)
        self.overwrite = Chooser(ui.overwriteSelector, self._setWriterOptions)
        self.inside = Chooser(ui.insideSelector, self._setWriterOptions)
        others = [
            (_("May overlap"), "none"),
            (_("Are overwritten where visible"), "visible"),
            (_("Are overwritten"), "all"),
        ]
        self.overwrite.offer(others)
        self._tools: dict[Mode, Any] = {
            "positive": ui.positiveButton,
            "negative": ui.negativeButton,
            "box": ui.boxButton,
        }
        self._connect()

    def _connect(self) -> None:
        ui, live = self.ui, self.live
        self.volume = NodeChooser(ui.volumeSelector, self._onVolume)
        self.segmentation = NodeChooser(ui.segmentationSelector, self._onNodes, self._onWanted)
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
            (self.live.changed, self.update),
            (self.live.failed, self.status.fail),
            (self.live.timed, self._onTimed),
            (self.live.moved, self._onMoved),
            (self.live.progressed, self._onProgress),
            (self.tool.modeChanged, self.update),
        ]

    # ----------------------------------------------------------------------------------------------- life of the panel

    def enter(self) -> None:
        """Take clicks and keys from now on."""
        self._showOwn()
        self.tool.install()
        if slicer.util.mainWindow() is not None:
            self.tool.installHotkeys(slicer.util.mainWindow())
        self._onNodes()

    def exit(self) -> None:
        """Put the tool down, and leave clicks and keys to Slicer."""
        self.tool.mode = "none"
        self.tool.removeHotkeys()
        self.tool.remove()
        self.live.leave()

    def close(self) -> None:
        """Let go of the nodes, and listen no longer."""
        self.live.setTarget(None, None, None)
        for signal, slot in self._listening():
            signal.disconnect(slot)

    # ------------------------------------------------------------------------------------------------------ structures

    def addStructure(self) -> None:
        """Add the structure that was typed, or choose it when it is there already."""
        name = self.ui.structureNameEdit.text.strip()
        if not name or self.selection.volumeNode is None:
            return
        node = self.selection.segmentationNode
        if node is None:
            node = Segmentations.newSegmentation(self.selection.volumeNode)
            self.ui.segmentationSelector.setCurrentNode(node)
        segmentId = Segmentations.segmentsByName(node).get(name) or Segmentations.addSegment(node, name)
        self.ui.structureNameEdit.clear()
        self.choose(segmentId)

    def removeStructure(self) -> None:
        segmentId = self.selection.segmentId
        if segmentId is None:
            return
        segmentation = self.selection.segmentationNode.GetSegmentation()
        name = segmentation.GetSegment(segmentId).GetName()
        question = _("Remove {name} with all its masks and clicks? This cannot be undone.").format(name=name)
        if slicer.util.confirmOkCancelDisplay(question, _("Remove structure")):
            self.live.setTarget(self.selection.volumeNode, self.selection.segmentationNode, None)
            segmentation.RemoveSegment(segmentId)
            self.selection.changed()

    def choose(self, segmentId: str) -> None:
        """Choose a structure."""
        if self.selection.segmentId != segmentId:
            self.ui.structureTable.setSelectedSegmentIDs([segmentId])
        self._onStructure()

    def _onVolume(self, _node: Any = None) -> None:
        """Another volume comes with its own segmentation, and without those of others."""
        self._showOwn()
        volumeNode, node = self.selection.volumeNode, self.selection.segmentationNode
        if volumeNode is not None and (node is None or not OwnSegmentations.belongsTo(node, volumeNode)):
            self.ui.segmentationSelector.setCurrentNode(OwnSegmentations.ofVolume(volumeNode))
        self._onNodes()

    def _showOwn(self) -> None:
        """Only when the volume has changed: what the user turns on afterwards stays on."""
        volumeNode = self.selection.volumeNode
        if volumeNode is self._chosenVolume or not self._isEntered():
            return
        self._chosenVolume = volumeNode
        if volumeNode is not None and OwnSegmentations.showOnly(volumeNode):
            announce(_("Masks of other volumes are hidden; the module Data can show them."))

    def _onWanted(self, node: Any) -> None:
        """The user has chosen this segmentation by hand, and so wants to see it."""
        if node is not None:
            OwnSegmentations.want(node)

    def _onNodes(self, _node: Any = None) -> None:
        volumeNode, node = self.selection.volumeNode, self.selection.segmentationNode
        if node is not None and node.GetDisplayNode() is None:  # the selector has just made it
            node.CreateDefaultDisplayNodes()
            if volumeNode is not None:
                node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        if self.ui.structureTable.segmentationNode() is not node:
            self.ui.structureTable.setSegmentationNode(node)
        if volumeNode is not None and self._isEntered():
            SliceViews.showVolume(volumeNode)
        ids = self.selection.segmentIds
        if ids and self.selection.segmentId not in ids:
            self.ui.structureTable.setSelectedSegmentIDs([ids[0]])
        self._onStructure()

    def _onStructure(self, *_selection: Any) -> None:
        if not self._isEntered():
            return
        self.status.say("")
        with self.status.trying():
            self.live.setTarget(self.selection.volumeNode, self.selection.segmentationNode, self.selection.segmentId)
            Segmentations.claim(self.selection.segmentationNode, self.selection.volumeNode)
            self._said = ""
            self._setWriterOptions()
        self.selection.chosen()
        self.selection.changed()

    def onSceneChanged(self) -> None:
        """The scene was closed or another one was loaded."""
        self._chosenVolume = None
        self._showOwn()
        self._onNodes()

    def _onMoved(self, segmentId: str, _axis: int, _index: int) -> None:
        """Undo may reach into another structure; show it."""
        self.choose(segmentId)

    # ----------------------------------------------------------------------------------------------------------- model

    def showModels(self) -> None:
        """Offer the models that there are now."""
        self.model.offer(self.selection.models())

    def _onModel(self) -> None:
        if self.model.value is not None:
            self.live.setModel(*self.model.value)
            self.selection.chosen()

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
        where = self.selection.slice
        if where is not None:
            self.live.clear(*where)

    def _propagate(self, direction: Literal[-1, 0, 1]) -> None:
        self.live.propagate(direction, self.ui.propagateSpinBox.value)

    def _setWriterOptions(self, *_value: Any) -> None:
        writer = self.live.writer
        if writer is None:
            return
        writer.area.overwriteMode = self.overwrite.value
        writer.area.inside = self.inside.value
        ui = self.ui
        limited = ui.intensityCheckBox.checked
        writer.area.intensity = (ui.lowestSpinBox.value, ui.highestSpinBox.value) if limited else None

    # --------------------------------------------------------------------------------------------------------- display

    def _onTimed(self, seconds: float) -> None:
        duration = f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        self._said = _("Mask after {duration}.").format(duration=duration)  # shown by what the live mask changes next
        self.status.say("")

    def _onProgress(self, message: Any) -> None:
        if message["total"]:
            self._said = _("{step} of {total} slices.").format(step=message["step"], total=message["total"])
        self.update()

    def update(self, *_value: Any) -> None:
        """Enable what can be done now, and say what comes next."""
        ui, live, reason = self.ui, self.live, self._whyNotClick()
        names = self._otherStructures()
        self.inside.offer([(_("Everywhere"), None), *((_("Inside {name}").format(name=n), i) for i, n in names)])
        volume = unless(self.selection.volumeNode, _("choose a volume first"))
        allow(ui.structureNameEdit, volume)
        allow(ui.addStructureButton, volume, unless(ui.structureNameEdit.text.strip(), _("enter a name first")))
        allow(ui.removeStructureButton, unless(self.selection.segmentId, _("choose a structure first")))
        for mode, button in self._tools.items():
            allow(button, reason)
            button.checked = not reason and self.tool.mode == mode
        allow(ui.acceptButton, reason, unless(live.hasPreview or live.isWaiting, _("there is no new mask")))
        allow(ui.undoButton, unless(live.canUndo, _("there is nothing to undo")))
        allow(ui.redoButton, unless(live.canRedo, _("there is nothing to redo")))
        allow(ui.clearButton, reason, unless(self.selection.prompt(), _("this slice has no clicks and no box")))
        hasPrompts = live.segmentId is not None and live.prompts.slices(live.segmentId)
        for button in (ui.propagateBackButton, ui.propagateBothButton, ui.propagateForwardButton):
            allow(button, reason, unless(hasPrompts, _("click on a slice first")))
            button.setVisible(not live.isPropagating)
        ui.stopPropagationButton.setVisible(live.isPropagating)
        for box in (ui.lowestSpinBox, ui.highestSpinBox):
            box.setEnabled(ui.intensityCheckBox.checked)
        if not self.status.isFailure:
            said = nextStep(self.selection, live, self.tool.mode, self.model.value, self._said)
            self.status.say(said, self._keysOfOthers())

    def _keysOfOthers(self) -> str:
        """Which keys to use where another module has taken ours."""
        changed = [(key, used) for key, used in self.tool.keys.items() if used != key and "+" not in key]
        if not changed:
            return ""
        instead = [used or _("the button") for _key, used in changed]
        return _("Another module uses the keys {old}; use {new} here.").format(
            old=", ".join(key for key, _used in changed), new=", ".join(instead)
        )

    def _otherStructures(self) -> list[tuple[str, str]]:
        node = self.selection.segmentationNode
        if node is None:
            return []
        return [(i, name) for name, i in Segmentations.segmentsByName(node).items() if i != self.selection.segmentId]

    def _whyNotClick(self) -> str:
        volume = unless(self.selection.volumeNode, _("choose a volume first"))
        return self.selection.whyNotCompute() or volume or unless(self.selection.segmentId, _("add a structure first"))


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
