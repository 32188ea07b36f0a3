"""Sources and targets on one grid; stages are kept and found again, and say what stops them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.io.datasets import CaseFiles, DataSet, data_sets_in
from FewShotSegLib.io.volumes import load_volume, save_labelmap, save_volume
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods.uda import stages as module
from FewShotSegLib.methods.uda.networks import Prediction
from FewShotSegLib.methods.uda.pseudo_labels import PseudoLabelRecipe
from FewShotSegLib.methods.uda.recipe import UDA_PRESETS, Recipe, resolve
from FewShotSegLib.methods.uda.registration import Attempt, Borrowed, Match, Registration
from FewShotSegLib.methods.uda.stages import Sources, Stages
from FewShotSegLib.progress import silent
from FewShotSegLib.training.fit import FitResult
from FewShotSegLib.training.patches import PatchRecipe
from Testing.conftest import Listener
from Testing.Library.methods.uda.conftest import QUICK, messages_of, other_kind


def test_a_stage_that_is_there_is_not_computed_again(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)
    again, listener = replace(a_job, out=str(tmp_path / "again.safetensors")), Listener()
    run(again, listener)
    assert not {"learning to translate", "teacher 1", "small network"} & messages_of(listener)
    assert Path(again.out).read_bytes() == Path(a_job.out).read_bytes()
    other = replace(a_job, out=str(tmp_path / "other.safetensors"), recipe={**QUICK, "rounds": 4})
    listener = Listener()
    run(other, listener)
    assert not {"learning to translate", "teacher 1", "teacher 2", "teacher 3"} & messages_of(listener)
    assert "teacher 4" in messages_of(listener)


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


def a_data_set(folder: Path, structures: dict[str, tuple[str, ...]] | None = None) -> DataSet:
    """Two cases that give the same organs other labels."""
    cases = []
    for number, names in enumerate(({1: "liver", 5: "cyst", 9: "spleen"}, {2: "spleen", 3: "liver"})):
        labels = np.zeros((2, 8, 8), np.uint8)
        for at, value in enumerate(names):
            labels[:, 2 * at : 2 * at + 2] = value
        image = folder / f"{number}.nrrd"
        save_volume(Volume(np.arange(labels.size, dtype=np.float32).reshape(labels.shape), np.eye(4)), image)
        save_labelmap(Labelmap(Volume(labels, np.eye(4)), names), folder / f"{number}.seg.nrrd")
        cases.append(CaseFiles(image, folder / f"{number}.seg.nrrd"))
    return DataSet("north", tuple(cases), structures)


def test_labels_of_all_sources_are_numbered_alike_by_name(tmp_path: Path) -> None:
    sources = Sources(a_data_set(tmp_path))
    assert sources.structures == {1: "cyst", 2: "liver", 3: "spleen"}
    assert sources.labels["0.nrrd"][0, ::2, 0].tolist() == [2, 1, 3, 0]
    assert sources.labels["1.nrrd"][0, ::2, 0].tolist() == [3, 2, 0, 0]
    assert list(sources.volumes) == ["0.nrrd", "1.nrrd"]


def test_a_structure_may_be_made_of_several_labels_and_what_is_not_wanted_is_background(tmp_path: Path) -> None:
    sources = Sources(a_data_set(tmp_path, {"liver": ("liver", "cyst")}))
    assert sources.structures == {1: "liver"}
    assert sources.labels["0.nrrd"][0, ::2, 0].tolist() == [1, 1, 0, 0]
    assert sources.labels["1.nrrd"][0, ::2, 0].tolist() == [0, 1, 0, 0]


@pytest.fixture
def stages(a_job: AdaptJob, tmp_path: Path) -> Any:
    """Makes the stages of a recipe on the discs."""
    (source,) = data_sets_in(tmp_path / "ct")
    targets = {path.stem: load_volume(path) for path in sorted((tmp_path / "mr").iterdir())}

    def make(seed: int = 0, **options: Any) -> Stages:
        recipe = Recipe(**{**QUICK, "patch": (4, 32, 32), "pseudo_labels": PseudoLabelRecipe(), **options})
        recipe = resolve(recipe, "", torch.device("cpu"))
        return Stages(Sources(source), targets, recipe, seed, torch.device("cpu"), silent, None)

    return make


def test_all_that_results_depend_on_decides_where_they_are_kept(stages: Any, a_cache: Path) -> None:
    folders = [
        stages().folder,
        stages(seed=1).folder,
        stages(space="intensity").folder,
        stages(patch=(4, 48, 48)).folder,
        stages(spacing_mm=(2.0, 2.0, 4.0)).folder,
        stages(edges="voxels").folder,
        stages(foreground_percentiles=True).folder,
    ]
    assert len(set(folders)) == len(folders)
    assert stages(steps=99).folder == folders[0]  # what only a later stage depends on is in the name of its file
    assert all(folder.parent == a_cache / "uda" for folder in folders)


def test_sources_and_targets_are_seen_in_one_space_on_one_grid(stages: Any) -> None:
    made = stages(space="anatomy", spacing_mm=(2.0, 2.0, 4.0))
    assert made.anatomy is not None
    assert made.anatomy.mode == "2d"  # slices are four times as thick as their voxels are wide
    shapes = {image.shape for image in made.target_images.values()} | {made._source_case("case 0.nrrd").image.shape}
    assert shapes == {(6, 32, 32)}
    volume, _ = other_kind(20)
    expected = AnatomySpace("2d").apply(volume).array
    np.testing.assert_allclose(stages(space="anatomy").target_images["patient 0"], expected, atol=1e-6)
    plain = stages(space="intensity")
    assert plain.anatomy is None
    assert plain.target_intensity.kind == "percentile"


def test_the_plane_is_made_coarser_where_the_preset_says_so(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stages().grid.spacing_mm == (1.0, 1.0, 4.0)  # 64 voxels are no more than the preset's 96
    small = replace(UDA_PRESETS["cpu"], in_plane=16)
    monkeypatch.setitem(UDA_PRESETS, "cpu", small)
    assert stages().grid.spacing_mm == (4.0, 4.0, 4.0)
    assert stages(spacing_mm=(1.5, 1.5, 4.0)).grid.spacing_mm == (1.5, 1.5, 4.0)


def test_samples_to_look_at_are_of_sources_and_targets_in_turn(stages: Any) -> None:
    made, rng = stages(), np.random.default_rng(0)
    samples = [made.training_sample(number, rng) for number in range(6)]
    assert [sample.provenance["caption"] for sample in samples] == [
        "source, before translation: case 0.nrrd",
        "target: patient 0",
        "source, before translation: case 1.nrrd",
        "target: patient 1",
        "source, before translation: case 0.nrrd",
        "target: patient 2",
    ]
    assert [bool(sample.labels.any()) for sample in samples] == [True, False] * 3


def test_one_stopped_early_gives_way_to_the_network_before_and_a_half_trained_one_is_kept(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"teacher 1": (3, "steps"), "teacher 2": (1, "user")}

    def train(cases: Any, *given: Any, message: str, **more: Any) -> Any:
        steps, stopped_by = done[message]
        return {"weights": np.full(1, steps, np.float32)}, FitResult({}, None, -1, steps, 0.0, stopped_by)

    monkeypatch.setattr(module, "train_classes", train)
    monkeypatch.setattr(Stages, "_predicted", lambda self, weights, image, *given: Prediction(ones_like(image), 0.1))
    made = stages(translate=False, steps=3, teacher_size="paper", inherited_fraction=1.0)
    weights, training = made.result()
    assert weights["weights"].tolist() == [3]  # of 3 steps of the second one was done
    assert (training.size, made.training.size) == ("paper", "small")  # what is kept is a teacher
    assert made.metrics["stopped_by"] == "user"
    done["teacher 2"] = (2, "user")
    assert stages(translate=False, steps=3).result()[0]["weights"].tolist() == [2]


def ones_like(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, np.uint8)


# What each network is taught, with networks that only answer: a teacher labels every target with its own number, and
# doubts the last one.


class Taught:
    """Stands in for training and prediction; `of` has the cases that each network was taught, by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, str] = {}
        self.start: dict[str, int | None] = {}
        self.steps: dict[str, int] = {}
        self.seeds: dict[str, int] = {}
        monkeypatch.setattr(module, "train_classes", self._train)
        monkeypatch.setattr(Stages, "_predicted", self._predict)

    def _train(
        self, cases: Any, shares: Any, grid: Any, names: Any, training: Any, *, message: str, **more: Any
    ) -> Any:
        self.of[message] = {case.name: case for case in cases}
        self.sizes[message] = training.size
        self.steps[message], self.seeds[message] = training.steps, more["seed"]
        start = more["start"]
        self.start[message] = None if start is None else int(start["number"][0])
        number = int(message.split()[-1]) if message.startswith("teacher") else 0
        return {"number": np.full(1, number, np.float32)}, FitResult({}, None, -1, training.steps, 0.0, "steps")

    @staticmethod
    def _predict(self: Stages, weights: Any, image: np.ndarray, name: str, number: int) -> Prediction:
        labels = np.zeros(image.shape, np.uint8)
        labels[:, : int(weights["number"][0])] = 1  # one row more from round to round
        return Prediction(labels, 0.4 if name.endswith("2") else 0.1)

    def rows(self, network: str, case: str) -> int:
        """How many rows of a target were labelled for a network, or -1 where it was not taught that target."""
        taught = self.of[network].get(case)
        return -1 if taught is None else int(taught.mask[0, :, 0].sum())


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Taught:
    def lent(case: Any, volume: Volume, pool: Any, *given: Any, **more: Any) -> Borrowed:
        """Whoever borrows gets 20 rows."""
        labels = np.zeros(volume.shape, np.uint8)
        labels[:, :20] = 1
        attempt = Attempt(Match(pool[0].name, 0.0, False), Registration(np.eye(4), 1.0, 0.5, 1.0, 1.0))
        return Borrowed(volume.like(labels), (attempt,))

    monkeypatch.setattr(module, "borrow_labels", lent)
    return Taught(monkeypatch)


