"""Settings: what is installed, where the model runs, where adapters lie."""

from __future__ import annotations

from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Installation import Installation, InstallProgress
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Signal import Signal

from .Chooser import Chooser
from .Selection import Selection
from .Status import Status, allow, announce, unless


class SetupSection:
    """Says what is missing and has it installed; offers a device and a folder; takes base models from files."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection) -> None:
        self.installed = Signal()
        """(): packages were installed."""
        self.ui, self.logic, self.selection = ui, logic, selection
        self.status = Status(ui.setupLabel)
        self.device = Chooser(ui.deviceSelector, self._onDevice)
        self.device.offer([(_("Automatic"), "auto"), (_("Graphics card (NVIDIA)"), "cuda"), (_("Processor"), "cpu")])
        ui.adapterFolderEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.adapterFolderEdit.setCurrentPath(str(logic.adapterFolder.folder))
        ui.adapterFolderEdit.connect("currentPathChanged(QString)", self._onFolder)
        self.installation = Installation(onProgress=self._onProgress, onDone=self._onInstalled, onError=self._onFailed)
        ui.installButton.connect("clicked(bool)", lambda _on: self._try(self.install))
        ui.cancelInstallButton.connect("clicked(bool)", lambda _on: self.installation.cancel())
        ui.addModelButton.connect("clicked(bool)", lambda _on: self._try(self.addModel))
        ui.setupNoticeButton.connect("clicked(bool)", lambda _on: self.show())

    def show(self) -> None:
        """Open the section, and the panel at it."""
        self.ui.setupSection.collapsed = False
        self.ui.installButton.setFocus()

    def close(self) -> None:
        """End what is being installed."""
        self.installation.close()

    def poll(self) -> None:
        """Look how far the installation is; returns at once."""
        self.installation.poll()

    def install(self) -> None:
        """Begin to install what is missing, after the user has agreed."""
        if Dependencies.permission():
            self.installation.start()
        self.update()

    def _onProgress(self, progress: InstallProgress) -> None:
        self.status.say(progress.sentence)
        bar = self.ui.installProgressBar
        bar.setRange(0, 0 if progress.fraction is None else 1000)  # without an end it only moves
        bar.setValue(round(1000 * (progress.fraction or 0.0)))

    def _onInstalled(self) -> None:
        self.installed()
        self.update()

    def _onFailed(self, sentence: str) -> None:
        self.selection.lookForPackages()
        self.status.fail(sentence)
        self.update()

    def addModel(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            None, _("Add a base model"), "", _("Model files (*.pth *.pt *.safetensors)")
        )
        if path:
            model = registry.add(path)
            self.selection.lookForModels()
            announce(_("{name} is now available as a base model.").format(name=model.name))

    def _onDevice(self) -> None:
        self.selection.device = self.device.value
        self.selection.chosen()

    def _onFolder(self, path: str) -> None:
        self._try(lambda: self.logic.adapterFolder.setFolder(path))

    def _try(self, action: Any) -> None:
        with self.status.trying():
            action()

    def refresh(self) -> None:
        """Look what is installed."""
        if self.installation.isRunning:
            return
        with self.status.trying():
            self.status.say(*Dependencies.summary().splitlines())

    def update(self) -> None:
        """Enable what can be done now, and say on top what is missing."""
        ui, missing, isRunning = self.ui, self.selection.missing, self.installation.isRunning
        allow(
            ui.installButton,
            unless(missing, _("everything is installed")),
            unless(not isRunning, _("it is in progress")),
            Dependencies.obstacle() if missing else "",
        )
        ui.installFrame.setVisible(isRunning)
        ui.setupNotice.setVisible(bool(missing))
        ui.setupNoticeLabel.setText(_("Some Python packages are missing. They only need to be installed once."))
