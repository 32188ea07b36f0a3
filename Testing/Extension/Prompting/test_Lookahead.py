"""Slices that are encoded before they are clicked on."""

from __future__ import annotations

from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S, SCROLLING_S
from FewShotSegSlicer.Prompting.Lookahead import Lookahead, neighbours
from FewShotSegSlicer.Prompting.Question import Model
from Testing.Extension.bench import Bench, FakeWorkers, K
from Testing.Extension.changes import chooseAnotherModel


def encoded(bench: Bench) -> list[tuple[str, int]]:
    return [(request["axis"], request["index"]) for request in bench.workers.asked("encode")]


def test_nothing_is_asked_while_scrolling(bench: Bench) -> None:
    for k in range(8):
        bench.live.setSlice(0, k, "Red")
        bench.wait(SCROLLING_S / 2)
    assert bench.workers.requests == []
    bench.wait(SCROLLING_S / 2)
    assert encoded(bench) == [("k", 7)]


def test_the_slice_in_use_is_encoded_first_then_the_other_views_then_its_neighbours(bench: Bench) -> None:
    bench.live.setSlice(1, 6, "Green")
    bench.live.setSlice(2, 11, "Yellow")
    bench.live.setSlice(0, 2, "Red")
    bench.live.setSlice(0, 1, "Red")  # the only view that was scrolled
    bench.wait()
    for _ in range(20):
        assert len(bench.workers.open) <= 1  # so that a click waits for one at most
        bench.workers.answerAll()
        bench.wait(IDLE_S)
    found = encoded(bench)
    assert found[0] == ("k", 1)
    assert set(found[1:3]) == {("j", 6), ("i", 11)}
    assert found[3:] == [("k", 2), ("k", 0), ("k", 3), ("k", 4), ("k", 5)]


def test_another_model_needs_the_slices_encoded_again(bench: Bench) -> None:
    bench.scroll(K)
    bench.workers.answerAll()
    bench.wait(0.0)
    assert len(encoded(bench)) == 1
    chooseAnotherModel(bench)
    bench.wait(0.0)
    assert [request["adapter"] for request in bench.workers.asked("encode")] == [None, "new.safetensors"]


def test_a_slice_that_cannot_be_encoded_is_not_tried_again_and_not_complained_about(bench: Bench) -> None:
    bench.scroll(K)
    bench.workers.fail("dead")
    for _ in range(5):
        bench.wait(IDLE_S)
    assert len(encoded(bench)) == 1
    assert bench.failures == []


def aLookahead() -> tuple[Lookahead, FakeWorkers]:
    workers = FakeWorkers()
    workers.volumes["v"] = None
    return Lookahead(workers), workers  # type: ignore[arg-type]


def asked(workers: FakeWorkers) -> list[int]:
    return [request["index"] for request in workers.asked("encode")]


def test_one_slice_is_encoded_at_a_time_and_none_twice() -> None:
    ahead, workers = aLookahead()
    for _ in range(3):
        ahead.encode("v", Model(), [(0, 4), (0, 5)])
    assert asked(workers) == [4]
    workers.answer()
    ahead.encode("v", Model(), [(0, 4), (0, 5)])
    workers.answer()
    ahead.encode("v", Model(), [(0, 4), (0, 5)])
    assert asked(workers) == [4, 5]


def test_what_was_encoded_for_a_click_is_known() -> None:
    ahead, workers = aLookahead()
    ahead.know("v", Model(), (0, 4))
    ahead.encode("v", Model(), [(0, 4)])
    assert asked(workers) == []
    ahead.encode("v", Model(choice=1), [(0, 4)])
    assert asked(workers) == [4]


def test_a_slice_that_a_click_has_overtaken_is_asked_again() -> None:
    ahead, workers = aLookahead()
    ahead.encode("v", Model(), [(0, 4)])
    workers.callbacks.pop(0)["onSuperseded"]()
    ahead.encode("v", Model(), [(0, 4)])
    assert asked(workers) == [4, 4]


def test_after_a_failure_nothing_is_tried_until_something_changes() -> None:
    ahead, workers = aLookahead()
    ahead.encode("v", Model(), [(0, 4)])
    workers.fail("defect")
    ahead.encode("v", Model(), [(0, 5)])
    assert asked(workers) == [4]
    ahead.forget()
    ahead.encode("v", Model(), [(0, 5)])
    assert asked(workers) == [4, 5]


def test_neighbours_of_the_last_slice_lie_on_one_side() -> None:
    assert list(neighbours(2, 8, 9)) == [(2, 7), (2, 6), (2, 5), (2, 4)]
    assert list(neighbours(1, 0, 1)) == []
