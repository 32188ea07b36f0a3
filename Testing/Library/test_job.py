"""Jobs: strict, the same after JSON, and paths that mean the same wherever the file lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from FewShotSegLib.data.job import (
    AdaptJob,
    AuxiliaryFiles,
    EvaluateJob,
    ExemplarFiles,
    Job,
    SegmentJob,
    from_dict,
    to_dict,
)
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.jobs import load_job, save_job

ADAPT = AdaptJob(
    out="liver.safetensors",
    exemplars=(
        ExemplarFiles("a.nrrd", "a.seg.nrrd", axis="j", slices=(12, 14), structures={6: "liver", 1: "spleen"}),
        ExemplarFiles("b.nrrd", "b.seg.nrrd", slices="all", resample=True),
    ),
    targets=("c.nrrd",),
    auxiliary=(AuxiliaryFiles("other hospital", (ExemplarFiles("d.nrrd", "d.nii.gz"),)),),
    base="vit_b",
    recipe={"rank": 8, "synthesis": {"angle": [0.0, 20.0]}, "note": None},
    warm_start="old.safetensors",
    max_seconds=90.0,
    intensity={"kind": "window", "low": -160.0, "high": 240.0},
    seed=7,
    device="cpu",
)
SEGMENT = SegmentJob(images=("p 1.nrrd", "p2.nii.gz"), out="out", adapter="liver.safetensors", min_island_ml=0.5)
SUPPORTED = SegmentJob(
    images=("p.nrrd",),
    out="out",
    support=(ExemplarFiles("a.nrrd", "a.seg.nrrd", axis="k", slices=(3,)),),
    support_recipe={"subsets": 4},
    intensity={"kind": "window", "low": -160.0, "high": 240.0},
)
EVALUATE = EvaluateJob(pred="out", ref="reference", out="metrics.csv", structures={1: "Leber"}, tolerance_mm=1.0)
EVERY_KIND = pytest.mark.parametrize("job", [ADAPT, SEGMENT, SUPPORTED, EVALUATE], ids=lambda job: job.kind)


def minimal(kind: str, **changes: object) -> dict[str, object]:
    required: dict[str, dict[str, object]] = {
        "adapt": {"out": "a.safetensors"},
        "segment": {"images": ["i.nrrd"], "out": "o", "adapter": "a.safetensors"},
        "evaluate": {"pred": "p", "ref": "r", "out": "m.csv"},
    }
    return {"kind": kind, **required[kind], **changes}


@EVERY_KIND
def test_a_job_equals_itself_after_json(job: Job) -> None:
    again = from_dict(json.loads(json.dumps(to_dict(job))))
    assert again == job
    assert type(again) is type(job)


@EVERY_KIND
def test_a_saved_job_is_read_back_with_absolute_paths_from_where_it_was_made(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in = tmp_path / "mäde here"
    made_in.mkdir()
    monkeypatch.chdir(made_in)
    save_job(job, tmp_path / "jobs" / "a job.json")
    monkeypatch.chdir(tmp_path)
    loaded = load_job(tmp_path / "jobs" / "a job.json")
    assert loaded.out == str(made_in / job.out)
    assert {key for key in to_dict(loaded)} == {key for key in to_dict(job)}


def test_every_relative_path_in_a_job_file_starts_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(to_dict(ADAPT)), encoding="utf-8")
    job = load_job(tmp_path / "job.json")
    assert isinstance(job, AdaptJob)
    found = (
        job.out,
        job.exemplars[0].image,
        job.exemplars[1].labelmap,
        job.targets[0],
        job.auxiliary[0].cases[0].image,
        job.warm_start,
    )
    names = ("liver.safetensors", "a.nrrd", "b.seg.nrrd", "c.nrrd", "d.nrrd", "old.safetensors")
    assert found == tuple(str(tmp_path / name) for name in names)


def test_entries_that_are_no_paths_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(to_dict(ADAPT)), encoding="utf-8")
    job = load_job(tmp_path / "job.json")
    assert isinstance(job, AdaptJob)
    assert (job.base, job.method, job.device, job.auxiliary[0].name) == ("vit_b", "lora", "cpu", "other hospital")
    assert job.exemplars[0].structures == {6: "liver", 1: "spleen"}


def test_an_absolute_path_is_kept(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere" / "a.safetensors")
    (tmp_path / "job.json").write_text(json.dumps(minimal("adapt", out=elsewhere)), encoding="utf-8")
    assert load_job(tmp_path / "job.json").out == elsewhere


@pytest.mark.parametrize(("base", "is_file"), [("bundled", False), ("vit_b", False), ("my.pth", True), ("m/sam", True)])
def test_a_base_model_is_a_file_when_it_has_a_suffix_or_a_folder(base: str, is_file: bool, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(minimal("adapt", base=base)), encoding="utf-8")
    job = load_job(tmp_path / "job.json")
    assert isinstance(job, AdaptJob)
    assert job.base == (str(tmp_path / base) if is_file else base)


def test_what_is_left_out_has_its_default() -> None:
    job = from_dict(minimal("adapt"))
    assert job == AdaptJob(out="a.safetensors", method="lora", base="bundled", seed=0, device="auto")


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
        (minimal("segment", intensity={"kind": "minmax"}), '"intensity" has no meaning without'),
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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"kind": "adapt",', "is not JSON: .* in line 1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"kind": "walk"}', 'job.json: The "kind"'),
    ],
)
def test_a_file_that_is_no_job_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load_job(tmp_path / "job.json")


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the job .*none\.json"):
        load_job(tmp_path / "none.json")


def test_a_job_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(minimal("evaluate")), encoding="utf-8-sig")
    assert load_job(tmp_path / "job.json").kind == "evaluate"
