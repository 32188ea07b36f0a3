"""The record beside the outputs: what it holds, and whether what it names is still there."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.record import (
    is_complete,
    known_digests,
    read_record,
    record_of,
    result_path,
    versions,
    write_record,
)
from FewShotSegLib.jobs.run import run
from Testing.conftest import Listener


def test_an_output_that_cannot_be_written_is_refused_before_training(
    an_adapt_job: AdaptJob, tmp_path: Path, a_listener: Listener
) -> None:
    (tmp_path / "a file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match="Cannot write"):
        run(replace(an_adapt_job, out=str(tmp_path / "a file" / "a.safetensors")), a_listener)
    assert not any("adapting" in message for message in a_listener.messages)


def test_a_record_says_what_was_done_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = record_of(AdaptJob("out/a.safetensors", seed=7), "cpu", {"load": 1.5}, iter(["Odd."]))
    assert record["job"]["out"] == str(tmp_path / "out" / "a.safetensors")  # means the same from anywhere
    assert (record["seed"], record["device"], record["threads"]) == (7, "cpu", torch.get_num_threads())
    assert (record["timings_s"], record["warnings"]) == ({"load": 1.5}, ["Odd."])
    assert json.loads(json.dumps(record)) == record


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["SimpleITK"] == metadata.version("SimpleITK")


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "torch":
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("FewShotSegLib.jobs.record._PACKAGES", ("numpy", "torch", "of this test"))
    assert "torch" not in versions()
    assert versions()["numpy"] == versions()["of this test"] == "1.0"


def test_packages_are_looked_up_once_for_a_process_and_not_for_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def version(package: str) -> str:
        asked.append(package)
        return "2.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("FewShotSegLib.jobs.record._PACKAGES", ("only", "here"))
    first = versions()
    first["only"] = "changed by whoever asked"
    assert versions()["only"] == "2.0"
    assert asked == ["only", "here"]


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = {"job": {"kind": "adapt"}, "warnings": ["Läsion"], "metrics": {"loss": 0.25}}
    path = result_path(tmp_path / "out", "organs v1.2")
    assert path == tmp_path / "out" / "organs v1.2.result.json"
    write_record(record, path)
    assert read_record(path) == record
    assert "Läsion" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_record_that_cannot_be_read_is_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.result.json"
    if content is not None:
        path.write_bytes(content)
    assert read_record(path) is None


def test_outputs_are_complete_while_every_one_is_there_unchanged(tmp_path: Path) -> None:
    paths = [tmp_path / "a.seg.nrrd", tmp_path / "a.liver.probability.nrrd"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(range(number, 200)))
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert is_complete({"outputs": sums}, tmp_path)
    assert not is_complete({"outputs": sums}, tmp_path / "elsewhere")
    with paths[0].open("ab") as stream:
        stream.write(b"more")
    assert not is_complete({"outputs": sums}, tmp_path)
    paths[0].unlink()
    assert not is_complete({"outputs": sums}, tmp_path)


@pytest.mark.parametrize("record", [None, {}, {"outputs": {}}, {"outputs": ["a.nrrd"]}])
def test_a_record_that_names_no_output_is_not_complete(record: dict[str, object] | None, tmp_path: Path) -> None:
    assert not is_complete(record, tmp_path)


def test_everything_that_a_record_names_is_known_and_nothing_else() -> None:
    assert known_digests({"outputs": {"a.nrrd": "12"}, "replaced": ["34"]}) == {"12", "34"}
    assert known_digests(None) == known_digests({"outputs": ["a"], "replaced": "12"}) == set()
