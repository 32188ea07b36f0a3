"""What the tables and curves of the support-set benchmark are made of."""

from __future__ import annotations

from typing import Any

import pytest

from FewShotSegLib.benchmarks import support_tables


def test_what_is_forgotten_is_the_change_from_before_the_second_task_to_after() -> None:
    run = {"kind": "forgetting", "lora": "loose", "first": "acdc", "second": "chaos", "seed": 0}
    runs = [
        {**run, "dice": [[0.5, 0.8, 0.6], [0.4, 0.5, 0.9]]},
        {**run, "seed": 1, "dice": [[0.5, 0.6, 0.6], [0.4, 0.5, 0.7]]},
    ]
    assert "| loose | acdc, chaos | 50.0 | 70.0 | 60.0 | -10.0 | 40.0 | 80.0 |" in support_tables.tables(runs)


def a_run(size: int, model: str, seed: int, *dice: float, dataset: str = "acdc") -> dict[str, Any]:
    scores = [
        {"case": case, "structure": name, "dsc": value, "iou": value / 2, "asd_mm": 1.5}
        for name, value in zip(("left ventricle", "myocardium"), dice, strict=True)
        for case in "ab"
    ]
    times = {"setup_s": 2.0 + seed, "setup_cpu_s": 4.0, "slice_s": 0.1}
    run = {"kind": "size", "dataset": dataset, "size": size, "model": model, "seed": seed, "scores": scores, **times}
    return {**run, "plane": 0, "drawn": False, "trained_on": None}


def test_tables_have_means_over_structures_and_spreads_over_seeds() -> None:
    runs = [
        a_run(1, support_tables.SUPPORT, 0, 0.4, 0.6),
        a_run(1, support_tables.SUPPORT, 1, 0.6, 0.8),
        a_run(8, support_tables.SUPPORT, 0, 0.8, 0.9),
        a_run(8, support_tables.UNET, 0, 0.2, 0.3),
    ]
    sizes, structures, times = (table.strip().splitlines()[2:] for table in support_tables.tables(runs).split("\n\n"))
    assert sizes == [
        "| acdc | 1 | 60.0 ± 10.0 / 30.0 / 1.5 |  |  |  |  |  |  |",
        "| acdc | 8 | 85.0 / 42.5 / 1.5 |  |  |  |  |  | 25.0 / 12.5 / 1.5 |",
    ]
    assert structures == ["| acdc: left ventricle | 50.0 | 80.0 |", "| acdc: myocardium | 70.0 | 90.0 |"]
    assert times == ["| 1 | 2.50 | 4.00 | 0.10 |", "| 8 | 2.00 | 4.00 | 0.10 |"]


def test_of_sets_drawn_by_lot_the_table_has_quartiles() -> None:
    runs = [a_run(4, support_tables.SUPPORT, seed, seed / 10, seed / 10) | {"drawn": True} for seed in range(1, 6)]
    (row,) = support_tables._quartile_table(runs).splitlines()[2:]
    assert row == "| acdc | 4 | support set | 5 | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 |"


def test_every_set_drawn_by_lot_is_a_value_of_its_box_and_no_other_is() -> None:
    runs = [a_run(size, support_tables.SUPPORT, seed, seed / 10, seed / 10) for size in (16, 2) for seed in (1, 2)]
    drawn = [run | {"drawn": True} for run in runs]
    assert support_tables.spreads([*drawn, *runs]) == {"acdc": {"2": [0.1, 0.2], "16": [0.1, 0.2]}}
    other = a_run(2, support_tables.NEAREST, 1, 0.5, 0.5) | {"drawn": True}
    assert set(support_tables.spreads([*drawn, other])) == {"acdc: support set", "acdc: nearest slice"}
    assert support_tables.spreads(runs) == {}


