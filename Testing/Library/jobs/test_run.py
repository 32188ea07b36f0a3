"""Jobs from files to files: the same bytes for the same job, on the device that was asked for, without any network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, SegmentJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.run import run
from Testing.conftest import QUICK, Listener, write_discs


def test_the_same_job_gives_the_same_bytes_and_another_seed_others(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    def bytes_of(name: str, seed: int) -> bytes:
        job = replace(an_adapt_job, out=str(tmp_path / f"{name}.safetensors"), seed=seed)
        run(job)
        return Path(job.out).read_bytes()

    assert bytes_of("a", 3) == bytes_of("b", 3)
    assert bytes_of("a", 3) != bytes_of("c", 4)


def test_asking_for_a_gpu_where_there_is_none_is_refused(
    an_adapt_job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="No GPU"):
        run(replace(an_adapt_job, device="cuda"))


def test_working_on_the_cpu_for_want_of_a_gpu_is_said(
    an_adapt_job: AdaptJob, a_listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(replace(an_adapt_job, device="auto"), a_listener)
    assert "CPU" in a_listener.messages[0]


def test_paths_with_spaces_and_umlauts_work_from_end_to_end(a_tiny_base: str, tmp_path: Path) -> None:
    folder = tmp_path / "Prüfung Übersicht 脾臓"
    image, labelmap = write_discs(folder, "Fall 1 é Leber", 1)
    out = str(folder / "Ärzte adapter.safetensors")
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(2, 4))
    run(AdaptJob(out, exemplars=(files,), base=a_tiny_base, recipe=QUICK, device="cpu"))
    run(SegmentJob((str(image),), str(folder / "Ergebnis ä"), out, device="cpu"))
    (folder / "Wahrheit").mkdir()
    labelmap.rename(folder / "Wahrheit" / labelmap.name)
    record = run(EvaluateJob(str(folder / "Ergebnis ä"), str(folder / "Wahrheit"), str(folder / "Maße.csv")))
    assert {row["case"] for row in record["metrics"]["rows"]} == {"Fall 1 é Leber"}


def test_no_socket_is_opened_by_adapt_or_segment(
    an_adapt_job: AdaptJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*arguments: object, **rest: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(an_adapt_job)
    image, _ = write_discs(tmp_path, "p1", 1)
    run(SegmentJob((str(image),), str(tmp_path / "segmented"), an_adapt_job.out, device="cpu"))