SOURCES = {"case 0.nrrd", "case 1.nrrd"}
TARGETS = {"patient 0", "patient 1", "patient 2"}


def test_matching_comes_before_self_training_which_goes_on_from_the_updated_labels(stages: Any, taught: Taught) -> None:
    made = stages(translate=False, rounds=3)
    made.result()
    assert set(taught.of) == {"teacher 1", "teacher 2", "teacher 3", "small network"}
    assert set(taught.of["teacher 1"]) == SOURCES
    assert [taught.rows("teacher 2", f"patient {at}") for at in range(3)] == [1, 1, 20]  # 2 is doubted and borrows
    assert [taught.rows("teacher 3", f"patient {at}") for at in range(3)] == [2, 2, 2]
    # The filter sees rounds 2 and 3 alone: 1/3 of change for each, whoever borrowed.
    changes = {row["name"]: row["uncertainty"] for row in made.metrics["stages"]["filter"]}
    assert changes == pytest.approx(dict.fromkeys(TARGETS, 1 / 3))
    assert made.metrics["stages"]["matching"]["lenders"] == ["patient 0", "patient 1"]


def test_of_two_rounds_the_first_is_from_before_matching(stages: Any, taught: Taught) -> None:
    made = stages(translate=False, rounds=2)
    made.result()
    assert [taught.rows("teacher 2", f"patient {at}") for at in range(3)] == [1, 1, 20]
    changes = {row["name"]: row["uncertainty"] for row in made.metrics["stages"]["filter"]}
    assert changes == pytest.approx(dict.fromkeys(TARGETS, 1 / 2))


