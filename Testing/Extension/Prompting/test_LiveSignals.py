"""What is told while the user clicks."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.LiveSignals import LiveSignals


def test_what_the_user_can_put_right_is_told_and_goes_no_further() -> None:
    signals, heard = LiveSignals(), list[str]()
    signals.failed.connect(heard.append)
    with signals.tellingErrors():
        raise InputError("Click inside the volume.")
    assert heard == ["Click inside the volume."]


def test_a_defect_is_not_hidden() -> None:
    signals, heard = LiveSignals(), list[str]()
    signals.failed.connect(heard.append)
    with pytest.raises(ZeroDivisionError), signals.tellingErrors():
        raise ZeroDivisionError
    assert heard == []


def test_two_segmenters_do_not_hear_each_other() -> None:
    first, second, heard = LiveSignals(), LiveSignals(), list[str]()
    first.changed.connect(lambda: heard.append("first"))
    second.changed()
    assert heard == []
