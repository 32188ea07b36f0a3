"""The rules of the support-set benchmark; the numbers themselves are in Testing/BENCHMARKS.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.benchmarks import support, support_tables
from FewShotSegLib.benchmarks.datasets import PublicDataSet
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import save_volume
from FewShotSegLib.methods import gmiseg
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
    cells = [(size, model) for _, size, model, *_ in support._cells(chosen)][:3]
    assert cells == [(6, support.SUPPORT), (7, support.SUPPORT), (7, support.ENSEMBLE)]


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
    spread = support_tables.spreads(runs)["toy"]["1"]
    assert spread == [support_tables.mean_of(run["scores"], "dsc") for run in runs]


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
        assert support_tables.mean_of(run["scores"], "dsc") > 0.1


def test_gmiseg_and_the_peer_never_see_the_data_set_they_are_tested_on() -> None:
    for name in support.DATASETS:
        everything = support.others(name)
        assert sorted([*everything, name]) == sorted(support.DATASETS)
        for count in range(1, len(everything)):
            subsets = [support.subset_of_others(name, count, seed) for seed in range(6)]
            assert all(len(set(subset)) == count and set(subset) <= set(everything) for subset in subsets)
            assert len(set(map(tuple, subsets))) == 6  # each seed has another one
        assert support.subset_of_others(name, len(everything), 0) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "0"], "6 data sets besides toy, not 0; give --tasks 1 to 6"),
        (["--tasks", "2", "7"], "6 data sets besides toy, not 7; give --tasks 1 to 6"),
        (["--tasks", "2", "--models", support.SUPPORT], "add it to --models, or leave --tasks out"),
    ],
)
def test_numbers_of_training_data_sets_are_checked_before_anything_is_trained(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    monkeypatch.setattr(support, "DATASETS", dict(list(support.DATASETS.items())[:6]))
    monkeypatch.setattr(support, "_made", lambda *given: pytest.fail("nothing may be made before"))
    out = a_data_folder / "result"
    given = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "2", "--seeds", "1", "--trained"]
    given += ["--out", str(out), "--base", a_tiny_base, "--models", support.SUPPORT, support.GMISEG]
    with pytest.raises(InputError, match=message):
        support.main([*given, *words])


def test_subsets_of_the_training_data_are_drawn_as_boxes_by_their_size(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    trained: list[list[str]] = []

    def gmiseg_of(self: object, others: list[str]) -> None:
        trained.append(others)

    monkeypatch.setattr(support._TrainedElsewhere, "gmiseg", gmiseg_of)
    out = a_data_folder / "result"
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "2", "--seeds", "2", "--trained"]
    words += ["--cases", "1", "--slices", "3", "--out", str(out), "--base", a_tiny_base, "--models", support.GMISEG]
    count = len(support.DATASETS)
    assert support.main([*words, "--tasks", "1", "3", str(count)]) == 0
    drawn = [
        support.subset_of_others("toy", tasks, seed) or support.others("toy")
        for seed in (0, 1)
        for tasks in (1, 3, count)
    ]
    assert trained == drawn
    assert (a_data_folder / "result-tasks.png").read_bytes().startswith(b"\x89PNG")
    before = out.with_suffix(".jsonl").read_bytes()
    assert support.main([*words, "--tasks", "1", "3", str(count)]) == 0
    assert out.with_suffix(".jsonl").read_bytes() == before


def test_gmiseg_trains_as_the_recipe_of_the_benchmark_says(
    a_data_folder: Path, tmp_path: Path, a_tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(support.KNOWN, "toy", TOY)
    monkeypatch.setattr(support, "DATASETS", {"other": replace(TOY, name="other")})
    monkeypatch.setitem(support.KNOWN, "other", TOY)
    asked = []

    def adapt(inputs: object, recipe: gmiseg.Recipe, run: object) -> Adapter:
        asked.append((recipe.encoder_blocks, recipe.rank, recipe.slices_per_plane))
        raise InputError("enough")

    monkeypatch.setattr(support.gmiseg, "adapt", adapt)
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--sizes", "2", "--seeds", "1", "--trained", "--base"]
    words += [a_tiny_base, "--models", support.GMISEG, "--out", str(tmp_path / "out")]
    for recipe in ([], ["--recipe", "encoder_blocks=-1", "rank=2"]):
        with pytest.raises(InputError, match="enough"):
            support.main([*words, *recipe])
    default = gmiseg.Recipe()
    assert asked == [(None, default.rank, support.TASK_SLICES), (-1, 2, support.TASK_SLICES)]


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data folder .*nowhere"):
        support.main(["--data", str(tmp_path / "nowhere")])
