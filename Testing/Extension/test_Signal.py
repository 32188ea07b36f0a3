"""Signals without Qt."""

from __future__ import annotations

import logging

import pytest
import slicer
import slicer.util

from FewShotSegSlicer.Signal import Signal


def test_listeners_hear_in_the_order_they_were_connected() -> None:
    heard, changed = [], Signal()
    changed.connect(lambda what: heard.append(("first", what)))
    changed.connect(lambda what: heard.append(("second", what)))
    changed("mask")
    assert heard == [("first", "mask"), ("second", "mask")]


def test_a_listener_connected_twice_hears_once() -> None:
    heard, changed = [], Signal()
    changed.connect(heard.append)
    changed.connect(heard.append)
    changed(1)
    assert heard == [1]


def test_a_disconnected_listener_hears_nothing_and_disconnecting_a_stranger_is_fine() -> None:
    heard, changed = [], Signal()
    changed.connect(heard.append)
    changed.disconnect(heard.append)
    changed.disconnect(print)
    changed(1)
    assert heard == []


def test_a_failing_listener_is_told_of_everywhere_and_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, changed, shown = [], Signal(), list[str]()
    monkeypatch.setattr(slicer.util, "showStatusMessage", lambda text, duration=0: shown.append(text))
    changed.connect(lambda: 1 / 0)
    changed.connect(lambda: heard.append("called"))
    with caplog.at_level(logging.ERROR):
        changed()
    assert heard == ["called"]
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert shown == ["FewShotSeg has a defect: ZeroDivisionError: division by zero"]


def test_a_listener_may_disconnect_itself_and_those_that_follow() -> None:
    heard, changed = [], Signal()

    def last() -> None:
        heard.append("last")

    def first() -> None:
        heard.append("first")
        changed.disconnect(first)
        changed.disconnect(last)

    changed.connect(first)
    changed.connect(last)
    changed()
    changed()
    assert heard == ["first"]
