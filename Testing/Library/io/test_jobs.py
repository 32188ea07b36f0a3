"""Job files: paths mean the same wherever the file lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob, Job, to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.jobs import load_job, save_job
from Testing.Library.examples import ADAPT, EVERY_KIND, minimal


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


@pytest.mark.parametrize(
    ("base", "is_file"),
    [("bundled-small", False), ("auto", False), ("vit_b", False), ("my.pth", True), ("m/sam", True)],
)
def test_a_base_model_is_a_file_when_it_has_a_suffix_or_a_folder(base: str, is_file: bool, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(minimal("adapt", base=base)), encoding="utf-8")
    job = load_job(tmp_path / "job.json")
    assert isinstance(job, AdaptJob)
    assert job.base == (str(tmp_path / base) if is_file else base)


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
