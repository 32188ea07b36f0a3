"""Jobs: strict, and the same after JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob, Job, SegmentJob, from_dict, to_dict
from FewShotSegLib.errors import InputError
from Testing.Library.examples import EVERY_KIND, minimal


@EVERY_KIND
def test_a_job_equals_itself_after_json(job: Job) -> None:
    again = from_dict(json.loads(json.dumps(to_dict(job))))
    assert again == job
    assert type(again) is type(job)


def test_what_is_left_out_has_its_default() -> None:
    job = from_dict(minimal("adapt"))
    assert job == AdaptJob(out="a.safetensors", method="lora", base="auto", seed=0, device="auto")


def test_lists_and_paths_become_the_declared_types() -> None:
    job = SegmentJob(images=[Path("a.nrrd")], out=Path("o"), adapter="a.safetensors", min_island_ml=1)  # type: ignore[arg-type]
    assert job.images == ("a.nrrd",)
    assert job.out == "o"
    assert isinstance(job.min_island_ml, float)


def test_the_recipe_of_a_job_is_a_copy() -> None:
    recipe = {"rank": 4, "blocks": [1, 2]}
    job = AdaptJob(out="a.safetensors", recipe=recipe)
    recipe["blocks"].append(3)  # type: ignore[attr-defined]
    assert job.recipe == {"rank": 4, "blocks": [1, 2]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "must be a table"),
        ({}, '"kind" of a job must be one of adapt, segment, evaluate, got null'),
        ({"kind": "train"}, 'adapt, segment, evaluate, got "train"'),
        ({"kind": ["adapt"]}, "adapt, segment, evaluate"),
        ({"kind": "adapt"}, '"out" is missing'),
        (minimal("adapt", sed=1), 'Unknown job entry "sed"; did you mean "seed"'),
        (minimal("segment", exemplars=[]), 'Unknown job entry "exemplars"'),
        (minimal("adapt", out="a.pth"), "ends in .safetensors"),
        (minimal("adapt", out=3), '"out" must be a text, got 3'),
        (minimal("adapt", out=""), "must not be empty"),
        (minimal("adapt", seed=True), '"seed" must be a whole number, got true'),
        (minimal("adapt", seed="1"), '"seed" must be a whole number'),
        (minimal("adapt", seed=1.5), '"seed" must be a whole number'),
        (minimal("adapt", seed=-1), "at least 0, got -1"),
        (minimal("adapt", device="tpu"), 'one of "auto", "cpu", "cuda", got "tpu"'),
        (minimal("adapt", max_seconds=0), "above 0"),
        (minimal("adapt", intensity={"low": 0, "high": 80}), "keys kind, low, high and scale"),
        (minimal("adapt", intensity=[0, 80]), "a table of names and values"),
        (minimal("adapt", max_seconds=float("nan")), "a finite number"),
        (minimal("adapt", recipe=["rank=4"]), '"recipe" must be a table'),
        (minimal("adapt", recipe={"rank": float("inf")}), '"recipe.rank" must be'),
        (minimal("adapt", exemplars="a.nrrd"), '"exemplars" must be a list'),
        (minimal("adapt", exemplars=["a.nrrd"]), r'"exemplars\[0\]" must be a table'),
        (minimal("adapt", exemplars=[{"image": "a.nrrd"}]), r'exemplars\[0\]: .*"labelmap" is missing'),
        (minimal("adapt", targets=["a", 2]), r'"targets\[1\]" must be a text'),
        (minimal("segment", images=[]), '"images" must not be empty'),
        (minimal("segment", images="i.nrrd"), '"images" must be a list'),
        (minimal("segment", adapter=None), "an adapter, a support set or prompts"),
        (minimal("segment", support_recipe={"pictures": 4}), "no meaning without"),
        (minimal("segment", intensity={"kind": "minmax"}), "keys kind, low, high and scale"),
        (minimal("segment", support_recipe={"pictures": 4}), '"support_recipe" has no meaning without'),
        (minimal("segment", support=[{"image": "a.nrrd"}]), r'support\[0\]: .*"labelmap" is missing'),
        (minimal("segment", images=["a", "b"], prompts="p.json"), "belong to one image, got 2"),
        (minimal("segment", axis="z"), 'one of "k", "j", "i"'),
        (minimal("segment", probabilities=1), "true or false"),
        (minimal("segment", min_island_ml=-1), "at least 0"),
        (minimal("evaluate", out="m.xlsx"), "ends in .csv"),
        (minimal("evaluate", tolerance_mm=0), "above 0"),
        (minimal("evaluate", structures={}), '"structures" must be a table like'),
        (minimal("evaluate", structures={"0": "background"}), '"structures" must be a table like'),
        (minimal("evaluate", structures={"1": ""}), '"structures" must be a table like'),
        (minimal("evaluate", structures={"1": "a", "01": "b"}), "names label 1 twice"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_in_one_sentence(values: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_dict(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slices", "allowed"), [("all", True), ([1, 2], True), (None, True), ("some", False), ([1.5], False), (3, False)]
)
def test_slices_are_a_list_of_numbers_or_all(slices: object, allowed: bool) -> None:
    values = minimal("adapt", exemplars=[{"image": "a", "labelmap": "b", "slices": slices}])
    if allowed:
        assert from_dict(values)
    else:
        with pytest.raises(InputError, match="slices"):
            from_dict(values)
