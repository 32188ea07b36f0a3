"""Status lines, and why a button cannot be pressed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import qt
import slicer

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Panel.Status import WARNING, Status, allow, announce, busyCursor, unless


@pytest.fixture
def label(slicerHost: Any) -> Any:
    return qt.QLabel()


@pytest.fixture
def status(label: Any) -> Status:
    return Status(label)


def test_words_are_shown_as_they_are_and_none_hide_the_line(status: Status, label: Any) -> None:
    status.say("a < b", "", "c & d")
    assert label.text == "a &lt; b<br>c &amp; d"
    assert not label.isHidden()
    status.say("")
    assert label.isHidden()


def test_of_many_warnings_the_first_are_shown(status: Status, label: Any) -> None:
    status.warn([f"number {n}" for n in range(6)])
    lines = label.text.split("<br>")
    assert lines == [*(f"{WARNING} number {n}" for n in range(4)), "and 2 more"]
    status.warn(["one"])
    assert label.text == f"{WARNING} one"
    assert not status.isFailure


def test_a_mistake_of_the_user_is_a_sentence_without_a_report(status: Status, label: Any) -> None:
    with status.trying():
        raise InputError("Choose a volume < 2 GB.")
    assert status.isFailure
    assert label.text == f"{WARNING} Choose a volume &lt; 2 GB."
    status.say("Better.")
    assert not status.isFailure


def test_a_defect_is_logged_and_its_report_can_be_copied(
    status: Status, label: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), status.trying():
        raise ZeroDivisionError("no")
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError: no" in label.text
    label.linkActivated.emit("report")
    assert qt.QApplication.clipboard().text().startswith("Traceback")


def test_a_widget_says_why_it_is_disabled_and_keeps_its_help(slicerHost: Any) -> None:
    button = qt.QPushButton()
    button.setToolTip("Draws.")
    allow(button, "", "choose a volume first", "choose a model first")
    assert (button.enabled, button.toolTip) == (False, "Draws.\nNot now: choose a volume first.")
    allow(button, "choose a model first")
    assert button.toolTip == "Draws.\nNot now: choose a model first."
    allow(button, unless(1, "unused"))
    assert (button.enabled, button.toolTip) == (True, "Draws.")


def test_a_reason_holds_unless_its_condition_does() -> None:
    assert [unless(condition, "why") for condition in (True, [1], None, (), 0)] == ["", "", "why", "why", "why"]


def test_the_cursor_asks_for_patience_until_the_block_has_ended(slicerHost: Any) -> None:
    before, shapes = qt.QApplication.overrideCursor(), list[Any]()

    def fail() -> None:
        with busyCursor():
            shapes.append(qt.QApplication.overrideCursor().shape())
            raise InputError("no")

    with pytest.raises(InputError):
        fail()
    assert shapes == [qt.Qt.WaitCursor]
    assert qt.QApplication.overrideCursor() == before


def test_an_announcement_goes_to_the_status_bar_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(slicer.util, "showStatusMessage", lambda *arguments: shown.append(arguments))
    announce("Exported.")
    assert shown == [("Exported.", 5000)]
