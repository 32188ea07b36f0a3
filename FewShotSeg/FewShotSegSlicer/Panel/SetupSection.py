"""Settings: what is installed, where the model runs, where adapters lie."""

from __future__ import annotations

from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Signal import Signal

from .Chooser import Chooser
from .Selection import Selection
from .Status import Status, allow, announce, unless


class SetupSection:
    """Says what is missing and installs it; offers a device and a folder; takes base models from files."""

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
        ui.installButton.connect("clicked(bool)", lambda _on: self.install())
        ui.addModelButton.connect("clicked(bool)", lambda _on: self._try(self.addModel))
        ui.setupNoticeButton.connect("clicked(bool)", lambda _on: self.show())

    def show(self) -> None:
        """Open the section, and the panel at it."""
        self.ui.setupSection.collapsed = False
        self.ui.installButton.setFocus()

    def install(self) -> None:
        with self.status.trying():
            if Dependencies.install():
                self.installed()

    def addModel(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            None, _("Add a base model"), "", _("Model files (*.pth *.pt *.safetensors)")
        )
        if path:
            model = registry.add(path)
            self.selection.lookForModels()
            announce(_("{name} is offered as a base model now.").format(name=model.name))

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
        with self.status.trying():
            self.status.say(*Dependencies.summary().splitlines())

    def update(self) -> None:
        """Enable what can be done now, and say on top what is missing."""
        ui, missing = self.ui, self.selection.missing
        allow(ui.installButton, unless(missing, _("everything is installed")))
        ui.setupNotice.setVisible(bool(missing))
        ui.setupNoticeLabel.setText(_("Some Python packages are missing. They are installed once, with a button."))
