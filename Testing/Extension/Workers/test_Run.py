"""What a run says of itself while it goes on, without a process."""

from __future__ import annotations

from typing import Any

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegSlicer.Workers.Run import RemainingTime, Run, RunProgress, fractionOf


class FakeWorkers:
    """Remembers what was asked, and lets the test answer."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.told: list[str] = []

    def request(self, worker: str, request: dict[str, Any], **callbacks: Any) -> int:
        self.asked = {"worker": worker, **request}
        self.__dict__.update(callbacks)
        return 5

    def cancel(self, worker: str, number: int) -> None:
        self.told.append(f"cancel {worker} {number}")

    def stopAndKeepBest(self, number: int) -> None:
        self.told.append(f"stop {number}")


def message(step: int = 1, total: int = 10, text: str = "adapting", **metrics: float) -> dict[str, Any]:
    what = {"type": "progress", "step": step, "total": total, "message": text, "metrics": metrics}
    return what | {"can_stop": text == "adapting"}


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def run(workers: FakeWorkers, heard: list[Any]) -> Run:
    made = Run(
        workers,  # type: ignore[arg-type]
        onDone=lambda result: heard.append(("done", result)),
        onError=lambda kind, text: heard.append((kind, text)),
        progress=heard.append,
    )
    made.atEnd(lambda: heard.append("cleaned up"))
    made.start({"op": "job"}, finish=lambda record: record["value"] + 1)
    return made


def test_a_run_that_ends_well_has_a_result_after_cleaning_up(run: Run, workers: Any, heard: list[Any]) -> None:
    assert run.isRunning
    assert workers.asked == {"worker": "job", "op": "job"}
    workers.onResult({"value": 41, "warnings": []})
    assert not run.isRunning
    assert (run.result, run.error, run.valueOrError()) == (42, None, 42)
    assert run.record == {"value": 41, "warnings": []}
    assert heard == ["cleaned up", ("done", 42)]


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("input", InputError), ("cancelled", Cancelled), ("defect", RuntimeError), ("dead", RuntimeError)],
)
def test_a_run_that_fails_says_why_and_raises_it(
    run: Run, workers: Any, heard: list[Any], kind: str, raised: type[Exception]
) -> None:
    workers.onError(kind, "No slice is annotated.")
    assert heard == ["cleaned up", (kind, "No slice is annotated.")]
    with pytest.raises(raised, match="No slice is annotated"):
        run.valueOrError()


def test_what_fails_while_taking_over_the_result_is_told_as_an_error(run: Run, workers: Any, heard: list[Any]) -> None:
    workers.onResult({})
    assert run.errorKind == "defect"
    assert heard[-1][1].startswith("KeyError: 'value'\n\nTraceback")


def test_an_error_may_be_explained_while_the_files_are_there(workers: Any, heard: list[Any]) -> None:
    run = Run(workers)
    run.atEnd(lambda: heard.append("cleaned up"))
    run.start({}, lambda record: record, explain=lambda kind, text: heard.append(kind) or f"{text} It goes on.")
    workers.onError("dead", "It died.")
    assert heard == ["dead", "cleaned up"]
    assert run.error == "It died. It goes on."


def test_training_can_be_stopped_only_where_there_is_something_to_keep(run: Run, workers: Any) -> None:
    for text in ("", "estimating 1/2"):
        workers.onProgress(message(text=text, loss=1.0))
        assert not run.canKeepBest
        with pytest.raises(InputError, match="nothing to keep yet"):
            run.stopAndKeepBest()
    workers.onProgress(message(loss=1.0))
    assert run.canKeepBest
    run.stopAndKeepBest()
    run.cancel()
    assert workers.told == ["stop 5", "cancel job 5"]
    workers.onResult({"value": 0})
    run.stopAndKeepBest()
    run.cancel()
    assert len(workers.told) == 2
    assert not run.canKeepBest


def test_a_run_whose_workers_are_gone_is_cancelled(run: Run, heard: list[Any]) -> None:
    run.drop("the module was closed")
    run.drop("the module was closed")
    assert not run.isRunning
    assert heard == ["cleaned up", ("cancelled", "Cancelled: the module was closed.")]
    with pytest.raises(Cancelled, match="closed"):
        run.valueOrError()


def test_callers_that_are_going_too_are_not_told(run: Run, heard: list[Any]) -> None:
    run.drop("the module was closed", isToldOf=False)
    assert heard == ["cleaned up"]


def test_losses_and_scores_are_remembered_for_a_plot(run: Run, workers: Any) -> None:
    workers.onProgress(message(0, 0, "Working on the CPU."))
    workers.onProgress(message(1, loss=0.5, done=0.01))
    workers.onProgress({**message(2, loss=0.4, score=0.7, done=0.02), "picture": {"shape": [1, 1, 3], "data": "AAAA"}})
    assert [entry["metrics"].get("score") for entry in run.history] == [None, 0.7]
    assert run.progress is not None
    assert (run.progress["step"], run.progress["fraction"]) == (2, 0.02)
    assert "picture" in run.progress
    assert not any("picture" in entry for entry in run.history)


def test_the_share_is_of_all_work_where_the_worker_says_so() -> None:
    assert fractionOf(message(5, 10, done=0.1)) == 0.1
    assert fractionOf(message(5, 10)) == 0.5
    assert fractionOf(message(0, 0, "Loading.")) is None
    assert fractionOf(message(12, 10)) == 1.0


def test_the_rest_is_estimated_from_the_last_half_minute() -> None:
    rest = RemainingTime()
    for second in range(101):
        rest.note(second / 1000, float(second))  # a permille each second
    assert rest.seconds == pytest.approx(900, rel=0.01)
    for second in range(101, 141):  # then twice as fast
        rest.note(0.1 + (second - 100) / 500, float(second))
    assert rest.seconds == pytest.approx((1 - 0.18) * 500, rel=0.01)


def test_the_rest_is_unknown_at_first_and_after_a_new_stage_and_limited_by_the_time_allowed() -> None:
    rest = RemainingTime(maxSeconds=60)
    rest.note(0.01, 0.0)
    assert rest.seconds is None
    rest.note(0.02, 10.0)
    assert rest.seconds == pytest.approx(50)
    rest.note(0.001, 11.0)
    assert rest.seconds is None
    rest.note(None, 12.0)
    assert rest.seconds is None


def test_progress_is_a_line_to_print() -> None:
    text = str(RunProgress(message(3, 40, "slice 3 of 40", loss=0.123456), fraction=0.075, remaining_s=200.0))
    assert text == "  8 %  slice 3 of 40, loss 0.123, about 3 min 20 s left"
    assert (
        str(RunProgress(message(0, 0, "Working on the CPU."), fraction=None, remaining_s=None)) == "Working on the CPU."
    )


def test_warnings_are_those_of_the_run_and_of_its_images_each_once(run: Run) -> None:
    assert run.warnings == ()
    run.record = {"warnings": ["a"], "images": [{"warnings": ["a", "b"]}, {}, {"warnings": ["c", "b"]}]}
    assert run.warnings == ("a", "b", "c")
