"""Section 3: from exemplars at once, or a method, its recipe, and the training that runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _

from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Scene import Segmentations
from FewShotSegSlicer.Signal import Signal
from FewShotSegSlicer.Workers.Run import durationInWords

from .Choices import Choices
from .Chooser import Chooser
from .FolderRow import FolderRow
from .Pictures import showInDialog
from .RecipeForm import RecipeForm
from .Selection import Selection
from .Status import Status, allow, busyCursor, unless
from .TrainingView import TrainingView

# What a method may need beside exemplars, each a folder: what that holds, and how `Logic.adapt` calls it.
_FOLDERS = {"auxiliary": "data sets", "source": "data sets", "targets": "volumes"}
_ARGUMENTS = {"auxiliary": "auxiliaryFolder", "source": "sourceFolder", "targets": "targetFolder"}


class AdaptSection:
    """Chooses how to adapt, previews and measures it, and shows how it goes on."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection, choices: Choices) -> None:
        self.adapted = Signal()
        """(file of the new adapter)"""
        self.ui, self.logic, self.selection, self.choices = ui, logic, selection, choices
        self.status = Status(ui.adaptStatusLabel)
        self.estimate = Status(ui.estimateLabel)
        self.method = Chooser(ui.methodSelector, self._onMethod)
        self.startModel = Chooser(ui.startSelector, self._onSettings)
        self.window = Chooser(ui.windowSelector, self._onSettings)
        self.training = TrainingView(ui)
        self._methods: dict[str, Mapping[str, Any]] = {}
        self._forms: dict[str, RecipeForm] = {}
        self._rows = {need: FolderRow(ui, need, holds, logic, self._onSettings) for need, holds in _FOLDERS.items()}
        self._asked = False
        self._started = 0.0
        ui.adaptSection.connect("contentsCollapsed(bool)", lambda collapsed: None if collapsed else self.load())
        actions = {
            ui.supportButton: self.segmentNow,
            ui.adaptButton: self.adapt,
            ui.previewButton: self.preview,
            ui.measureButton: self.measure,
            ui.stopButton: self.training.stopAndKeepBest,
            ui.cancelButton: self.training.cancel,
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        self.window.offer([(_("By modality"), False), (_("As in the slice views"), True)])
        self._showNeeds()

    # --------------------------------------------------------------------------------------------------------- methods

    def load(self) -> None:
        """Ask the worker which methods there are; it alone can import them."""
        if not self._asked and not self.selection.missing:
            self._asked = True
            self.status.say(_("Listing the methods..."))
            self.logic.methods(onDone=self._onMethods, onError=self._onMethodsFailed)

    def reload(self) -> None:
        """Ask again: something was installed."""
        self._asked = False
        if not self.ui.adaptSection.collapsed:
            self.load()

    def _onMethods(self, methods: Any) -> None:
        self.status.say("")
        self._methods = {entry["name"]: entry for entry in methods}
        wanted = self.choices.value("Method")  # before the first of the list is chosen and remembered
        self.method.offer([(_(entry["label"]), entry["name"]) for entry in methods])
        self.method.choose(wanted)
        if not self.status.isFailure:
            self.status.say(self._aboutInterrupted())

    def _aboutInterrupted(self) -> str:
        """What is to be gone on with, if anything: said once, when the section is opened."""
        interrupted = self.logic.interrupted()
        if not interrupted:
            return ""
        return _(
            "The adaptation of {names} of {date} was interrupted. Adapt with the same exemplars and settings to resume."
        ).format(names=", ".join(interrupted[0].structures), date=interrupted[0].date)

    def _onMethodsFailed(self, _kind: str, message: str) -> None:
        self._asked = False
        self.status.fail(message)

    def _onMethod(self) -> None:
        entry = self._methods.get(self.method.value)
        for form in self._forms.values():
            form.widget.setVisible(False)
        if entry is not None:
            form = self._forms.get(entry["name"]) or self._newForm(entry)
            form.widget.setVisible(True)
            alignLabels([*form.rowLabels(), *self._rowLabels()])
            self.ui.methodSelector.setToolTip(entry["about"])
        self._showNeeds()
        self._onSettings()

    def _newForm(self, entry: Mapping[str, Any]) -> RecipeForm:
        form = RecipeForm(entry["options"], self.ui.recipeContainer)
        self.ui.recipeContainer.layout().addWidget(form.widget)
        form.changed.connect(self._onSettings)
        self._forms[entry["name"]] = form
        self._showRemembered(entry["name"])
        return form

    def _showRemembered(self, method: str) -> None:
        """Show the recipe of a method that the scene remembers; one of another version may not fit any more."""
        with self.status.trying():
            self._forms[method].setRecipe(self.choices.value("Recipes", {}).get(method, {}))

    def _rowLabels(self) -> list[Any]:
        ui = self.ui
        return [
            ui.methodSelectorLabel,
            ui.startSelectorLabel,
            ui.newAdapterNameEditLabel,
            ui.windowSelectorLabel,
            ui.minutesSpinBoxLabel,
            *(row.label for need, row in self._rows.items() if need in self._needs),
        ]

    def _showNeeds(self) -> None:
        for need, row in self._rows.items():
            row.setNeeded(need in self._needs)

    @property
    def _needs(self) -> Sequence[str]:
        """What the chosen method needs."""
        return self._methods.get(self.method.value, {}).get("needs", ())

    def _onSettings(self) -> None:
        self.estimate.say("")
        self.selection.chosen()
        self.update()

    @property
    def recipes(self) -> dict[str, Any]:
        """{method: what was changed in its recipe}; of methods not looked at yet, what the scene remembers."""
        remembered = self.choices.value("Recipes", {})
        return {**remembered, **{name: form.recipe() for name, form in self._forms.items()}}

    @property
    def folders(self) -> dict[str, str]:
        """{need: the folder chosen for it}."""
        return {need: row.path for need, row in self._rows.items()}

    def recall(self) -> None:
        """Show the recipes and the folders that the scene remembers."""
        for need, path in self.choices.value("Folders", {}).items():
            if need in self._rows:
                self._rows[need].setPath(path)
        self.method.choose(self.choices.value("Method"))
        for name in self._forms:
            self._showRemembered(name)

    def showModels(self) -> None:
        """Offer the models to start from that there are now."""
        automatic = (_("Automatic"), (None, None))  # what does best with the method
        self.startModel.offer([automatic, *self.selection.models(_("continue from {name}"))])

    def startFrom(self, path: str) -> None:
        """Go on from an adapter, with the exemplars there are now."""
        self.ui.adaptSection.collapsed = False
        self.startModel.choose((path, None))

    # --------------------------------------------------------------------------------------------------------- actions

    def adapt(self) -> None:
        self._started = time.monotonic()
        run = self.logic.adapt(
            **self._settings(),
            name=self.ui.newAdapterNameEdit.text.strip(),
            progress=self.training.onProgress,
            onDone=self._onDone,
            onError=self._onError,
        )
        self._watch(run, _("Starting..."), hasCurves=True)

    def segmentNow(self) -> None:
        """Segment the chosen volume after the exemplars, without training, into a segmentation of its own."""
        adapter, base = self.startModel.value or (None, None)
        card = next((card for card in self.selection.cards if card["path"] == adapter), None)
        if card is not None and card["structures"]:  # it would bring its own; its base model is what is meant
            adapter, base = None, card["base_model"]
        run = self.logic.segment(
            self.selection.volumeNode,
            adapter,
            base=base,
            support=True,
            device=self.selection.device,
            window=self._window(),
            progress=self.training.onProgress,
            onDone=self._onSegmented,
            onError=self._onError,
            waitForCompletion=False,
        )
        self._watch(run, _("Checking the exemplars..."))

    def preview(self) -> None:
        run = self.logic.preview(**self._settings(), onDone=self._onPreview, onError=self._onError)
        self._watch(run, _("Generating samples..."))

    def measure(self) -> None:
        self.estimate.say("")
        run = self.logic.measure(**self._settings(), onDone=self._onMeasured, onError=self._onError)
        self._watch(run, _("Timing the first steps..."))

    def _watch(self, run: Any, sentence: str, hasCurves: bool = False) -> None:
        self.status.say("")
        self.training.watch(run, sentence, hasCurves)
        self.selection.changed()

    def _settings(self) -> dict[str, Any]:
        adapter, base = self.startModel.value or (None, None)
        minutes = self.ui.minutesSpinBox.value
        settings = {
            "method": self.method.value,
            "recipe": self._forms[self.method.value].recipe(),
            "warmStart": adapter,
            "maxSeconds": 60.0 * minutes or None,
            "device": self.selection.device,
            "window": self._window(),
        }
        if base is not None:
            settings["base"] = base
        if "exemplars" not in self._needs:
            settings["exemplars"] = ()
        return settings | {_ARGUMENTS[need]: row.path for need, row in self._rows.items() if need in self._needs}

    def _window(self) -> tuple[float, float] | None:
        return self.selection.shownWindow() if self.window.value else None

    def _try(self, action: Any) -> None:
        with self.status.trying(), busyCursor():  # volumes are written to files
            action()

    # --------------------------------------------------------------------------------------------------------- answers

    def _onDone(self, path: str) -> None:
        took = durationInWords(time.monotonic() - self._started)
        sentence = _("Adapted in {time}. The result is selected below.").format(time=took)
        self.status.done(sentence, self.training.warnings)
        self.adapted(str(path))

    def _onSegmented(self, node: Any) -> None:
        if Segmentations.volumeOf(node) is self.selection.volumeNode:
            self.ui.segmentationSelector.setCurrentNode(node)  # to be corrected
        sentence = _("Segmented into {name}. Click where it is wrong, or adapt.").format(name=node.GetName())
        self.status.done(sentence, self.training.warnings)
        self.selection.changed()

    def _onError(self, kind: str, message: str) -> None:
        if kind == "cancelled":
            self.status.say(_("Cancelled; nothing was kept."))
        else:
            self.status.fail(message)
        self.selection.changed()

    def _onPreview(self, path: Any) -> None:
        showInDialog(path, _("Training samples (preview)"))
        self.selection.changed()

    def _onMeasured(self, found: Mapping[str, Any]) -> None:
        device = _("the graphics card") if found["device"] == "cuda" else _("the processor")
        sentence = _("About {time} on {device}").format(time=durationInWords(found["seconds"]), device=device)
        if found["memory_bytes"]:
            sentence += _(", {size} of memory").format(size=sizeInWords(found["memory_bytes"]))
        if found["free_bytes"]:
            sentence += _(" ({size} free)").format(size=sizeInWords(found["free_bytes"]))
        self.estimate.say(sentence + ".")
        self.selection.changed()

    # --------------------------------------------------------------------------------------------------------- display

    def update(self) -> None:
        """Enable what can be done now."""
        ui = self.ui
        whyNot = self._whyNot()
        for button in (ui.adaptButton, ui.measureButton):
            allow(button, *whyNot)
        allow(
            ui.supportButton,
            self.selection.whyNotCompute(),
            unless(self.selection.volumeNode, _("choose a volume first")),
            unless(self.logic.exemplars.list(), _("add an exemplar first")),
            unless(not self.selection.isBusy, _("another task is running")),
        )
        allow(ui.previewButton, *whyNot, unless("exemplars" in self._needs, _("this method has no sample preview")))
        self.training.update()
        ui.newAdapterNameEdit.setPlaceholderText(self._proposedName())

    def _proposedName(self) -> str:
        structures = self.logic.exemplars.structures() if "exemplars" in self._needs else ()
        return "-".join(structures) or _("named after its structures")

    def _whyNot(self) -> tuple[str, ...]:
        hasExemplars = "exemplars" not in self._needs or self.logic.exemplars.list()
        missing = (unless(row.path, row.whyNot()) for need, row in self._rows.items() if need in self._needs)
        return (
            self.selection.whyNotCompute(),
            unless(self._methods, _("the methods are not known yet")),
            unless(not self.selection.isBusy, _("another task is running")),
            unless(hasExemplars, _("add an exemplar first")),
            *missing,
        )


def alignLabels(labels: Sequence[Any]) -> None:
    """Give the labels of several forms one width, so that their fields stand in one column."""
    widest = max(label.property("sizeHint").width() for label in labels)
    for label in labels:
        label.setMinimumWidth(widest)


def sizeInWords(count: int) -> str:
    """A number of bytes: 350 MB, 1.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