@pytest.mark.parametrize(
    ("options", "networks", "rows"),
    [
        ({"rounds": 1, "match": False, "filter": False}, {"small network"}, [-1, -1, -1]),
        ({"rounds": 1, "match": True, "filter": False}, {"teacher 1", "small network"}, [1, 1, 20]),
        ({"rounds": 2, "match": False, "filter": False}, {"teacher 1", "teacher 2", "small network"}, [2, 2, 2]),
        ({"rounds": 2, "match": True, "filter": False}, {"teacher 1", "teacher 2", "small network"}, [2, 2, 2]),
        ({"rounds": 2, "match": False, "filter": True}, {"teacher 1", "teacher 2", "small network"}, [2, 2, 2]),
    ],
)
def test_each_part_alone_teaches_the_small_network_what_it_says(
    stages: Any, taught: Taught, options: dict[str, Any], networks: set[str], rows: list[int]
) -> None:
    stages(translate=False, **options).result()
    assert set(taught.of) == networks
    assert set(taught.of["small network"]) >= SOURCES
    assert [taught.rows("small network", f"patient {at}") for at in range(3)] == rows


def test_the_filter_keeps_the_most_uncertain_target_from_the_small_network(stages: Any, taught: Taught) -> None:
    made = stages(translate=False, rounds=2, match=False, pseudo_labels=PseudoLabelRecipe(drop_fraction=0.34))
    made.result()
    (dropped,) = [row["name"] for row in made.metrics["stages"]["filter"] if not row["kept"]]
    assert set(taught.of["small network"]) == SOURCES | TARGETS - {dropped}


