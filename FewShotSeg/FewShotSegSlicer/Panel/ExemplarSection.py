"""Section 2: the annotated slices that the model learns from."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegLib.data.volume import AXIS_LETTERS
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Scene import SliceViews

from .Chooser import Chooser
from .Pictures import pixmapOf
from .Selection import Selection
from .Status import Status, allow, announce, busyCursor, unless

_ID = qt.Qt.UserRole
_THUMBNAIL = 56  # pixels


class ExemplarSection:
    """Adding slices in one click, the list of exemplars, and what is wrong with them."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection) -> None:
        self.ui, self.selection = ui, selection
        self.store, self.live = logic.exemplars, logic.live
        self.status = Status(ui.preflightLabel)
        actions = {
            ui.addSliceButton: self.addSlice,
            ui.addAnnotatedButton: self.addAnnotated,
            ui.emptySliceButton: self.markEmpty,
            ui.removeExemplarButton: self.removeChosen,
            ui.importExemplarsButton: self.importBundle,
            ui.exportExemplarsButton: self.exportBundle,
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        ui.exemplarList.connect("itemSelectionChanged()", self._onChoice)
        ui.exemplarList.connect("itemDoubleClicked(QListWidgetItem*)", self._onDoubleClick)
        ui.exemplarList.connect("itemChanged(QListWidgetItem*)", self._onTick)
        ui.exemplarNameEdit.connect("editingFinished()", self._rename)
        self.learn = Chooser(ui.learnSelector, self._onLearn)
        self._finished: dict[tuple[int, int], tuple[Any, Any]] = {}  # slice -> its nodes; to be kept in the next turn
        self._count = 0  # annotated slices that are learned from
        self._adaptedFrom = 0  # those that the last adaptation has learned from
        self._hint = ui.exemplarHintLabel.text
        self.store.changed.connect(self._onStoreChanged)
        self.live.accepted.connect(self._onAccepted)
        self._onStoreChanged()

    def close(self) -> None:
        """Listen no longer."""
        self.store.changed.disconnect(self._onStoreChanged)
        self.live.accepted.disconnect(self._onAccepted)
        self._finished.clear()

    # --------------------------------------------------------------------------------------------------------- actions

    def addSlice(self) -> None:
        """Keep the shown slice, and accept the mask that is shown on it."""
        self.live.accept()
        axis, index = self._slice()
        self._choose(self.store.addSlice(self.selection.volumeNode, self.selection.segmentationNode, axis, index))

    def addAnnotated(self) -> None:
        self.live.accept()
        with busyCursor():
            self._choose(self.store.addAnnotatedSlices(self.selection.volumeNode, self.selection.segmentationNode))

    def markEmpty(self) -> None:
        axis, index = self._slice()
        self._choose(self.store.markEmpty(self.selection.volumeNode, axis, index))

    def _onAccepted(self, axis: int, index: int) -> None:
        """Keep a slice whose mask was accepted, where the user wants that; not yet, since it is being written."""
        if self.ui.learnAsYouGoCheckBox.checked:
            if not self._finished:
                qt.QTimer.singleShot(0, lambda: self._try(self._keepFinished))
            self._finished[axis, index] = self.selection.volumeNode, self.selection.segmentationNode

    def _keepFinished(self) -> None:
        finished, self._finished = self._finished, {}
        for (axis, index), nodes in finished.items():
            if nodes == (self.selection.volumeNode, self.selection.segmentationNode) and None not in nodes:
                self.store.addSlice(*nodes, axis, index)

    def noteAdapted(self) -> None:
        """Take note that an adapter has learned from what there is."""
        self._adaptedFrom = self._count
        self.update()

    def _slice(self) -> tuple[int, int]:
        where = self.selection.slice
        if where is None:
            raise InputError(_("No slice view shows the volume; scroll to one of its slices."))
        return where

    def removeChosen(self) -> None:
        for exemplarId in self._chosen():
            self.store.remove(exemplarId)

    def importBundle(self) -> None:
        path = qt.QFileDialog.getOpenFileName(None, _("Import exemplars"), "", _("Exemplars (*.zip)"))
        if path:
            with busyCursor():
                self.store.importBundle(path)

    def exportBundle(self) -> None:
        path = qt.QFileDialog.getSaveFileName(None, _("Export exemplars"), "exemplars.zip", _("Exemplars (*.zip)"))
        if path:
            with busyCursor():
                self.store.exportBundle(path)
            announce(_("Exported to {path}.").format(path=path))

    def _try(self, action: Any) -> None:
        with self.status.trying():
            action()

    def _rename(self) -> None:
        chosen, name = self._chosen(), self.ui.exemplarNameEdit.text.strip()
        known = {exemplar.id: exemplar.name for exemplar in self.store.list()}
        if len(chosen) == 1 and name and known.get(chosen[0]) != name:
            self._try(lambda: self.store.rename(chosen[0], name))

    # ------------------------------------------------------------------------------------------------------------ list

    def _onStoreChanged(self) -> None:
        chosen, exemplars = self._chosen(), self.store.list()
        self._count = sum(len(exemplar.slices) for exemplar in exemplars if exemplar.isEnabled)
        view = self.ui.exemplarList
        view.blockSignals(True)
        view.clear()
        for exemplar in exemplars:
            picture = pixmapOf(self.store.thumbnail(exemplar.id, 2 * _THUMBNAIL))
            item = qt.QListWidgetItem(qt.QIcon(picture), _textOf(exemplar))
            item.setData(_ID, exemplar.id)
            item.setToolTip(_textOf(exemplar))
            item.setCheckState(qt.Qt.Checked if exemplar.isEnabled else qt.Qt.Unchecked)
            view.addItem(item)
            item.setSelected(exemplar.id in chosen)
        view.blockSignals(False)
        names = dict.fromkeys(name for exemplar in exemplars for name in exemplar.structures.values())
        self.learn.offer([(_("All structures"), None), *((name, name) for name in names)])
        with self.status.trying():
            self.status.warn(self.store.preflight() if exemplars else ())
        self._onChoice()
        self.selection.changed()

    def _onChoice(self) -> None:
        chosen = self._chosen()
        names = {exemplar.id: exemplar.name for exemplar in self.store.list()}
        self.ui.exemplarNameEdit.setText(names.get(chosen[0], "") if len(chosen) == 1 else "")
        self.update()

    def _onTick(self, item: Any) -> None:
        """Ticked exemplars are learned from."""
        self.store.setEnabled(item.data(_ID), item.checkState() == qt.Qt.Checked)

    def _onLearn(self) -> None:
        names = [name for exemplar in self.store.list() for name in exemplar.structures.values()]
        self.store.enableForStructures(names if self.learn.value is None else [self.learn.value])

    def _onDoubleClick(self, item: Any) -> None:
        """Show the slice, if its volume is still in the scene."""
        exemplar = next(e for e in self.store.list() if e.id == item.data(_ID))
        volumeNode = slicer.mrmlScene.GetFirstNodeByName(exemplar.volumeName)
        if volumeNode is not None and volumeNode.IsA("vtkMRMLScalarVolumeNode"):
            SliceViews.showVolume(volumeNode)
            SliceViews.jumpToSlice(volumeNode, exemplar.axis, (*exemplar.slices, *exemplar.emptySlices)[0])

    def _chosen(self) -> list[str]:
        return [item.data(_ID) for item in self.ui.exemplarList.selectedItems()]

    def _choose(self, exemplar: Any) -> None:
        view = self.ui.exemplarList
        for row in range(view.count):
            view.item(row).setSelected(view.item(row).data(_ID) == exemplar.id)

    # --------------------------------------------------------------------------------------------------------- display

    def update(self) -> None:
        """Enable what can be done now."""
        ui, chosen, selection = self.ui, self._chosen(), self.selection
        volume = unless(selection.volumeNode, _("choose a volume first"))
        shown = unless(selection.slice, _("no slice view shows the volume"))
        masks = unless(selection.segmentIds, _("there is no structure yet"))
        allow(ui.addSliceButton, volume, shown, masks)
        allow(ui.addAnnotatedButton, volume, masks)
        allow(ui.emptySliceButton, volume, shown)
        allow(ui.removeExemplarButton, unless(chosen, _("choose an exemplar in the list first")))
        allow(ui.exemplarNameEdit, unless(len(chosen) == 1, _("choose one exemplar in the list first")))
        hasAny = bool(ui.exemplarList.count)
        for widget in (ui.exportExemplarsButton, ui.learnSelector):
            allow(widget, unless(hasAny, _("there are no exemplars yet")))
        more = self._count - self._adaptedFrom
        # On real cases three times the slices gave .01 to .06 more Dice; a few more gave nothing to speak of.
        pays = bool(self._adaptedFrom) and more >= self._adaptedFrom
        again = _("Annotated slices since the last adaptation: {more}. Adapting again is worthwhile.").format(more=more)
        ui.exemplarHintLabel.setText(again if pays else self._hint)
        ui.exemplarHintLabel.setVisible(pays or not hasAny)


def _textOf(exemplar: Any) -> str:
    """Three lines: its name, what it shows, and where it comes from as far as the name does not say it."""
    slices = (*exemplar.slices, *exemplar.emptySlices)
    many = _("{count} slices").format(count=len(slices))
    place = f"{AXIS_LETTERS[exemplar.axis]}={', '.join(map(str, slices))}" if len(slices) < 4 else many
    shows = ", ".join(exemplar.structures.values()) if exemplar.slices else _("negative example")
    source = [part for part in (exemplar.volumeName, place, exemplar.date[:16]) if part not in exemplar.name]
    return f"{exemplar.name}\n{shows}\n{' · '.join(source)}"
