"""Bars: who sees them, and what becomes of notes and warnings."""

from __future__ import annotations

import io
import logging
import sys
import types

import pytest

from FewShotSegLib.progress import Progress, note, warning
from FewShotSegLib.visualization import progress_bar
from FewShotSegLib.visualization.progress_bar import ProgressBar, is_counted, is_watched, reporting


def test_a_bar_shows_stage_share_and_loss() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream)
    bar(Progress(1, 4, "slice 1 of 4", {"loss": 0.25}))
    bar(Progress(4, 4, "slice 4 of 4"))
    bar(Progress(1, 2, "saving"))
    bar.close()
    bar.close()
    last = stream.getvalue().replace("\r", "\n")
    assert "slice 4 of 4 100%" in last
    assert "saving" in last
    assert last.count("\n\n") == 1  # the first bar has ended, the second one begins on a line of its own


def test_reports_without_a_number_are_sentences() -> None:
    counted = [Progress(1, 4), Progress(0, 4), Progress(1, 0), note("hello"), warning("odd")]
    assert [is_counted(progress) for progress in counted] == [True, True, False, False, False]


def test_a_terminal_and_a_notebook_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not is_watched()
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert is_watched()


@pytest.mark.parametrize(("wanted", "watched", "shown"), [(None, True, 1), (None, False, 0), (True, False, 1)])
def test_bars_are_for_those_who_look_or_ask(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None, watched: bool, shown: int
) -> None:
    bars: list[ProgressBar] = []

    class Counted(ProgressBar):
        def __call__(self, progress: Progress) -> None:
            bars.append(self)

    monkeypatch.setattr(progress_bar, "ProgressBar", Counted)
    monkeypatch.setattr(progress_bar, "is_watched", lambda: watched)
    with reporting(wanted) as report:
        report(Progress(1, 2, "adapting"))
    assert len(bars) == shown


def test_warnings_become_pythons_and_notes_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with reporting(False) as report:
        report(note("Working on the CPU."))
        report(Progress(1, 2, "adapting"))
        with pytest.warns(UserWarning, match="single voxel"):
            report(warning("single voxel"))
    assert [record.getMessage() for record in caplog.records] == ["Working on the CPU."]


def test_a_function_hears_everything() -> None:
    heard: list[Progress] = []
    with reporting(heard.append) as report:
        report(warning("w"))
        report(Progress(1, 2))
    assert len(heard) == 2
