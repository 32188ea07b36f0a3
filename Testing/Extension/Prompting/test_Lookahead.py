"""Slices that are encoded before they are clicked on."""

from __future__ import annotations

from FewShotSegSlicer.Prompting.LiveSegmenter import IDLE_S, SCROLLING_S
from Testing.Extension.bench import Bench, K
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
