"""A row of the panel for a folder that a method needs, and a line under it that says what the folder holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ctk
from slicer.i18n import tr as _

from FewShotSegSlicer.Logic import Logic

from .Status import Status

_MOST = 6  # data sets that are named


class FolderRow:
    """`need` is what a method calls it; the widgets of the form are named after that. `holds` is what the folder is
    expected to hold: "data sets" or "volumes". `onChange` is called when another folder was chosen.
    """

    def __init__(self, ui: Any, need: str, holds: str, logic: Logic, onChange: Callable[[], Any]) -> None:
        self._frame, self._edit = getattr(ui, f"{need}Frame"), getattr(ui, f"{need}Edit")
        self.label = getattr(ui, f"{need}EditLabel")
        self._about = Status(getattr(ui, f"{need}AboutLabel"))
        self._holds, self._logic, self._onChange = holds, logic, onChange
        self._described, self._isNeeded = "", False
        self._edit.filters = ctk.ctkPathLineEdit.Dirs
        self._edit.connect("currentPathChanged(QString)", self._onPath)

    @property
    def path(self) -> str:
        """The chosen folder, "" without one."""
        return self._edit.currentPath

    def setPath(self, path: str) -> None:
        """Choose a folder, as the user would."""
        if path != self.path:
            self._edit.setCurrentPath(path)

    def whyNot(self) -> str:
        """Why the method cannot begin while no folder is chosen."""
        return _("choose the folder of {name} first").format(name=self.label.text.rstrip(":").lower())

    def setNeeded(self, isNeeded: bool) -> None:
        """Show the row only where the method asks for the folder."""
        self._isNeeded = isNeeded
        self._frame.setVisible(isNeeded)
        self._describe()

    def _onPath(self, _path: str) -> None:
        self._about.say("")
        self._described = ""
        self._describe()
        self._onChange()

    def _describe(self) -> None:
        """Have the worker look into the folder: that may be a large one, or far away."""
        path = self.path
        if not self._isNeeded or path == self._described or not path or not Path(path).is_dir():
            return
        self._described = path
        self._logic.describeFolder(
            path,
            self._holds,
            onDone=lambda found: self._tell(path, _contentInWords(found)),
            onError=lambda kind, message: self._tell(path, message if kind == "input" else "", isWarning=True),
        )

    def _tell(self, path: str, sentence: str, isWarning: bool = False) -> None:
        if path != self.path:  # another one was chosen meanwhile
            return
        if sentence and isWarning:
            self._about.fail(sentence)
        else:
            self._about.say(sentence)


def _contentInWords(found: Mapping[str, Any]) -> str:
    if "volumes" in found:
        return _("{count} volumes").format(count=found["volumes"])
    dataSets = found["data_sets"]
    more = _(" and {count} more").format(count=len(dataSets) - _MOST) if len(dataSets) > _MOST else ""
    return "; ".join(_dataSetInWords(one) for one in dataSets[:_MOST]) + more


def _dataSetInWords(one: Mapping[str, Any]) -> str:
    """CHAOS: 20 cases, MR, CC BY 4.0."""
    parts = [_("{count} cases").format(count=one["cases"]), one["modality"], one["licence"]]
    return f"{one['name']}: {', '.join(part for part in parts if part)}"
