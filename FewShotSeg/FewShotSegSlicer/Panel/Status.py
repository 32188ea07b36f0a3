"""What the panel says: a line for each section, and why a button cannot be pressed."""

from __future__ import annotations

import contextlib
import html
import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError

WARNING = '<span style="color: #d64545">⚠</span>'

_ANNOUNCED_MS = 5000
log = logging.getLogger(__name__)


class Status:
    """The status line of a section. Failures stand out, and the report of a defect can be copied from it."""

    def __init__(self, label: Any) -> None:
        self._label, self._report, self._isFailure = label, "", False
        label.setTextFormat(qt.Qt.RichText)
        label.connect("linkActivated(QString)", self._copyReport)
        self.say("")

    def say(self, *sentences: str) -> None:
        """Show plain words, each sentence on a line of its own; none hides the label."""
        self._isFailure = False
        self._show("<br>".join(html.escape(sentence) for sentence in sentences if sentence))

    def done(self, sentence: str, warnings: Sequence[str]) -> None:
        """Show that something was done, and what the user should know about it."""
        self._isFailure = False
        self._show("<br>".join([html.escape(sentence), *self._marked(warnings, 4)]))

    def warn(self, sentences: Sequence[str], most: int = 4) -> None:
        """Show what the user should know; of many, the first."""
        self._show("<br>".join(self._marked(sentences, most)))

    @staticmethod
    def _marked(sentences: Sequence[str], most: int) -> list[str]:
        rest = [_("and {count} more").format(count=len(sentences) - most)] if len(sentences) > most else []
        return [*(f"{WARNING} {html.escape(sentence)}" for sentence in sentences[:most]), *rest]

    def fail(self, message: str) -> None:
        """Show what went wrong: a sentence, and after an empty line the report of a defect, if it is one."""
        sentence, _empty, self._report = message.partition("\n\n")
        text = f"{WARNING} {html.escape(sentence)}"
        if self._report:
            text += f' <a href="report">{_("Copy report")}</a>'
        self._isFailure = True
        self._show(text)

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Show what the block raises. An InputError is for the user to mend; anything else is a defect of ours."""
        try:
            yield
        except InputError as error:
            self.fail(str(error))
        except Exception as error:
            log.exception("Defect")
            self.fail(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")

    @property
    def isFailure(self) -> bool:
        """Whether the line tells of a failure."""
        return self._isFailure

    def _show(self, text: str) -> None:
        if text != self._label.text:
            self._label.setText(text)
        self._label.setVisible(bool(text))

    def _copyReport(self, _link: str) -> None:
        qt.QApplication.clipboard().setText(self._report)


@contextlib.contextmanager
def busyCursor() -> Iterator[None]:
    """Show the cursor that asks for patience; no events are handled meanwhile, as slicer.util.WaitCursor would."""
    qt.QApplication.setOverrideCursor(qt.QCursor(qt.Qt.WaitCursor))
    try:
        yield
    finally:
        qt.QApplication.restoreOverrideCursor()


def announce(sentence: str) -> None:
    """Show a sentence in Slicer's status bar for a moment."""
    slicer.util.showStatusMessage(sentence, _ANNOUNCED_MS)


def allow(widget: Any, *reasons: str) -> None:
    """Enable a widget when all `reasons` are empty; else disable it, with the first one in its tooltip."""
    if widget.property("help") is None:
        widget.setProperty("help", widget.toolTip)
    reason = next(filter(None, reasons), "")
    told = widget.property("help")
    widget.setEnabled(not reason)
    widget.setToolTip(f"{told}\n{_('Not now: {reason}.').format(reason=reason)}" if reason else told)


def unless(condition: Any, reason: str) -> str:
    """The reason, or "" when the condition holds."""
    return "" if condition else reason
