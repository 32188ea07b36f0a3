"""Prompts as plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegSlicer.Prompting.Prompts import PromptStore, SlicePrompt

CLICKS = SlicePrompt(((1.0, 2.0, 3.0), (4.0, 5.0, 3.0)), (1, 0))
BOX = SlicePrompt(box_ras=((0.0, 0.0, 6.0), (9.0, 7.0, 6.0)))


def aStore() -> PromptStore:
    store = PromptStore()
    store.set("liver", 0, 1, CLICKS)
    store.set("liver", 0, 2, BOX)
    store.set("spleen", 2, 1, CLICKS)
    return store


# ------------------------------------------------------------------------------------------------------------- prompts


def test_changing_a_prompt_makes_another_one() -> None:
    prompt = SlicePrompt().withPoint((1, 2, 3), positive=True)
    moved = prompt.withPointMoved(0, (4, 5, 6))
    assert prompt.points_ras == ((1.0, 2.0, 3.0),)
    assert moved.points_ras == ((4.0, 5.0, 6.0),)
    assert moved.labels == (1,)


def test_points_keep_their_labels_when_one_is_removed() -> None:
    prompt = CLICKS.withPoint((7, 8, 3), positive=True).withoutPoint(0)
    assert prompt == SlicePrompt(((4, 5, 3), (7, 8, 3)), (0, 1))


def test_a_prompt_is_empty_without_points_and_box() -> None:
    assert SlicePrompt().isEmpty
    assert CLICKS.withoutPoint(1).withoutPoint(0).isEmpty
    assert not BOX.isEmpty
    assert BOX.withBox(None).isEmpty


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SlicePrompt(((1, 2, 3),), ()), "needs a label"),
        (lambda: SlicePrompt(((1, 2, 3),), (2,)), "needs a label"),
        (lambda: SlicePrompt(((1, 2),), (1,)), "three numbers"),
        (lambda: SlicePrompt(((1, 2, float("nan")),), (1,)), "finite"),
        (lambda: SlicePrompt(box_ras=((1, 2, 3),)), "two opposite corners"),
        (lambda: CLICKS.withoutPoint(2), "no point 2"),
        (lambda: CLICKS.withPointMoved(-1, (0, 0, 0)), "no point -1"),
    ],
)
def test_what_is_no_prompt_is_refused(make, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()


# --------------------------------------------------------------------------------------------------------------- store


def test_slices_are_listed_by_segment_in_order() -> None:
    store = aStore()
    store.set("liver", 0, 0, BOX)
    assert store.slices("liver") == [(0, 0), (0, 1), (0, 2)]
    assert store.segmentIds() == ["liver", "spleen"]
    assert store.get("liver", 1, 1).isEmpty


def test_an_empty_prompt_removes_the_slice() -> None:
    store = aStore()
    store.set("liver", 0, 1, SlicePrompt())
    assert store.slices("liver") == [(0, 2)]


def test_text_brings_back_prompts_and_propagated_slices_of_one_segment() -> None:
    store, other = aStore(), aStore()
    store.setPropagated("liver", {(0, 5): 123, (2, 1): 4_000_000_000})
    other.fromJson("liver", store.toJson("liver"))
    assert other.get("liver", 0, 1) == CLICKS
    assert other.get("liver", 0, 2) == BOX
    assert other.propagated("liver") == {(0, 5): 123, (2, 1): 4_000_000_000}
    assert other.get("spleen", 2, 1) == CLICKS


def test_the_text_fits_into_a_tag_of_a_segmentation_file() -> None:
    """Tags are joined by | and lines in the header of a file."""
    assert not set("|\n\\") & set(aStore().toJson("liver"))


def test_the_text_is_a_prompt_file_of_the_library(tmp_path) -> None:
    (tmp_path / "prompts.json").write_text(aStore().toJson("liver"), encoding="utf-8")
    volume = Volume(np.zeros((4, 20, 20)), np.diag([1.0, 1.0, 3.0, 1.0]))
    clicks, box = load_prompts(tmp_path / "prompts.json", volume)
    np.testing.assert_array_equal(clicks.points_ijk, [[1, 2, 1], [4, 5, 1]])
    np.testing.assert_array_equal(clicks.point_labels, [1, 0])
    np.testing.assert_array_equal(box.box_ijk, [[0, 0, 2], [9, 7, 2]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"prompts":[{"axis":"x","index":1}]}',
        '{"prompts":[{"axis":"k","index":1,"points_ras":[[1,2]]}]}',
    ],
)
def test_text_that_is_no_prompts_is_refused_and_changes_nothing(text: str) -> None:
    store = aStore()
    with pytest.raises(InputError):
        store.fromJson("liver", text)
    assert store.toJson("liver") == aStore().toJson("liver")


def test_a_removed_segment_leaves_nothing_behind() -> None:
    store = aStore()
    store.setPropagated("liver", {(0, 5): 1})
    store.remove("liver")
    assert store.segmentIds() == ["spleen"]
    assert json.loads(store.toJson("liver")) == {"prompts": []}
