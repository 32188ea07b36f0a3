"""From labelled to unlabelled images of another kind, on discs: bright in one kind, dark in the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob, SegmentJob
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid, onto_grid
from FewShotSegLib.inference.sliding_window import labels_onto_volume, onto_volume
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_volume
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods.uda.networks import ClassRecipe, predicted_labels, train_classes
from FewShotSegLib.methods.uda.recipe import Recipe, smaller_preset
from FewShotSegLib.training.patches import Case
from Testing.conftest import DISC, SQUARE, Listener, discs, write_discs

QUICK: dict[str, Any] = {
    "space": "anatomy",
    "steps": 3,
    "translation_steps": 2,
    "patch": [4, 32, 32],
    "rounds": 2,
    "drift_limit": -1.0,
    "pseudo_labels": {"keep_empty": True, "drop_fraction": 0.0, "uncertainty_limit": None, "vote": "union"},
}


@pytest.fixture(autouse=True)
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def other_kind(seed: int) -> tuple[Volume, np.ndarray]:
    """Discs with their contrast the other way round, as MR beside CT."""
    volume, labels = discs(np.random.default_rng(seed))
    image = 400 - volume.array.clip(-300, 300).astype(np.float32)
    return Volume(image, volume.affine), labels


@pytest.fixture
def a_job(tmp_path: Path, a_home: Path) -> AdaptJob:
    for case in range(2):
        write_discs(tmp_path / "ct", f"case {case}", case)
    (tmp_path / "mr").mkdir()
    for case in range(3):
        save_volume(other_kind(20 + case)[0], tmp_path / "mr" / f"patient {case}.nrrd")
    return AdaptJob(
        str(tmp_path / "discs.safetensors"),
        method="uda",
        source_folder=str(tmp_path / "ct"),
        target_folder=str(tmp_path / "mr"),
        recipe=QUICK,
        device="cpu",
    )


def messages_of(listener: Listener) -> set[str]:
    return {message.split(":")[0] for message in listener.messages}


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


def test_a_stage_that_is_there_is_not_computed_again(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)
    again, listener = replace(a_job, out=str(tmp_path / "again.safetensors")), Listener()
    run(again, listener)
    assert not {"learning to translate", "teacher 1", "small network"} & messages_of(listener)
    assert Path(again.out).read_bytes() == Path(a_job.out).read_bytes()
    other = replace(a_job, out=str(tmp_path / "other.safetensors"), recipe={**QUICK, "rounds": 3})
    listener = Listener()
    run(other, listener)
    assert not {"learning to translate", "teacher 1", "teacher 2"} & messages_of(listener)
    assert "teacher 3" in messages_of(listener)


def test_a_cancelled_run_leaves_no_adapter_and_goes_on_where_it_was(a_job: AdaptJob) -> None:
    class AtTeacher(Listener):
        def __call__(self, progress: Any) -> None:
            super().__call__(progress)
            if progress.message == "teacher 2":
                raise Cancelled

    with pytest.raises(Cancelled):
        run(a_job, AtTeacher())
    assert not Path(a_job.out).exists()
    listener = Listener()
    run(a_job, listener)
    assert "teacher 1" not in messages_of(listener)
    assert "teacher 2" in messages_of(listener)


@pytest.mark.parametrize(
    ("parts", "absent"),
    [
        ({"translate": False}, {"learning to translate"}),
        ({"rounds": 1, "match": False, "filter": False}, {"teacher 2", "small network"}),
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


def test_edges_of_one_kind_teach_about_the_other() -> None:
    """In anatomy space, without any translation: a network that saw bright discs only finds dark ones."""
    sources = [discs(np.random.default_rng(seed)) for seed in range(3)]
    grid = Grid.of(sources[0][0], (4, 48, 48))
    space = AnatomySpace("2d")
    # Orientation and spacing of the grid are those of the volumes.
    cases = [Case(space.apply(volume).array, labels, None, grid.spacing_mm, "") for volume, labels in sources]
    recipe = ClassRecipe(steps=120, batch_size=2, learning_rate=4e-3)
    weights, _ = train_classes(cases, [1, 1, 1], grid, ["disc", "square"], recipe, seed=0)
    volume, truth = other_kind(9)
    found = predicted_labels(weights, space.apply(volume).array, grid, 3, recipe)
    for value in (DISC, SQUARE):
        overlap = 2 * np.count_nonzero((found == value) & (truth == value))
        assert overlap / (np.count_nonzero(found == value) + np.count_nonzero(truth == value)) > 0.5


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"source_folder": None}, "needs folder with labelled source images"),
        ({"target_folder": None}, "needs folder with unlabelled target images"),
        ({"auxiliary_folder": "somewhere"}, "uses no auxiliary data"),
        ({"max_seconds": 5.0}, "no time limit"),
    ],
)
def test_what_is_missing_or_useless_is_said(a_job: AdaptJob, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(replace(a_job, **changes))


def test_one_target_is_too_few(a_job: AdaptJob, tmp_path: Path) -> None:
    for case in (1, 2):
        (tmp_path / "mr" / f"patient {case}.nrrd").unlink()
    with pytest.raises(InputError, match="At least 2 unlabelled"):
        run(a_job)


def test_translations_that_all_drift_stop_the_run_with_advice(a_job: AdaptJob) -> None:
    with pytest.raises(InputError, match="drift_limit"):
        run(replace(a_job, recipe={**QUICK, "drift_limit": 1.0}))


def test_domains_and_patients_are_read_from_the_names_of_targets(a_job: AdaptJob) -> None:
    named = {"domain_of": r"(\d)$", "patient_of": "^(patient)", "filter": False}
    matching = run(replace(a_job, recipe={**QUICK, **named}))["metrics"]["stages"]["matching"]
    assert matching["rule"].startswith("domain ")
    tried = [attempt for borrower in matching["borrowers"].values() for attempt in borrower["attempts"]]
    assert tried
    assert all(attempt["same_patient"] for attempt in tried)


@pytest.mark.parametrize(
    ("pattern", "what"), [("(", "not a regular"), ("patient", "one group"), (r"([01])$", 'nothing .* "patient 2"')]
)
def test_an_expression_that_finds_nothing_is_said(a_job: AdaptJob, pattern: str, what: str) -> None:
    with pytest.raises(InputError, match=f'"domain_of".*{what}'):
        run(replace(a_job, recipe={**QUICK, "domain_of": pattern}))


def test_filtering_needs_two_rounds() -> None:
    with pytest.raises(InputError, match="rounds=1"):
        Recipe(rounds=1)


@pytest.mark.parametrize(("name", "smaller"), [("cpu", None), ("gpu", "cpu"), ("paper", "gpu")])
def test_presets_step_down(name: str, smaller: str | None) -> None:
    assert smaller_preset(name) == smaller


def test_labels_brought_back_are_nearly_those_of_logits_brought_back() -> None:
    """Four smooth bodies on a coarser grid."""
    volume = Volume(np.zeros((60, 120, 120), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]))
    grid = Grid.of(volume, (8, 32, 32), (1.4, 1.4, 2.8))
    shape = onto_grid(volume.array, volume.array, volume.affine, grid)[0].shape
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    centres = [(-0.3, -0.4, -0.4), (0.2, 0.4, -0.3), (0.0, -0.3, 0.4), (0.1, 0.5, 0.5)]
    bodies = [4 * (0.16 - ((z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2)) for c, b, a in centres]
    logits = np.stack([np.zeros(shape), *bodies]).astype(np.float32)
    one = labels_onto_volume(logits.argmax(0).astype(np.uint8), volume, grid)
    other = np.stack([onto_volume(channel, volume, grid) for channel in logits]).argmax(0)
    assert one.shape == other.shape == volume.shape
    for value in range(1, 5):
        found, wanted = one == value, other == value
        assert 2 * np.count_nonzero(found & wanted) / (found.sum() + wanted.sum()) > 0.96
        assert found.sum() == pytest.approx(wanted.sum(), rel=0.02)
