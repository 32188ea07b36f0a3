"""Section 5: many volumes, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from FewShotSegSlicer.Logic import Logic

from .Chooser import Chooser
from .NodeChooser import NodeChooser
from .Selection import Selection
from .Status import Status, allow, unless
from .Worklist import Worklist

_FOLDER, _FILES, _SEQUENCE = range(3)


class BatchSection:
    """Segments a folder, files, or a sequence of the scene with an adapter, into a folder."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection) -> None:
        self.ui, self.logic, self.selection = ui, logic, selection
        self.status = Status(ui.batchStatusLabel)
        self.source = Chooser(ui.batchSourceSelector, self._onSource)
        self.adapter = Chooser(ui.batchAdapterSelector, self.update)
        self.files: tuple[str, ...] = ()
        self.run: Any = None
        self._table: Path | None = None
        self.worklist = Worklist(ui, logic, selection, self.status)
        for edit in (ui.batchFolderEdit, ui.batchOutputEdit):
            edit.filters = ctk.ctkPathLineEdit.Dirs
            edit.connect("currentPathChanged(QString)", self.update)
        ui.batchOutputEdit.connect("currentPathChanged(QString)", lambda path: self._try(lambda: self._onOutput(path)))
        self.sequence = NodeChooser(ui.sequenceSelector, self.update)
        actions = {
            ui.chooseFilesButton: self.chooseFiles,
            ui.runBatchButton: self.start,
            ui.cancelBatchButton: self.cancel,
            ui.openTableButton: lambda: _open(self._table),
            ui.openFolderButton: lambda: _open(self._table.parent if self._table else None),
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        self.source.offer([(_("Folder"), _FOLDER), (_("Files"), _FILES), (_("Sequence in the scene"), _SEQUENCE)])

    def showModels(self) -> None:
        """Offer the adapters that there are now."""
        self.adapter.offer([(card["name"], card["path"]) for card in self.selection.cards])

    def chooseFiles(self) -> None:
        chosen = qt.QFileDialog.getOpenFileNames(
            None, _("Choose volumes"), "", _("Volumes (*.nrrd *.nhdr *.nii *.nii.gz *.mha *.mhd *.dcm);;All files (*)")
        )
        if chosen:
            self.files = tuple(chosen)
            self.update()

    def start(self) -> None:
        self.ui.batchOutputEdit.addCurrentPathToHistory()
        self.ui.batchProgressBar.setValue(0)
        self.status.say(_("Starting..."))
        self.run = self.logic.processBatch(
            self._volumes(),
            self.adapter.value,
            self.ui.batchOutputEdit.currentPath,
            device=self.selection.device,
            allPieces=self.ui.batchAllPiecesCheckBox.checked,
            overwrite=self.ui.overwriteCheckBox.checked,
            progress=self._onProgress,
            onDone=self._onDone,
            onError=self._onError,
            waitForCompletion=False,
        )
        self.selection.changed()

    def cancel(self) -> None:
        self.run.cancel()

    def _volumes(self) -> Any:
        """What is to be segmented; None when nothing is chosen."""
        if self.source.value == _FOLDER:
            return self.ui.batchFolderEdit.currentPath or None
        return self.ui.sequenceSelector.currentNode() if self.source.value == _SEQUENCE else self.files or None

    def _try(self, action: Any) -> None:
        with self.status.trying():
            action()

    def _onSource(self) -> None:
        self.ui.batchStack.setCurrentIndex(self.source.value)
        self.update()

    def _onOutput(self, path: str) -> None:
        """Go on with the results of an earlier batch, where there are some."""
        if path and Path(path).is_dir():
            self.worklist.show(path)

    def _onProgress(self, message: Mapping[str, Any]) -> None:
        if message["total"]:
            self.ui.batchProgressBar.setValue(round(100 * (message["fraction"] or 0.0)))
        self.status.say(message["message"])

    def _onDone(self, table: Any) -> None:
        self._table = Path(table)
        self.worklist.show(self._table.parent)
        sentence = _("Done. Volumes and quality flags are in {name}.").format(name=self._table.name)
        self.status.done(sentence, self.run.warnings if self.run is not None else ())
        self.selection.changed()

    def _onError(self, kind: str, message: str) -> None:
        if kind == "cancelled":
            self.status.say(_("Cancelled. Completed volumes are kept; run again to resume."))
        else:
            self.status.fail(message)
        self.selection.changed()

    @property
    def isRunning(self) -> bool:
        return self.run is not None and self.run.isRunning

    def update(self, *_value: Any) -> None:
        """Enable what can be done now."""
        ui = self.ui
        count = len(self.files)
        ui.chooseFilesButton.setText(
            _("{count} files chosen...").format(count=count) if count else _("Choose files...")
        )
        allow(
            ui.runBatchButton,
            self.selection.whyNotCompute(),
            unless(not self.selection.isBusy, _("another task is running")),
            unless(self._volumes(), _("choose the volumes first")),
            unless(self.adapter.value, _("there is no adapter yet; adapt first")),
            unless(ui.batchOutputEdit.currentPath, _("choose the output folder first")),
        )
        ui.batchFrame.setVisible(self.isRunning)
        self.worklist.update()
        for button in (ui.openTableButton, ui.openFolderButton):
            allow(button, unless(self._table, _("nothing has been run yet")))


def _open(path: Path | None) -> None:
    if path is not None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path)))
