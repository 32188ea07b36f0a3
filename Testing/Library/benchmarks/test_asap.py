"""The rules of the benchmark of auxiliary data; the numbers themselves are in Testing/BENCHMARKS.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.benchmarks import asap
from FewShotSegLib.benchmarks.asap import METHODS, TARGETS, Setting, arms_for
from FewShotSegLib.benchmarks.datasets import DATASETS
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.methods.asap.schedulers import SCHEDULERS

SPLEEN = TARGETS["chaos spleen"]


@pytest.fixture
def a_data_folder(tmp_path: Path) -> Path:
    """Cases of three data sets, empty files but for their names."""
    names = {"chaos_mr_t2": 8, "btcv_synapse_ct": 9, "brats2013": 2}
    for folder, count in names.items():
        (tmp_path / folder).mkdir()
        for number in range(count):
            ending = "Flair" if folder == "brats2013" else "img"
            (tmp_path / folder / f"{number}_{ending}.nii.gz").touch()
    return tmp_path


def setting(data: Path, cases: int = 4) -> Setting:
    return Setting(data, 10, cases, ())


def test_methods_differ_in_the_choice_of_auxiliary_data_alone_and_no_two_are_the_same() -> None:
    assert {options["scheduler"] for options in METHODS.values()} == set(SCHEDULERS)
    names = {name for options in METHODS.values() for name in options}
    assert names == {"scheduler", "pretraining", "gradients", "reading", "finish"}
    # The oracle has other arms.
    others = [sorted(options.items()) for name, options in METHODS.items() if not name.startswith("Oracle")]
    assert len({str(options) for options in others}) == len(others)
    assert all(asap.asap.Recipe(**options) for options in METHODS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_the_oracle_s_arm_is_one_of_the_target_s_arms_and_the_only_one_it_has(name: str, a_data_folder: Path) -> None:
    target = TARGETS[name]
    every = arms_for(target, a_data_folder, sorted(a_data_folder.glob(DATASETS[target.data_set].images)))
    (alone,) = asap._only(every, target.oracle)
    assert [f"{alone.name}: {structure}" for structure in alone.structures or {}] == [target.oracle]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_a_structure_of_its_data_set(name: str) -> None:
    target = TARGETS[name]
    known = asap._known(target)
    assert known.structures == {value: target.structure for value in target.labels}
    assert known.images == DATASETS[target.data_set].images


def test_nothing_is_tested_on_that_gave_exemplars_or_arms(a_data_folder: Path) -> None:
    for fold in range(5):
        shots, tests, rest = asap._split(asap._known(SPLEEN), setting(a_data_folder), fold)
        assert (len(shots), len(tests), len(rest)) == (3, 4, 1)
        assert len({*shots, *tests, *rest}) == 8


def test_every_fold_has_other_exemplars(a_data_folder: Path) -> None:
    folds = [asap._split(asap._known(SPLEEN), setting(a_data_folder), fold)[0] for fold in range(5)]
    numbers = [[int(path.name[0]) for path in shots] for shots in folds]
    assert numbers == [[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 2, 3], [4, 5, 6]]
    nine = [asap._split(asap._known(TARGETS["btcv liver"]), setting(a_data_folder), fold)[0] for fold in range(5)]
    first = [[int(path.name[0]) for path in shots] for shots in nine]
    assert first == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [1, 2, 3], [4, 5, 6]]
    two = Setting(a_data_folder, 10, 4, (), shots=2)
    assert len(asap._split(asap._known(SPLEEN), two, 0)[0]) == 2


def test_where_cases_are_few_one_is_left_to_test_on(tmp_path: Path) -> None:
    (tmp_path / "chaos_mr_t2").mkdir()
    for number in range(2):
        (tmp_path / "chaos_mr_t2" / f"{number}_img.nii.gz").touch()
    shots, tests, rest = asap._split(asap._known(SPLEEN), setting(tmp_path), 0)
    assert [[path.name[0] for path in part] for part in (shots, tests, rest)] == [["0"], ["1"], []]


def test_arms_are_all_other_structures_and_of_the_targets_own_patients_only_the_rest(a_data_folder: Path) -> None:
    shots, tests, rest = asap._split(asap._known(SPLEEN), setting(a_data_folder), 0)
    arms = {data_set.name: data_set for data_set in arms_for(SPLEEN, a_data_folder, rest)}
    assert arms["chaos"].structures == {name: (name,) for name in ("liver", "right kidney", "left kidney")}
    assert {case.image for case in arms["chaos"].cases} == set(rest)
    assert "spleen" in (arms["btcv"].structures or {})  # another hospital's
    assert len(arms["btcv"].cases) == asap.MOST_CASES
    for data_set in arms.values():
        assert not {case.image for case in data_set.cases} & {*shots, *tests}


def test_parts_of_a_merged_structure_make_one_arm(a_data_folder: Path) -> None:
    (brats,) = [arm for arm in arms_for(SPLEEN, a_data_folder, []) if arm.name == "brats"]
    assert brats.structures == {"whole tumour": ("part 1", "part 2", "part 3", "part 4")}
    assert brats.cases[0].structures == {value: f"part {value}" for value in range(1, 5)}
    assert brats.cases[0].labelmap == (a_data_folder / "brats2013" / "0_lab.nii.gz").resolve()


def test_a_data_set_whose_only_structure_is_the_target_gives_no_arm(a_data_folder: Path) -> None:
    names = [arm.name for arm in arms_for(TARGETS["ms lesions"], a_data_folder, [])]
    assert set(names) == {"btcv", "chaos", "brats"}  # those that have cases here


def test_long_cases_are_thinned_and_stay_in_their_place() -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    array = np.arange(100)[:, None, None] * np.ones((100, 2, 2))
    thin, labels = asap._thinned(Volume(array, affine), array.astype(int))
    assert len(thin.array) <= asap.MOST_SLICES
    assert thin.array[:, 0, 0].tolist() == labels[:, 0, 0].tolist() == list(range(0, 100, 3))
    assert thin.spacing_mm.tolist() == [1, 1, 6]
    short, _ = asap._thinned(Volume(array[:48], affine), array[:48])
    assert len(short.array) == 48


def test_a_case_without_the_structure_has_no_score(tmp_path: Path) -> None:
    (tmp_path / "chaos_mr_t2").mkdir()
    image = tmp_path / "chaos_mr_t2" / "0_img.nii.gz"
    save_volume(Volume(np.random.default_rng(0).random((2, 4, 4)), np.eye(4)), image)
    save_volume(Volume(np.ones((2, 4, 4), np.uint8), np.eye(4)), tmp_path / "chaos_mr_t2" / "0_lab.nii.gz")
    assert asap._score(None, asap._known(SPLEEN), image, SPLEEN) is None


@pytest.mark.parametrize("network", ["unet", "sam"])
def test_a_run_adapts_to_the_exemplars_beside_the_arms_and_is_scored_without_prompts(
    network: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for folder, label, count in (("chaos_mr_t2", 4, 3), ("btcv_synapse_ct", 1, 1)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            labels = np.zeros((4, 32, 32), np.uint8)
            labels[1:, 8:24, 8:24] = label
            image = (40 * (labels > 0) + rng.normal(size=labels.shape)).astype(np.float32)
            for name, array in (("img", image), ("lab", labels)):
                save_volume(Volume(array, np.eye(4)), tmp_path / folder / f"{number}_{name}.nii.gz")
    chosen = Setting(tmp_path, 2, 4, ("pretraining_steps=1", "batch_size=1"), shots=2, base="bundled-small")
    run = asap._run(SPLEEN, "Oracle", network, 0, 0, chosen)
    assert (run["cases"], run["arms"]) == (1, 1)
    assert {name for _, name, _ in run["turns"]} == {"btcv: spleen"}
    assert 0 <= run["iou"] <= run["dice"] <= 1
    assert run["dice"] > 0.2 or network == "unet"  # two steps teach a network from random weights nothing


def a_run(target: str, method: str, seed: int, dice: float, network: str = "unet") -> dict[str, Any]:
    run = {"target": target, "network": network, "method": method, "seed": seed, "dice": dice, "iou": dice / 2}
    return run | {"fold": 0, "shots": 3, "steps": 300, "seconds": 10.0 * seed}


def test_the_table_has_mean_and_spread_over_seeds_and_a_mean_where_every_target_was_run() -> None:
    runs = [
        a_run("chaos spleen", "ASAP", 0, 0.70),
        a_run("chaos spleen", "ASAP", 1, 0.80),
        a_run("btcv liver", "ASAP", 0, 0.50),
        a_run("chaos spleen", "Direct", 0, 0.60),
    ]
    lines = asap._table(runs).splitlines()
    assert lines[0].startswith("DSC / mIoU (%), mean and spread over seeds and folds, 300 steps, 3 shots; in brackets ")
    assert lines[2] == "| network | method | chaos spleen | btcv liver | mean | seconds |"
    assert lines[4:] == [
        "| unet | Direct | 60.0 / 30.0 |  |  | 0 |",
        "| unet | ASAP | 75.0 ± 5.0 / 37.5 | 50.0 / 25.0 [92.1 / 85.6] | 62.5 | 3 |",
    ]
    two = [*runs, a_run("chaos spleen", "ASAP", 0, 0.4) | {"shots": 2}]
    assert asap._table(two).count("| unet | ASAP |") == 2


def test_the_paper_s_numbers_are_of_rows_and_networks_that_can_be_run() -> None:
    for target, methods in asap.PUBLISHED.items():
        assert target in TARGETS
        assert set(methods) <= set(METHODS)
        assert all(len(values) == len(asap.PAPER_NETWORKS) for values in methods.values())
    assert asap._published("btcv vessel", "GMS", "swinunet") == " [36.2 / 22.5]"
    assert asap._published("chaos spleen", "GMS", "unet") == asap._published("btcv liver", "Oracle", "unet") == ""
    assert asap._published("btcv liver", "GMS", "sam") == ""


def test_where_training_has_several_lengths_there_are_curves_over_them() -> None:
    runs = [a_run("chaos spleen", "ASAP", seed, 0.2 + seed / 10) | {"steps": 100} for seed in (0, 1)]
    runs += [a_run("chaos spleen", "ASAP", 0, 0.8), a_run("chaos spleen", "Direct", 0, 0.7)]
    assert asap._curves(runs) == {"chaos spleen": {"ASAP": [(100.0, pytest.approx(0.25)), (300.0, 0.8)]}}
    other = a_run("chaos spleen", "ASAP", 0, 0.1) | {"shots": 2, "steps": 50}
    assert asap._curves([*runs, other]) == asap._curves(runs)
    assert asap._curves(runs[2:]) == asap._curves([]) == {}


def test_a_run_that_is_there_is_not_made_again(
    a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def run(target: Any, method: str, network: str, seed: int, fold: int, setting: Setting) -> dict[str, Any]:
        made.append((method, seed, fold))
        return {"dice": 0.5, "iou": 0.25, "turns": [], "seconds": 1.0}

    monkeypatch.setattr(asap, "_run", run)
    out = a_data_folder / "result"
    words = ["--data", str(a_data_folder), "--out", str(out), "--targets", "chaos spleen", "--methods", "ASAP", "GMS"]
    assert asap.main([*words, "--seeds", "1"]) == 0
    assert asap.main([*words, "--seeds", "2"]) == 0
    assert asap.main([*words, "--seeds", "1", "--folds", "1"]) == 0
    assert made == [("ASAP", 0, 0), ("GMS", 0, 0), ("ASAP", 1, 0), ("GMS", 1, 0)]
    lines = out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 0, 1, 1]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text(encoding="utf-8"))


def test_a_missing_data_folder_is_named_with_what_needs_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data folder .*nowhere; .* --cost"):
        asap.main(["--data", str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="no data folder None"):
        asap.main([])
