"""The rules of the support-set benchmark; the numbers themselves are in Testing/BENCHMARKS.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.benchmarks import support
from FewShotSegLib.benchmarks.datasets import PublicDataSet
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import save_volume
from Testing.conftest import discs

TOY = PublicDataSet(
    "toy",
    "toy/*_img.nii.gz",
    (r"_img\.", "_lab."),
    {1: "disc", 2: "square"},
    IntensitySpec("window", -100, 200),
    train=1,
)


@pytest.fixture
def a_data_folder(tmp_path: Path) -> Path:
    for number in range(2):
        volume, labels = discs(np.random.default_rng(number))
        (tmp_path / "toy").mkdir(exist_ok=True)
        save_volume(volume, tmp_path / f"toy/{number}_img.nii.gz")
        save_volume(volume.like(labels), tmp_path / f"toy/{number}_lab.nii.gz")
    return tmp_path


def test_every_size_is_scored_once_and_goes_on_where_it_stopped(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    out = a_data_folder / "result"
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "1", "2", "9", "--seeds", "1", "--trained"]
    words += ["--cases", "1", "--slices", "3", "--out", str(out), "--base", a_tiny_base]
    assert support.main(words) == 0
    runs = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(run["size"], run["model"]) for run in runs] == [(1, support.SUPPORT), (2, support.SUPPORT)]
    assert all({row["structure"] for row in run["scores"]} == {"disc", "square"} for run in runs)
    table = out.with_suffix(".md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == table
    assert table.count("\n| toy | ") == 2
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = out.with_suffix(".jsonl").read_bytes()
    assert support.main(words) == 0
    assert out.with_suffix(".jsonl").read_bytes() == before


def test_ensembles_begin_where_subsets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = support._parser().parse_args(["--data", ".", "--sizes", "6", "7", "--datasets", "acdc", "--seeds", "1"])
    cells = [(size, model) for _, size, model, _ in support._cells(chosen)][:3]
    assert cells == [(6, support.SUPPORT), (7, support.SUPPORT), (7, support.ENSEMBLE)]


def test_what_is_forgotten_is_the_change_from_before_the_second_task_to_after() -> None:
    run = {"kind": "forgetting", "lora": "loose", "first": "acdc", "second": "chaos", "seed": 0}
    runs = [
        {**run, "dice": [[0.5, 0.8, 0.6], [0.4, 0.5, 0.9]]},
        {**run, "seed": 1, "dice": [[0.5, 0.6, 0.6], [0.4, 0.5, 0.7]]},
    ]
    assert "| loose | acdc, chaos | 50.0 | 70.0 | 60.0 | -10.0 | 40.0 | 80.0 |" in support._tables(runs)


def test_sets_drawn_by_lot_are_drawn_as_boxes_beside_the_curves(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    out = a_data_folder / "result"
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "1", "--seeds", "3", "--trained", "--random"]
    words += ["--cases", "1", "--slices", "3", "--out", str(out), "--base", a_tiny_base, "--models", support.SUPPORT]
    made, shown = support.support_adapter, []
    monkeypatch.setattr(
        support,
        "support_adapter",
        lambda given, *rest, **how: shown.append([e.annotated_slices for e in given]) or made(given, *rest, **how),
    )
    assert support.main(words) == 0
    assert len({str(slices) for slices in shown}) > 1  # another set for each seed
    assert (a_data_folder / "result-sets.png").read_bytes().startswith(b"\x89PNG")
    runs = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    spread = support._spreads(runs)["toy"]["1"]
    assert spread == [support._mean(run["scores"], "dsc") for run in runs]


def a_run(size: int, model: str, seed: int, *dice: float, dataset: str = "acdc") -> dict[str, Any]:
    scores = [
        {"case": case, "structure": name, "dsc": value, "iou": value / 2, "asd_mm": 1.5}
        for name, value in zip(("left ventricle", "myocardium"), dice, strict=True)
        for case in "ab"
    ]
    times = {"setup_s": 2.0 + seed, "setup_cpu_s": 4.0, "slice_s": 0.1}
    run = {"kind": "size", "dataset": dataset, "size": size, "model": model, "seed": seed, "scores": scores, **times}
    return {**run, "plane": 0, "drawn": False, "tasks": None}


def test_tables_have_means_over_structures_and_spreads_over_seeds() -> None:
    runs = [
        a_run(1, support.SUPPORT, 0, 0.4, 0.6),
        a_run(1, support.SUPPORT, 1, 0.6, 0.8),
        a_run(8, support.SUPPORT, 0, 0.8, 0.9),
        a_run(8, support.UNET, 0, 0.2, 0.3),
    ]
    sizes, structures, times = (table.strip().splitlines()[2:] for table in support._tables(runs).split("\n\n"))
    assert sizes == [
        "| acdc | 1 | 60.0 ± 10.0 / 30.0 / 1.5 |  |  |  |  |  |  |",
        "| acdc | 8 | 85.0 / 42.5 / 1.5 |  |  |  |  |  | 25.0 / 12.5 / 1.5 |",
    ]
    assert structures == ["| acdc: left ventricle | 50.0 | 80.0 |", "| acdc: myocardium | 70.0 | 90.0 |"]
    assert times == ["| 1 | 2.50 | 4.00 | 0.10 |", "| 8 | 2.00 | 4.00 | 0.10 |"]


def test_of_sets_drawn_by_lot_the_table_has_quartiles() -> None:
    runs = [a_run(4, support.SUPPORT, seed, seed / 10, seed / 10) | {"drawn": True} for seed in range(1, 6)]
    (row,) = support._quartile_table(runs).splitlines()[2:]
    assert row == "| acdc | 4 | support set | 5 | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 |"


def test_every_set_drawn_by_lot_is_a_value_of_its_box_and_no_other_is() -> None:
    runs = [a_run(size, support.SUPPORT, seed, seed / 10, seed / 10) for size in (16, 2) for seed in (1, 2)]
    drawn = [run | {"drawn": True} for run in runs]
    assert support._spreads([*drawn, *runs]) == {"acdc": {"2": [0.1, 0.2], "16": [0.1, 0.2]}}
    other = a_run(2, support.NEAREST, 1, 0.5, 0.5) | {"drawn": True}
    assert set(support._spreads([*drawn, other])) == {"acdc: support set", "acdc: nearest slice"}
    assert support._spreads(runs) == {}


def test_planes_are_told_apart_in_every_table() -> None:
    runs = [a_run(4, support.SUPPORT, 0, 0.2, 0.2) | {"plane": plane, "drawn": True} for plane in (2, 0, 1)]
    text = support._tables(runs)
    for start in ("| acdc | 4 |", "| acdc, across J | 4 |", "| acdc, across I | 4 |"):
        assert text.count(f"\n{start}") == 2  # sizes and quartiles
    assert "| acdc, across I: myocardium |" in text
    assert list(support._curves(runs)) == ["acdc", "acdc, across J", "acdc, across I"]


def test_training_on_fewer_data_sets_has_a_table_of_its_own_and_is_in_no_other() -> None:
    runs = [
        a_run(4, support.GMISEG, seed, dice, dice) | {"tasks": tasks}
        for tasks, seed, dice in [(2, 0, 0.2), (None, 0, 0.8), (4, 0, 0.4), (4, 1, 0.6)]
    ]
    rows = support._tables(runs).split("| data set | slices | data sets trained on | Dice |")[1].splitlines()[2:]
    assert rows == ["| acdc | 4 | 2 | 20.0 |", "| acdc | 4 | 4 | 50.0 |", "| acdc | 4 | all | 80.0 |"]
    assert "| acdc | 4 |  |  | 80.0 / 40.0 / 1.5 |" in support._tables(runs)
    assert support._task_table(runs[1:2]) == ""


@pytest.mark.parametrize("model", [support.CROSS, support.NEAREST, support.GMISEG])
def test_what_is_trained_on_other_data_sets_answers_from_the_support_set(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """The other data set is the same discs under another name, so that even a short training may learn something."""
    other = replace(TOY, name="other", images="toy/*_img.nii.gz")
    monkeypatch.setattr(support, "DATASETS", {"toy": TOY, "other": other})
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    monkeypatch.setitem(support.KNOWN, "other", other)
    monkeypatch.setattr(support.cross_convolution, "SIDE", 32)
    out = a_data_folder / "result"
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "2", "--seeds", "1", "--trained"]
    words += ["--cases", "1", "--slices", "3", "--out", str(out), "--base", a_tiny_base, "--models", model]
    assert support.main([*words, "--seconds", "2"]) == 0
    (run,) = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["structure"] for row in run["scores"]} == {"disc", "square"}
    if model == support.NEAREST:
        assert support._mean(run["scores"], "dsc") > 0.1


def test_gmiseg_and_the_peer_never_see_the_data_set_they_are_tested_on(tmp_path: Path) -> None:
    setting = support.Setting(tmp_path, "bundled-small", 1, 3, 1.0, tasks=2)
    elsewhere = support._TrainedElsewhere(None, setting)  # type: ignore[arg-type]
    for name in support.DATASETS:
        others = [dataset.name for dataset in elsewhere.others(name)]
        assert name not in others
        assert len(others) == 2
    every = support._TrainedElsewhere(None, replace(setting, tasks=None))  # type: ignore[arg-type]
    assert len(every.others("acdc")) == len(support.DATASETS) - 1


def test_a_structure_counts_alike_however_many_cases_show_it() -> None:
    rows = [{"structure": "a", "dsc": 1.0}, {"structure": "b", "dsc": 0.5}, {"structure": "b", "dsc": 0.1}]
    assert support._mean(rows, "dsc") == pytest.approx((1.0 + 0.3) / 2)


def test_curves_have_a_point_for_each_size_that_was_run() -> None:
    runs = [a_run(4, support.SUPPORT, 0, 0.4, 0.6), a_run(1, support.SUPPORT, 0, 0.2, 0.2)]
    runs += [a_run(1, support.LORA, 0, 0.3, 0.3), a_run(1, support.SUPPORT, 1, 0.4, 0.4)]
    curves = support._curves(runs)
    assert list(curves) == ["acdc"]
    assert curves["acdc"].keys() == {support.SUPPORT, support.LORA}
    assert [size for size, _ in curves["acdc"][support.SUPPORT]] == [1, 4]
    assert [dice for _, dice in curves["acdc"][support.SUPPORT]] == pytest.approx([0.3, 0.5])


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data folder .*nowhere"):
        support.main(["--data", str(tmp_path / "nowhere")])