def test_planes_are_told_apart_in_every_table() -> None:
    runs = [a_run(4, support_tables.SUPPORT, 0, 0.2, 0.2) | {"plane": plane, "drawn": True} for plane in (2, 0, 1)]
    text = support_tables.tables(runs)
    for start in ("| acdc | 4 |", "| acdc, across J | 4 |", "| acdc, across I | 4 |"):
        assert text.count(f"\n{start}") == 2  # sizes and quartiles
    assert "| acdc, across I: myocardium |" in text
    assert list(support_tables.curves(runs)) == ["acdc", "acdc, across J", "acdc, across I"]


def test_training_on_fewer_data_sets_has_a_table_of_its_own_and_is_in_no_other() -> None:
    runs = [
        a_run(4, support_tables.GMISEG, seed, dice, dice) | {"trained_on": names and list(names)}
        for names, seed, dice in [("ab", 0, 0.2), (None, 0, 0.8), ("abcd", 0, 0.4), ("bcde", 1, 0.6)]
    ]
    head = "| data set | slices | data sets trained on | runs | Dice | smallest | largest |"
    _, table = support_tables.tables(runs).split(head)
    rows = table.split("\n\n")[0].splitlines()[2:]
    assert rows == [
        "| acdc | 4 | 2 | 1 | 20.0 | 20.0 | 20.0 |",
        "| acdc | 4 | 4 | 2 | 50.0 | 40.0 | 60.0 |",
        "| acdc | 4 | all | 1 | 80.0 | 80.0 | 80.0 |",
    ]
    spreads = support_tables.task_spreads(runs)["acdc, 4 slices"]
    assert {tasks: pytest.approx(dice) for tasks, dice in spreads.items()} == {
        "2": [0.2],
        "4": [0.4, 0.6],
        "all": [0.8],
    }
    assert "| acdc | 4 |  |  | 80.0 / 40.0 / 1.5 |" in support_tables.tables(runs)
    assert support_tables._task_table(runs[1:2]) == ""


def test_the_paper_s_second_table_stands_beside_the_largest_set_that_all_were_run_with() -> None:
    runs = [a_run(size, support_tables.GMISEG, 0, size / 100, size / 100) for size in (4, 16, 32)]
    runs += [a_run(size, support_tables.NEAREST, 0, 0.5, 0.5) for size in (4, 16)]
    rows = support_tables._paper_table(runs).splitlines()
    assert rows[0].startswith("| data set | slices | GMISeg, paper | support set, GMISeg, ours | UniverSeg, paper | ")
    assert rows[2:] == [
        "| acdc | 16 | 78.7 / 74.5 / 1.2 | 16.0 / 8.0 / 1.5 | 75.0 / 71.6 / 2.7 |  | 74.7 / 71.2 / 3.1 "
        "| 50.0 / 25.0 / 1.5 |"
    ]
    assert support_tables._paper_table([a_run(4, support_tables.SUPPORT, 0, 0.5, 0.5)]) == ""


def test_a_structure_counts_alike_however_many_cases_show_it() -> None:
    rows = [{"structure": "a", "dsc": 1.0}, {"structure": "b", "dsc": 0.5}, {"structure": "b", "dsc": 0.1}]
    assert support_tables.mean_of(rows, "dsc") == pytest.approx((1.0 + 0.3) / 2)


def test_curves_have_a_point_for_each_size_that_was_run() -> None:
    runs = [a_run(4, support_tables.SUPPORT, 0, 0.4, 0.6), a_run(1, support_tables.SUPPORT, 0, 0.2, 0.2)]
    runs += [a_run(1, support_tables.LORA, 0, 0.3, 0.3), a_run(1, support_tables.SUPPORT, 1, 0.4, 0.4)]
    curves = support_tables.curves(runs)
    assert list(curves) == ["acdc"]
    assert curves["acdc"].keys() == {support_tables.SUPPORT, support_tables.LORA}
    assert [size for size, _ in curves["acdc"][support_tables.SUPPORT]] == [1, 4]
    assert [dice for _, dice in curves["acdc"][support_tables.SUPPORT]] == pytest.approx([0.3, 0.5])
