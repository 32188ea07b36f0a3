"""The report that every caller relies on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from FewShotSegLib.errors import Cancelled, StopAndKeepBest
from FewShotSegLib.progress import (
    Control,
    Progress,
    Report,
    note,
    part_of,
    silent,
    stage_picture,
    warning,
    with_share_done,
)
from Testing.conftest import Listener


def test_progress_of_unknown_length_has_no_fraction():
    assert Progress(3, 0).fraction is None
    assert Progress(3, 4).fraction == 0.75
    assert Progress(9, 4).fraction == 1.0
    assert Progress(1, 2).metrics == {}
    assert silent(Progress(1, 2)) is None


def test_a_report_is_json_but_for_its_picture() -> None:
    progress = Progress(3, 4, "Läsion", {"loss": 0.5}, np.zeros((2, 2, 3), np.uint8), can_stop=True)
    values = json.loads(json.dumps(progress.to_dict()))
    assert values.pop("kind") == "step"
    assert values == {"step": 3, "total": 4, "message": "Läsion", "metrics": {"loss": 0.5}, "can_stop": True}


def test_sentences_and_pictures_are_no_steps() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    made = (note("a"), warning("b"), stage_picture("c", picture))
    assert [(progress.kind, progress.message) for progress in made] == [("note", "a"), ("warning", "b"), ("stage", "c")]
    assert all(progress.fraction is None and not progress.can_stop for progress in made)
    assert made[2].picture is picture


def test_parts_of_the_work_share_it_equally_and_name_what_they_say(a_listener: Listener) -> None:
    for number, name in enumerate("abc"):
        report = part_of(a_listener, number, 3, name)
        for progress in (
            Progress(1, 4, "slice"),
            Progress(4, 4, "slice"),
            note("hm"),
            warning("odd"),
            Progress(7, 0, "?"),
        ):
            report(progress)
    shares = [progress.fraction for progress in a_listener.heard if progress.kind == "step" and progress.total]
    assert shares == pytest.approx([(part + share) / 3 for part in range(3) for share in (0.25, 1)], abs=1e-3)
    assert a_listener.messages[:5] == ["a: slice", "a: slice", "a: hm", "odd", "a: ?"]
    assert {progress.total for progress in a_listener.heard if "?" in progress.message} == {0}


def test_the_only_part_of_the_work_is_the_work() -> None:
    listener = Listener()
    assert part_of(listener, 0, 1, "a") is listener


def test_shares_of_training_nest(a_listener: Listener) -> None:
    inner = with_share_done(with_share_done(a_listener, 0.5, 1.0), 0.0, 0.5)
    for step in (0, 2, 4):
        inner(Progress(step, 4, "adapting", {"loss": 0.5}))
    assert [progress.metrics["done"] for progress in a_listener.heard] == [0.5, 0.625, 0.75]
    inner(Progress(1, 4, "loading"))  # is no training
    assert dict(a_listener.heard[-1].metrics) == {}
    assert a_listener.heard[0].metrics["loss"] == 0.5


@pytest.mark.parametrize(
    "wrap", [lambda report: part_of(report, 0, 2, "a"), lambda report: with_share_done(report, 0, 1)]
)
def test_what_a_report_raises_is_passed_on(wrap) -> None:
    def cancel(progress: Progress) -> None:
        raise Cancelled

    report: Report = wrap(cancel)
    with pytest.raises(Cancelled):
        report(Progress(1, 2, "adapting", {"loss": 0.5}))


def test_cancelling_is_heard_at_the_next_report_which_is_still_passed_on(a_listener: Listener) -> None:
    control = Control(a_listener)
    control(Progress(1, 4))
    control.cancel()
    with pytest.raises(Cancelled):
        control(Progress(2, 4))
    assert [progress.step for progress in a_listener.heard] == [1, 2]


def test_stopping_waits_until_there_is_something_to_keep(a_listener: Listener) -> None:
    control = Control(a_listener)
    control.stop_and_keep_best()
    control(Progress(1, 4, "estimating"))
    with pytest.raises(StopAndKeepBest):
        control(Progress(1, 4, "adapting", can_stop=True))
    control.cancel()  # whoever gives up after all keeps nothing
    with pytest.raises(Cancelled):
        control(Progress(2, 4, "adapting", can_stop=True))
