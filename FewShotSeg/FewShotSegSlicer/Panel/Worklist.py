"""The list of what a batch has made: open the next one at its doubtful slice, and accept, correct or skip it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import save_labelmap
from FewShotSegSlicer.Jobs import Worklist as Findings
from FewShotSegSlicer.Jobs.Worklist import Finding
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Scene import Results, Segmentations, SliceViews
from FewShotSegSlicer.Workers.JobFiles import fileName

from .Selection import Selection
from .Status import Status, allow, unless


class Worklist:
    """Belongs to the section of the batch. What it opens, it takes out of the scene again when the next one comes."""

    def __init__(self, ui: Any, logic: Logic, selection: Selection, status: Status) -> None:
        self.ui, self.logic, self.selection, self.status = ui, logic, selection, status
        self.findings: list[Finding] = []
        self._folder: Path | None = None
        self._opened: Finding | None = None
        self._nodes: tuple[Any, ...] = ()  # volume and segmentation of what is open
        self._loaded: tuple[Any, ...] = ()  # those of them that were loaded for it
        actions = {
            ui.nextResultButton: self.openNext,
            ui.acceptResultButton: lambda: self._judge("accepted"),
            ui.correctResultButton: self.correct,
            ui.skipResultButton: lambda: self._judge("skipped"),
        }
        for button, action in actions.items():
            button.connect("clicked(bool)", lambda _on, action=action: self._try(action))
        ui.resultList.connect("itemDoubleClicked(QListWidgetItem*)", lambda _item: self._try(self._openChosen))

    def show(self, folder: str | Path) -> None:
        """Show what lies in the folder of a batch; a folder without results shows nothing."""
        self._folder = Path(folder)
        self._opened, self._nodes, self._loaded = None, (), ()
        self.refresh()

    def refresh(self) -> None:
        """Read the folder anew."""
        self.findings = Findings.findings(self._folder) if self._folder is not None else []
        view = self.ui.resultList
        view.clear()
        for finding in self.findings:
            item = qt.QListWidgetItem(_textOf(finding))
            item.setToolTip(finding.error or finding.image)
            view.addItem(item)
        self.update()

    # --------------------------------------------------------------------------------------------------------- actions

    def openNext(self) -> None:
        """Open the first one that nobody has looked at."""
        waiting = [one for one in self.findings if not one.verdict and not one.error]
        if not waiting:
            raise InputError(_("All results have been reviewed."))
        self.open(waiting[0])

    def _openChosen(self) -> None:
        row = self.ui.resultList.currentRow
        if 0 <= row < len(self.findings):
            self.open(self.findings[row])

    def open(self, finding: Finding) -> None:
        """Show a volume with its result, at the slice that was least sure."""
        if finding.error:
            raise InputError(finding.error)
        self._putAway()
        volumeNode = _nodeOf(finding)
        isOurs = volumeNode is None
        if volumeNode is None:
            volumeNode = slicer.util.loadVolume(finding.image)
        segmentationNode = Results.intoScene(finding.file, volumeNode, None, finding.name)
        self._opened, self._nodes = finding, (volumeNode, segmentationNode)
        self._loaded = (segmentationNode, volumeNode) if isOurs else (segmentationNode,)
        self.ui.volumeSelector.setCurrentNode(volumeNode)
        self.ui.segmentationSelector.setCurrentNode(segmentationNode)
        if finding.where is not None:
            SliceViews.jumpToSlice(volumeNode, *finding.where)
        flags = "; ".join(finding.flags) or _("no flags")
        self.status.say(_("{name}: {flags}. Accept, correct or skip it.").format(name=finding.name, flags=flags))
        self.update()

    def correct(self) -> None:
        """Write the masks as they are now to the file of the result, and offer the slice as an exemplar."""
        finding = self._open()
        volumeNode, segmentationNode = self._nodes
        self.logic.live.accept()
        save_labelmap(Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode), finding.file)
        question = _("Saved to {name}. Add the slice as an exemplar for the next adapter?")
        where = self.selection.slice
        if where is not None and slicer.util.confirmYesNoDisplay(question.format(name=finding.file.name)):
            self.logic.exemplars.addSlice(volumeNode, segmentationNode, *where)
        self._judge("corrected")

    def _judge(self, verdict: str) -> None:
        Findings.review(self._open(), verdict)
        self.refresh()
        left = sum(not one.verdict and not one.error for one in self.findings)
        self._opened = None
        if left:
            self.openNext()
        else:
            self._putAway()
            self.status.say(
                _("All results have been reviewed; the verdicts are in {table}.").format(table=Findings.TABLE)
            )
        self.update()

    def _open(self) -> Finding:
        if self._opened is None or not all(map(Results.isInScene, self._nodes)):
            raise InputError(_("Open a result first: press Next, or double-click it in the list."))
        return self._opened

    def _putAway(self) -> None:
        for node in self._loaded:
            if Results.isInScene(node):
                slicer.mrmlScene.RemoveNode(node)
        self._opened, self._nodes, self._loaded = None, (), ()

    def _try(self, action: Any) -> None:
        with self.status.trying():
            action()

    # --------------------------------------------------------------------------------------------------------- display

    def update(self) -> None:
        """Enable what can be done now."""
        ui = self.ui
        ui.resultFrame.setVisible(bool(self.findings))
        allow(
            ui.nextResultButton,
            unless(any(not one.verdict for one in self.findings), _("all results have been reviewed")),
        )
        for button in (ui.acceptResultButton, ui.correctResultButton, ui.skipResultButton):
            allow(button, unless(self._opened, _("open a result first")))


def _nodeOf(finding: Finding) -> Any:
    """The volume of the scene that a result was made of, None for one from a file."""
    if Path(finding.image).exists():
        return None
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if fileName(node.GetName()) == finding.name:
            return node
    raise InputError(
        _("The volume {name} is neither a file nor in the scene any more: load it again.").format(name=finding.name)
    )


def _textOf(finding: Finding) -> str:
    """Two lines: its name with what was said of it, and what is doubtful."""
    words = {"accepted": _("accepted"), "corrected": _("corrected"), "skipped": _("skipped")}
    state = f" ({words[finding.verdict]})" if finding.verdict else ""
    doubt = _("not segmented: {error}").format(error=finding.error) if finding.error else "; ".join(finding.flags)
    return f"{finding.name}{state}\n{doubt or _('no flags')}"
