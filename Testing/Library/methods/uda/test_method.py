"""From labelled to unlabelled images of another kind, on discs: bright in one kind, dark in the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, SegmentJob
from FewShotSegLib.data.launch import Launch
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.datasets import data_sets_in
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods.uda import method as uda
from FewShotSegLib.training import data_parallel
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import Listener
from Testing.Library.examples import an_adapter
from Testing.Library.methods.uda.conftest import QUICK, messages_of


def test_all_stages_run_and_the_network_segments(a_job: AdaptJob, tmp_path: Path, a_listener: Listener) -> None:
    record = run(a_job, a_listener)
    stages = record["metrics"]["stages"]
    assert stages["translation"]["translated"]
    assert set(stages["translation"]["cases"]) == {"case 0.nrrd", "case 1.nrrd"}
    assert {row["name"] for row in stages["filter"]} == {"patient 0", "patient 1", "patient 2"}
    assert set(stages["matching"]) == {"rule", "lenders", "borrowers"}
    assert {"learning to translate", "teacher 1", "teacher 2", "small network"} <= messages_of(a_listener)
    adapter = load_adapter(a_job.out)
    assert dict(adapter.structures) == {1: "disc", 2: "square"}
    assert record["report"] == "discs.report.png"
    assert Path(a_job.out).with_name("discs.report.png").read_bytes().startswith(b"\x89PNG")
    run(SegmentJob((str(tmp_path / "mr" / "patient 0.nrrd"),), str(tmp_path / "out"), adapter=a_job.out))
    labels = load_labelmap(tmp_path / "out" / "patient 0.seg.nrrd").volume
    assert labels.same_geometry(load_volume(tmp_path / "mr" / "patient 0.nrrd"))


@pytest.mark.parametrize(
    ("parts", "absent"),
    [
        ({"translate": False}, {"learning to translate"}),
        ({"rounds": 1, "match": False, "filter": False}, {"teacher 1", "teacher 2"}),
        ({"space": "intensity"}, set()),
        ({"match": False}, set()),
        ({"filter": False}, set()),
    ],
)
def test_parts_can_be_left_out(a_job: AdaptJob, parts: dict[str, Any], absent: set[str]) -> None:
    listener = Listener()
    record = run(replace(a_job, recipe={**QUICK, **parts}), listener)
    assert not absent & messages_of(listener)
    stages = record["metrics"]["stages"]
    assert ("matching" in stages) == parts.get("match", True)
    assert ("filter" in stages) == parts.get("filter", True)
    anatomy = load_adapter(a_job.out).architecture["anatomy"]  # type: ignore[index]
    assert (anatomy is None) == (parts.get("space") == "intensity")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"source_folder": None}, "needs a folder with annotated source images"),
        ({"target_folder": None}, "needs unlabelled target images"),
        ({"auxiliary_folder": "somewhere"}, "does not use auxiliary data"),
        ({"max_seconds": 5.0}, "cannot end at a time limit"),
    ],
)
def test_what_is_missing_or_useless_is_said(a_job: AdaptJob, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(replace(a_job, **changes))


@pytest.fixture
def inputs(a_job: AdaptJob, tmp_path: Path) -> AdaptInputs:
    (source,) = data_sets_in(tmp_path / "ct")
    targets = {path.stem: load_volume(path) for path in sorted((tmp_path / "mr").iterdir())}
    return AdaptInputs(source=source, targets=targets)


def test_several_processes_are_refused(inputs: AdaptInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "_joined", Launch(0, 0, 2))
    with pytest.raises(InputError, match="uda works in one process, and torchrun has started 2; start the command"):
        uda.adapt(inputs, uda.Recipe(), RunContext(np.random.default_rng(0)))


def test_what_is_missing_or_of_no_use_is_refused_before_any_stage(inputs: AdaptInputs) -> None:
    recipe, run = uda.Recipe(), RunContext(np.random.default_rng(0))
    for changed, context, sentence in (
        (replace(inputs, source=None), run, "A labelled source data set is needed"),
        (replace(inputs, targets=dict(list(inputs.targets.items())[:1])), run, "At least 2 unlabelled .* got 1"),
        (replace(inputs, start=an_adapter()), run, "cannot continue from an adapter"),
        (inputs, replace(run, max_seconds=60.0), "cannot end at a time limit"),
    ):
        with pytest.raises(InputError, match=sentence):
            uda.adapt(changed, recipe, context)


def test_samples_to_look_at_need_no_training(inputs: AdaptInputs, a_listener: Listener) -> None:
    recipe = uda.resolve(uda.Recipe(patch=(4, 32, 32)), "", torch.device("cpu"))
    samples = uda.training_samples(inputs, recipe, np.random.default_rng(0), 4)
    kinds = [sample.provenance["caption"].split(":")[0] for sample in samples]
    assert kinds == ["source, before translation", "target"] * 2
    assert {sample.image.shape for sample in samples} == {(32, 32)}
    assert {name for sample in samples for name in sample.provenance["structures"].values()} == {"disc", "square"}
    assert uda.preflight([]) == []
