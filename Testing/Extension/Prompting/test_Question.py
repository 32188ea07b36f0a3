"""What a question tells the worker, and when two are the same."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Prompting.Question import Model, Question

PROMPT = SlicePrompt(((1.0, 5.0, 3.0), (4.0, 5.0, 6.0)), (1, 0), ((0.0, 5.0, 3.0), (8.0, 5.0, 7.0)))
QUESTION = Question("CT 1", Model("liver.safetensors", "vit_b", 3), "node", "segment", "liver", 1, 5, PROMPT)


def test_the_library_reads_the_prompt_of_a_request_as_it_was_given() -> None:
    request = QUESTION.request()
    names = {key: request[key] for key in ("op", "volume", "adapter", "base")}
    assert names == {"op": "predict", "volume": "CT 1", "adapter": "liver.safetensors", "base": "vit_b"}
    prompt = Prompt.from_dict(request["prompt"], Volume(np.zeros((9, 9, 9)), np.eye(4)))
    assert (prompt.axis, prompt.index, prompt.structure) == (1, 5, "liver")
    np.testing.assert_array_equal(prompt.points_ijk, PROMPT.points_ras)  # i, j, k are r, a, s here
    np.testing.assert_array_equal(prompt.box_ijk, PROMPT.box_ras)
    np.testing.assert_array_equal(prompt.point_labels, [1, 0])


def test_a_change_of_anything_that_a_mask_depends_on_makes_another_question() -> None:
    others = {
        "volume": "CT 2",
        "model": Model("liver.safetensors", "vit_b", 4),  # the same file, chosen anew
        "segmentation": "other",
        "segmentId": "other",
        "structure": "spleen",
        "axis": 0,
        "index": 6,
        "prompt": PROMPT.withoutPoint(0),
    }
    assert set(others) == {field.name for field in fields(Question)}
    for name, other in others.items():
        assert replace(QUESTION, **{name: other}) != QUESTION
    assert replace(QUESTION) == QUESTION
    assert QUESTION.place == ("segment", 1, 5)
