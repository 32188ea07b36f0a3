"""The rules of the benchmark of unsupervised adaptation; the numbers themselves are in Testing/BENCHMARKS.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.benchmarks import uda
from FewShotSegLib.benchmarks.datasets import DATASETS
from FewShotSegLib.benchmarks.uda import CT, MR, ROWS
from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.uda.recipe import Recipe


def test_every_row_is_a_recipe_and_no_two_are_the_same() -> None:
    recipes = [Recipe(**options) for options in ROWS.values()]
    assert len({repr(recipe) for recipe in recipes}) == len(recipes)


def test_organs_have_the_labels_of_their_data_sets() -> None:
    assert {name: DATASETS["btcv"].structures[value] for name, value in CT.items()} == {name: name for name in CT}
    assert {name: DATASETS["chaos"].structures[value] for name, value in MR.items()} == {name: name for name in CT}


def test_the_source_has_all_labelled_cases_and_the_scored_organs_only(tmp_path: Path) -> None:
    (tmp_path / "btcv_synapse_ct").mkdir()
    for number in (2, 1):
        (tmp_path / "btcv_synapse_ct" / f"{number}_img.nii.gz").touch()
    source = uda._source(tmp_path)
    assert [case.image.name for case in source.cases] == ["1_img.nii.gz", "2_img.nii.gz"]
    assert [case.labelmap.name for case in source.cases] == ["1_lab.nii.gz", "2_lab.nii.gz"]
    assert source.cases[0].structures == {1: "spleen", 2: "right kidney", 3: "left kidney", 6: "liver"}
    assert source.structures == {name: (name,) for name in CT}


def a_run(row: str, seed: int, dsc: float, seconds: float) -> dict[str, Any]:
    """Two targets and a volume held back, which is 10 points worse."""
    scores = {
        case: {name: [dsc + better + 0.01 * at, dsc / 2] for at, name in enumerate(MR)}
        for case, better in (("1", 0.0), ("2", 0.04), ("3", -0.1))
    }
    cost = {"seconds": seconds / 10, "peak_mb": 0.0, "mean_mb": 0.0, "area_mb_s": 0.0}
    common = {"row": row, "seed": seed, "seconds": seconds, "segmenting": cost, "stages": {}}
    return {**common, "scores": scores, "held_out": ["3"]}


def test_the_tables_have_means_over_seeds_and_organs_in_the_order_of_the_paper() -> None:
    runs = [a_run("CycleGAN", 1, 0.60, 30.0), a_run("CT only", 0, 0.20, 5.0), a_run("CycleGAN", 0, 0.40, 10.0)]
    held_out, targets = uda._table(runs).split("\n\nDSC")[0], uda._table(runs).split("\nDSC")[1]
    lines = held_out.splitlines()
    assert lines[0] == "DSC / NSD (%, 2 mm), mean over all held back volumes and seeds; quartiles of DSC."
    assert lines[2].startswith("|  | liver | right kidney | left kidney | spleen | mean | quartiles | seconds |")
    assert lines[4] == (
        "| CT only | 10.0 / 10.0 | 11.0 / 10.0 | 12.0 / 10.0 | 13.0 / 10.0 | 11.5 / 10.0 | 11.5 to 11.5 | 5 | 0.5 |  |"
    )
    organs = "40.0 / 25.0 | 41.0 / 25.0 | 42.0 / 25.0 | 43.0 / 25.0"
    assert lines[5] == f"| CycleGAN | {organs} | 41.5 / 25.0 | 36.5 to 46.5 | 20 | 2.0 |  |"
    (only,) = [line for line in targets.splitlines() if line.startswith("| CT only")]
    assert only.startswith("| CT only | 22.0 / 10.0 | 23.0 / 10.0 |")  # mean of the two targets


def test_each_part_has_a_row_of_its_own_and_one_on_top_of_the_others() -> None:
    for space in ("CycleGAN", "ASIT"):
        rows = {row.removeprefix(space): Recipe(**ROWS[row]) for row in ROWS if row.startswith(f"{space} +")}
        assert {(r.rounds, r.match, r.filter) for r in rows.values()} == {
            (3, False, False),
            (1, True, False),
            (3, True, False),
            (3, False, True),
            (3, True, True),
        }


def test_a_run_that_is_there_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def run(row: str, seed: int, setting: uda.Setting) -> dict[str, Any]:
        made.append((row, seed, setting.recipe, setting.held_out))
        return {key: value for key, value in a_run(row, seed, 0.5, 1.0).items() if key not in ("row", "seed")}

    monkeypatch.setattr(uda, "_run", run)
    out = tmp_path / "result"
    words = ["--data", str(tmp_path), "--out", str(out), "--rows", "CT only", "CycleGAN", "--recipe", "steps=3"]
    assert uda.main(words) == 0
    assert uda.main([*words, "--seeds", "2"]) == 0
    assert made == [(row, seed, ("steps=3",), 2) for seed in (0, 1) for row in ("CT only", "CycleGAN")]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text(encoding="utf-8"))


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data folder .*nowhere"):
        uda.main(["--data", str(tmp_path / "nowhere")])
