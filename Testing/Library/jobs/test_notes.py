"""What a record keeps of what was said while a job ran."""

from __future__ import annotations

import itertools
import logging
import threading
import time

import numpy as np
import pytest

from FewShotSegLib.errors import Cancelled, StopAndKeepBest
from FewShotSegLib.jobs.notes import Notes, timed
from FewShotSegLib.progress import Progress, note, silent, stage_picture, warning
from Testing.conftest import Listener

PICTURE = np.zeros((2, 3, 3), np.uint8)


def test_all_that_is_said_is_passed_on_and_only_warnings_are_kept_each_once(a_listener: Listener) -> None:
    notes = Notes(a_listener)
    for progress in (Progress(1, 4, "adapting"), note("Going on."), warning("Odd."), warning("Odd."), warning("Late.")):
        notes(progress)
    assert a_listener.messages == ["adapting", "Going on.", "Odd.", "Odd.", "Late."]
    assert notes.warnings == ["Odd.", "Late."]


def test_what_is_said_and_warned_of_have_their_kinds(a_listener: Listener) -> None:
    notes = Notes(a_listener)
    notes.say("Working on the CPU.")
    notes.warn("The GPU is full.")
    assert [progress.kind for progress in a_listener.heard] == ["note", "warning"]
    assert notes.warnings == ["The GPU is full."]


def test_pictures_of_finished_stages_are_kept_and_those_of_steps_are_not(a_listener: Listener) -> None:
    notes = Notes(a_listener)
    notes(Progress(1, 2, "adapting", picture=PICTURE))
    notes(stage_picture("translated", PICTURE))
    assert list(notes.pictures) == ["translated"]
    assert notes.pictures["translated"] is PICTURE


def test_each_of_several_parts_has_warnings_of_its_own_and_its_share_of_the_work(a_listener: Listener) -> None:
    whole = Notes(a_listener)
    first, second = (whole.part(number, 2, name) for number, name in enumerate(("a.nrrd", "b.nrrd")))
    first(Progress(6, 6, "slice"))
    second.warn("b.nrrd: liver is empty.")
    second(Progress(3, 6, "slice"))
    assert (whole.warnings, first.warnings, second.warnings) == ([], [], ["b.nrrd: liver is empty."])
    shares = [progress.fraction for progress in a_listener.heard if progress.kind == "step"]
    assert shares == [0.5, 0.75]
    assert a_listener.messages == ["a.nrrd: slice", "b.nrrd: liver is empty.", "b.nrrd: slice"]


def test_a_part_passes_on_that_the_work_is_cancelled() -> None:
    def cancel(progress: Progress) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        Notes(cancel).part(0, 2, "a.nrrd")(Progress(1, 6, "slice"))


def test_the_seconds_of_blocks_of_one_name_add_up_also_of_those_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.accumulate([10.0, 1.5, 4.0, 2.25, 100.0, 0.125])  # starts and ends, turn by turn
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    timings: dict[str, float] = {}
    with timed(timings, "load"):
        pass
    with pytest.raises(ValueError, match="broken"), timed(timings, "load"):
        raise ValueError("broken")
    with timed(timings, "save"):
        pass
    assert timings == {"load": 3.75, "save": 0.125}


def test_what_the_library_logs_while_it_is_heard_is_told_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Progress] = []
    notes, log = Notes(told.append), logging.getLogger("FewShotSegLib.io.dicom")
    with notes.hearing():
        log.warning("%s holds %d series.", "ct", 2)
        log.info("read")
        other = threading.Thread(target=log.warning, args=("of another job",))
        other.start()
        other.join()
    log.warning("afterwards")
    assert notes.warnings == ["ct holds 2 series."]
    assert [(progress.kind, progress.message) for progress in told] == [("warning", "ct holds 2 series.")]
    assert "of another job" in caplog.text
    assert "afterwards" in caplog.text


def test_of_notes_within_notes_the_inner_hear_and_afterwards_nothing_is_left_behind() -> None:
    logger = logging.getLogger("FewShotSegLib")
    outer, inner = Notes(silent), Notes(silent)
    with outer.hearing():
        with inner.hearing():
            logger.warning("within")
        logger.warning("around")
        assert not logger.propagate
    assert (inner.warnings, outer.warnings) == (["within"], ["around"])
    assert logger.propagate
    assert not logger.handlers


def test_a_run_that_was_stopped_is_not_broken_off_where_something_is_logged() -> None:
    def report(progress: Progress) -> None:
        raise StopAndKeepBest

    notes = Notes(report)
    with notes.hearing():
        logging.getLogger("FewShotSegLib.io").warning("left out")
    assert notes.warnings == ["left out"]
