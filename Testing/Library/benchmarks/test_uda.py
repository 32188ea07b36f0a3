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
    scores = {name: [dsc + 0.01 * at, dsc / 2] for at, name in enumerate(MR)}
    return {"row": row, "seed": seed, "seconds": seconds, "scores": scores, "stages": {}}


def test_the_table_has_means_over_seeds_and_organs_in_the_order_of_the_paper() -> None:
    runs = [a_run("CycleGAN", 1, 0.60, 30.0), a_run("CT only", 0, 0.20, 5.0), a_run("CycleGAN", 0, 0.40, 10.0)]
    lines = uda._table(runs).splitlines()
    assert lines[0] == "DSC / NSD (%, 2 mm), mean over all targets and seeds."
    assert lines[2] == "|  | liver | right kidney | left kidney | spleen | mean | seconds |"
    assert lines[4:] == [
        "| CT only | 20.0 / 10.0 | 21.0 / 10.0 | 22.0 / 10.0 | 23.0 / 10.0 | 21.5 / 10.0 | 5 |",
        "| CycleGAN | 50.0 / 25.0 | 51.0 / 25.0 | 52.0 / 25.0 | 53.0 / 25.0 | 51.5 / 25.0 | 20 |",
    ]


def test_a_run_that_is_there_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def run(data: Path, row: str, seed: int, overrides: list[str]) -> dict[str, Any]:
        made.append((row, seed, overrides))
        return {key: value for key, value in a_run(row, seed, 0.5, 1.0).items() if key not in ("row", "seed")}

    monkeypatch.setattr(uda, "_run", run)
    out = tmp_path / "result"
    words = ["--data", str(tmp_path), "--out", str(out), "--rows", "CT only", "CycleGAN", "--recipe", "steps=3"]
    assert uda.main(words) == 0
    assert uda.main([*words, "--seeds", "2"]) == 0
    assert made == [(row, seed, ["steps=3"]) for seed in (0, 1) for row in ("CT only", "CycleGAN")]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text(encoding="utf-8"))


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data folder .*nowhere"):
        uda.main(["--data", str(tmp_path / "nowhere")])