def test_networks_learn_from_the_translated_images(
    stages: Any, taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inverting:
        def translate(self, image: np.ndarray, **more: Any) -> np.ndarray:
            return 1 - image

    monkeypatch.setattr(Stages, "_translator", lambda self, cases: Inverting())
    made = stages(space="intensity", rounds=2, match=False, filter=False)
    made.result()
    for network in ("teacher 1", "teacher 2", "small network"):
        for name in SOURCES:
            expected = 1 - made._source_case(name).image
            np.testing.assert_allclose(taught.of[network][name].image, expected, atol=1e-6)


def test_teachers_are_larger_than_the_network_that_is_kept_where_the_recipe_says_so(
    stages: Any, taught: Taught
) -> None:
    _, training = stages(translate=False, rounds=2, match=False, filter=False, teacher_size="large").result()
    assert taught.sizes == {"teacher 1": "large", "teacher 2": "large", "small network": "small"}
    assert training.size == "small"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"teacher 1": None, "teacher 2": 1, "teacher 3": 2, "small network": 3}),
        ({"teacher_size": "large"}, {"teacher 1": None, "teacher 2": 1, "teacher 3": 2, "small network": None}),
        ({"inherit_weights": False}, dict.fromkeys(("teacher 1", "teacher 2", "teacher 3", "small network"))),
    ],
)
def test_a_network_inherits_the_weights_of_the_one_before_if_they_fit(
    stages: Any, taught: Taught, options: dict[str, Any], expected: dict[str, int | None]
) -> None:
    stages(translate=False, **options).result()
    assert taught.start == expected
    stages(translate=False, **options).result()  # what is kept is inherited as well
    assert taught.start == expected


def test_a_network_with_inherited_weights_is_trained_for_a_fraction_of_the_steps(stages: Any, taught: Taught) -> None:
    stages(translate=False, steps=10, inherited_fraction=0.3).result()
    assert taught.steps == {"teacher 1": 10, "teacher 2": 3, "teacher 3": 3, "small network": 3}
    stages(translate=False, steps=10, inherited_fraction=0.3, teacher_size="large").result()
    assert taught.steps == {"teacher 1": 10, "teacher 2": 3, "teacher 3": 3, "small network": 10}
    stages(translate=False, steps=1, inherited_fraction=0.3).result()
    assert taught.steps["teacher 2"] == 1


def test_the_one_network_of_a_short_run_is_the_first_of_a_long_one(stages: Any, taught: Taught) -> None:
    stages(translate=False).result()
    assert len(set(taught.seeds.values())) == 4
    alone = stages(translate=False, rounds=1, match=False, filter=False)
    taught.of.clear()
    weights, _ = alone.result()
    assert not taught.of  # found where the first teacher was kept
    assert int(weights["number"][0]) == 1


def test_edges_and_intensities_are_translated_by_one_kind_of_generator(stages: Any) -> None:
    recipes = [stages(space=space)._translation_recipe() for space in ("anatomy", "intensity")]
    assert recipes[0] == recipes[1]
    assert not recipes[0].skip
    assert stages(residual=True)._translation_recipe().skip


def test_edges_are_not_shaded(stages: Any) -> None:
    assert stages(space="anatomy").training.patches == PatchRecipe().unshaded()
    assert stages(space="intensity").training.patches == PatchRecipe()


def test_percentiles_of_the_foreground_are_those_of_all_labelled_voxels(stages: Any) -> None:
    made = stages(space="intensity", foreground_percentiles=True)
    volumes, labels = made.sources.volumes, made.sources.labels
    values = np.concatenate([volumes[name].array[labels[name] > 0] for name in volumes])
    window = made.source_intensity
    assert (window.kind, window.low, window.high) == ("window", *np.percentile(values, (0.5, 99.5)))
    name = next(iter(volumes))
    expected = window.apply(volumes[name].array)
    np.testing.assert_allclose(made._source_case(name).image, expected, atol=1e-6)
    assert stages(space="intensity").source_intensity is None
