"""Base model and adapter asked for the same mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Jobs.Comparison import Comparing, Comparison, entryOf
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from Testing.Extension.bench import FakeWorkers
from Testing.Extension.cases import addCase

CLICK = {"axis": "k", "index": 2, "points_ijk": [[22, 24, 2]], "point_labels": [1], "structure": "disc"}
CARD = {"path": "organs.safetensors", "base_model": "tiny"}


class Desk:
    """A comparison on slice 2 of a volume, and what became of it."""

    def __init__(self, prompt: dict[str, Any] = CLICK) -> None:
        self.volumeNode, *_ = addCase()
        self.workers, self.done, self.errors = FakeWorkers(), list[Comparison](), list[tuple[str, str]]()
        self.workers.volumes["v"] = None
        comparing = Comparing(
            self.workers,  # type: ignore[arg-type]
            self.volumeNode,
            0,
            2,
            self.done.append,
            lambda *error: self.errors.append(error),
        )
        comparing.start("v", prompt, CARD, "cpu")

    def answer(self, view: str, mask: np.ndarray, iou: float) -> None:
        number = next(n for n in self.workers.open if self.workers.requests[n]["view"] == view)
        values = Prompt(0, 2, mask=mask).to_dict()
        self.workers.callbacks.pop(number)["onResult"]({**values, "iou": iou})


def masks() -> tuple[np.ndarray, np.ndarray]:
    base, adapted = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    base[10:20, 10:20] = adapted[13:23, 10:20] = True
    return base, adapted


@pytest.mark.parametrize("order", [("base", "adapted"), ("adapted", "base")])
def test_both_models_are_asked_the_same_and_told_when_both_have_answered(scene: Any, order: tuple[str, str]) -> None:
    desk, found = Desk(), dict(zip(("base", "adapted"), masks(), strict=True))
    asked = {request["view"]: (request["adapter"], request["base"]) for request in desk.workers.requests}
    assert asked == {"compare base": (None, "tiny"), "compare adapted": ("organs.safetensors", "tiny")}
    assert all(request["prompt"] == CLICK and request["device"] == "cpu" for request in desk.workers.requests)
    for name in order:
        assert desk.done == []
        desk.answer(f"compare {name}", found[name], {"base": 0.6, "adapted": 0.9}[name])
    (comparison,) = desk.done
    np.testing.assert_array_equal(comparison.base, found["base"])
    np.testing.assert_array_equal(comparison.adapted, found["adapted"])
    assert (comparison.baseConfidence, comparison.adaptedConfidence) == (0.6, 0.9)
    assert (comparison.added, comparison.removed) == (30, 30)


def test_by_name_alone_only_the_adapter_is_asked(scene: Any) -> None:
    desk = Desk({"axis": "k", "index": 2, "structure": "disc"})
    assert [request["view"] for request in desk.workers.requests] == ["compare adapted"]
    desk.answer("compare adapted", masks()[1], 0.9)
    assert not desk.done[0].base.any()
    assert desk.done[0].baseConfidence is None


def test_of_two_failures_the_first_is_told(scene: Any) -> None:
    desk = Desk()
    desk.workers.fail("input", "No such base model.", 0)
    desk.workers.fail("defect", "It broke.", 1)
    assert desk.errors == [("input", "No such base model.")]
    assert desk.done == []


def test_a_newer_comparison_takes_the_place_of_this_one(scene: Any) -> None:
    desk = Desk()
    for number in list(desk.workers.open):
        desk.workers.callbacks.pop(number)["onSuperseded"]()
    assert desk.errors == [("cancelled", "A newer comparison took its place.")]


def test_the_slice_looks_as_it_is_shown(scene: Any) -> None:
    volumeNode, _drawn, volume, _labels = addCase()
    volumeNode.GetDisplayNode().AutoWindowLevelOff()
    volumeNode.GetDisplayNode().SetWindowLevelMinMax(-50.0, 150.0)
    made: list[Comparison] = []
    workers = FakeWorkers()
    workers.volumes["v"] = None
    comparing = Comparing(workers, volumeNode, 0, 2, made.append, pytest.fail)  # type: ignore[arg-type]
    comparing.start("v", {"axis": "k", "index": 2, "structure": "disc"}, CARD)
    workers.callbacks.pop(0)["onResult"]({**Prompt(0, 2, mask=masks()[0]).to_dict(), "iou": 0.5})
    expected = np.clip((volume.array[2].astype(float) + 50) / 200, 0, 1) * 255
    assert np.abs(made[0].image - expected).max() <= 0.5
    assert made[0].onScreen(made[0].image, 128).shape == (128, 128)


def test_a_prompt_of_any_kind_becomes_an_entry_of_a_prompt_file() -> None:
    ofPanel = SlicePrompt(((1.0, 2.0, 3.0),), (1,))
    assert entryOf(ofPanel, 0, 2, "disc") == {
        "axis": "k",
        "index": 2,
        "points_ras": [[1.0, 2.0, 3.0]],
        "point_labels": [1],
        "structure": "disc",
    }
    ofLibrary = Prompt(1, 5, np.array([[2.0, 5.0, 3.0]]), np.array([0]))
    assert Prompt.from_dict(entryOf(ofLibrary, 0, 2, None)).index == 5  # it says itself where it lies
    assert entryOf({"points_ijk": [[1, 2, 2]]}, 0, 2, None) == {"axis": "k", "index": 2, "points_ijk": [[1, 2, 2]]}
    assert entryOf(None, 2, 7, "disc") == {"axis": "i", "index": 7, "structure": "disc"}
    with pytest.raises(InputError, match="There is nothing to compare: click on the structure"):
        entryOf(None, 0, 2, None)
