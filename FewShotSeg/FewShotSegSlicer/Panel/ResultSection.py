"""Section 4: the adapters, what each is worth, and what it does to a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegSlicer.Jobs.Comparison import Comparison
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Scene import Segmentations, SliceViews
from FewShotSegSlicer.Signal import Signal

from . import AdapterCard
from .Chooser import Chooser
from .NodeChooser import NodeChooser
from .Pictures import overlaid, pixmapOf, showIn, showInDialog, sideBySide, widthIn
from .Selection import Selection
from .Status import Status, allow, unless

_PATH = qt.Qt.UserRole
_FLICKER_MS = 600
_PICTURE_HEIGHT = 220


class ResultSection:
    """The list of adapters with their cards; base and adapted mask of a slice; the way on to a whole volume."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection) -> None:
        self.continued = Signal()
        """(file of the adapter to continue training)"""
        self.ui, self.logic, self.selection = ui, logic, selection
        self.status = Status(ui.resultStatusLabel)
        self.into = Chooser(ui.applyIntoSelector, self.update)
        self.run: Any = None
        self._pictures: tuple[Any, ...] = ()  # base, adapted, both side by side
        self._number = 0
        self._isComparing = False
        self._timer = qt.QTimer()
        self._timer.setInterval(_FLICKER_MS)
        self._timer.connect("timeout()", self._flicker)
        actions: dict[Any, Callable[[], Any]] = {
            ui.keepButton: self.keep,
            ui.discardButton: self.discard,
            ui.continueButton: self.learnOn,
            ui.reportButton: self.showReport,
            ui.compareButton: self.compare,
            ui.suggestButton: self.suggest,
            ui.applyButton: self.apply,
            ui.cancelApplyButton: self.cancel,
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        ui.adapterList.connect("currentRowChanged(int)", self._onChoice)
        ui.adapterNameEdit.connect("editingFinished()", self._rename)
        ui.flickerCheckBox.connect("toggled(bool)", self._showPictures)
        self.applyVolume = NodeChooser(ui.applyVolumeSelector, self.update)
        self._forgetComparison()

    def close(self) -> None:
        """Stop showing pictures in turn."""
        self._timer.stop()

    # ------------------------------------------------------------------------------------------------------------ list

    @property
    def card(self) -> Mapping[str, Any] | None:
        """The card of the chosen adapter."""
        item = self.ui.adapterList.currentItem()
        path = item.data(_PATH) if item is not None else None
        return next((card for card in self.selection.cards if card["path"] == path), None)

    def showModels(self) -> None:
        """Take over the list of adapters; the choice stays."""
        view, chosen = self.ui.adapterList, self.card
        view.blockSignals(True)
        view.clear()
        for card in self.selection.cards:
            mark = _(" (new)") if card["isNew"] else ""
            item = qt.QListWidgetItem(f"{card['name']}{mark}\n{AdapterCard.lineOf(card)}")
            item.setData(_PATH, card["path"])
            item.setToolTip(card["path"])
            view.addItem(item)
        view.blockSignals(False)
        self.choose(chosen["path"] if chosen else "")

    def choose(self, path: str) -> None:
        """Choose an adapter in the list; for one that is not there, the newest."""
        paths = [card["path"] for card in self.selection.cards]
        if paths:
            self.ui.adapterList.setCurrentRow(paths.index(path) if path in paths else 0)
        self._onChoice()

    def _onChoice(self, *_row: Any) -> None:
        card = self.card
        self.ui.adapterNameEdit.setText(card["name"] if card else "")
        self.ui.cardLabel.setText(AdapterCard.textOf(card) if card else "")
        self.ui.cardLabel.setVisible(card is not None)
        report = self.logic.adapterFolder.reportOf(card["path"]) if card else None
        self.ui.reportButton.setVisible(report is not None)
        self._forgetComparison()
        self.update()

    # --------------------------------------------------------------------------------------------------------- actions

    def _chosen(self) -> Mapping[str, Any]:
        """The card, for buttons that cannot be pressed without one."""
        card = self.card
        assert card is not None
        return card

    def keep(self) -> None:
        self.logic.keep(self._chosen())

    def discard(self) -> None:
        card = self._chosen()
        question = _("Permanently delete the adapter {name}?").format(name=card["name"])
        if slicer.util.confirmOkCancelDisplay(question, _("Discard adapter")):
            self.logic.discard(card)

    def showReport(self) -> None:
        card = self._chosen()
        path = self.logic.adapterFolder.reportOf(card["path"])
        if path is not None:
            showInDialog(path, _("Training of {name}").format(name=card["name"]))

    def learnOn(self) -> None:
        self.continued(self._chosen()["path"])

    def apply(self) -> None:
        self.logic.live.saveToScene()  # from where the clicks are taken
        self.ui.applyProgressBar.setValue(0)
        self.status.say(_("Starting..."))
        self.run = self.logic.segment(
            self.ui.applyVolumeSelector.currentNode(),
            self.card,
            self.selection.segmentationNode if self.into.value else None,
            prompts=True if self.into.value and self.ui.usePromptsCheckBox.checked else None,
            allPieces=self.ui.allPiecesCheckBox.checked,
            smoothingMm=self.ui.smoothingSpinBox.value,
            device=self.selection.device,
            progress=self._onProgress,
            onDone=self._onApplied,
            onError=self._onError,
            waitForCompletion=False,
        )
        self.selection.changed()

    def cancel(self) -> None:
        self.run.cancel()

    def compare(self) -> None:
        card, where, structure = self._chosen(), self.selection.slice, self.selection.structure
        assert where is not None
        known = structure if structure in card["structures"].values() else None
        self.logic.compare(
            self.selection.volumeNode,
            *where,
            card,
            self.selection.prompt(),
            self._onCompared,
            self._onError,
            structure=known,
            device=self.selection.device,
        )
        self._isComparing = True
        self.status.say(_("Running both models..."))

    def suggest(self) -> None:
        self.ui.applyProgressBar.setValue(0)
        self.run = self.logic.suggestNextSlice(
            self.selection.volumeNode,
            self._chosen(),
            progress=self._onProgress,
            onDone=self._onSuggested,
            onError=self._onError,
        )
        self.status.say(_("Looking for the least certain slice..."))

    def _try(self, action: Callable[[], Any]) -> None:
        with self.status.trying():
            action()
        self.selection.changed()

    def _rename(self) -> None:
        card, name = self.card, self.ui.adapterNameEdit.text.strip()
        if card is not None and name and name != card["name"]:
            self._try(lambda: self.choose(str(self.logic.rename(card, name))))

    # --------------------------------------------------------------------------------------------------------- answers

    @property
    def isRunning(self) -> bool:
        return self.run is not None and self.run.isRunning

    def _onProgress(self, message: Mapping[str, Any]) -> None:
        self.ui.applyProgressBar.setValue(round(100 * (message["fraction"] or 0.0)))
        self.status.say(message["message"])

    def _onApplied(self, node: Any) -> None:
        selection = self.selection
        if selection.segmentationNode is None and Segmentations.volumeOf(node) is selection.volumeNode:
            self.ui.segmentationSelector.setCurrentNode(node)  # to be corrected
        sentence = _("Segmented into {name}. Review it before you rely on it.").format(name=node.GetName())
        self.status.done(sentence, self.run.warnings)
        self.selection.changed()

    def _onSuggested(self, where: tuple[int, int]) -> None:
        if self.selection.volumeNode is not None:
            SliceViews.jumpToSlice(self.selection.volumeNode, *where)
        self.status.say(
            _(
                "The adapter is least certain on slice {index}. Correct its masks there and add it as an exemplar."
            ).format(index=where[1])
        )
        self.selection.changed()

    def _onError(self, kind: str, message: str) -> None:
        self._isComparing = False
        if kind == "cancelled":
            self.status.say(_("Cancelled."))
        else:
            self.status.fail(message)
        self.selection.changed()

    # ------------------------------------------------------------------------------------------------------ comparison

    def _onCompared(self, found: Comparison) -> None:
        self._isComparing = False
        self.status.say("")
        base = found.onScreen(overlaid(found.image, found.base))
        adapted = found.onScreen(overlaid(found.image, found.adapted, found.base))
        self._pictures = (pixmapOf(base), pixmapOf(adapted), pixmapOf(sideBySide(base, adapted)))
        self.ui.compareTextLabel.setText(
            _("Left: base model; right: adapter. {added} voxels added (green), {removed} removed (red).").format(
                added=found.added, removed=found.removed
            )
        )
        self.ui.compareTextLabel.setVisible(True)
        self._showPictures()
        self.update()

    def _forgetComparison(self) -> None:
        self._timer.stop()
        self._pictures = ()
        self.ui.compareLabel.setVisible(False)
        self.ui.compareTextLabel.setVisible(False)

    def _showPictures(self, *_on: Any) -> None:
        """Base and adapted side by side, or in turn."""
        self._timer.stop()
        if self._pictures and self.ui.flickerCheckBox.checked:
            self._flicker()
            self._timer.start()
        elif self._pictures:
            self._show(2)

    def _flicker(self) -> None:
        self._show(0 if self._number == 1 else 1)

    def _show(self, number: int) -> None:
        self._number = number
        showIn(self.ui.compareLabel, self._pictures[number], widthIn(self.ui.adaptSection), _PICTURE_HEIGHT)

    # --------------------------------------------------------------------------------------------------------- display

    def update(self, *_value: Any) -> None:
        """Enable what can be done now."""
        ui, selection, card = self.ui, self.selection, self.card
        adapter = unless(card, _("there is no adapter yet; adapt first"))
        ready = selection.whyNotCompute() or adapter
        busy = unless(not selection.isBusy, _("another task is running"))
        shown = unless(selection.slice, _("show the volume in a slice view first"))
        allow(ui.adapterNameEdit, adapter)
        allow(ui.keepButton, adapter, unless(card and card["isNew"], _("it is kept already")))
        allow(ui.discardButton, adapter)
        promptable = unless(card is None or card["base_model"], _("it is a stand-alone network without a base model"))
        allow(ui.continueButton, adapter, promptable)
        knows = card is not None and selection.structure in card["structures"].values()
        asked = unless(selection.prompt() is not None or knows, _("click on the structure first"))
        compared = unless(not self._isComparing, _("the models are running"))
        allow(ui.compareButton, ready, promptable, shown, asked, compared)
        allow(ui.flickerCheckBox, unless(self._pictures, _("compare first")))
        nameless = _("it has no named structures: use clicks or exemplars")
        named = unless(card is None or card["structures"], nameless)
        allow(ui.suggestButton, ready, promptable, named, shown, busy)
        ui.resultHintLabel.setVisible(not selection.cards)
        self._updateApply(ready or named, busy)

    def _updateApply(self, ready: str, busy: str) -> None:
        ui, volumeNode = self.ui, self.ui.applyVolumeSelector.currentNode()
        isHere = volumeNode is not None and volumeNode is self.selection.volumeNode
        node = self.selection.segmentationNode if isHere else None
        self.into.offer([(_("A new segmentation"), False), *([(node.GetName(), True)] if node is not None else [])])
        allow(ui.applyButton, ready, unless(volumeNode, _("choose a volume first")), busy)
        clicks = unless(self.selection.hasPrompts, _("there are no clicks"))
        allow(ui.usePromptsCheckBox, unless(self.into.value, _("clicks belong to their own segmentation")), clicks)
        ui.applyFrame.setVisible(self.isRunning)
