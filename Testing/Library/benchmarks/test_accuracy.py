"""The rules of the accuracy benchmark; the numbers themselves are in Testing/BENCHMARKS.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.benchmarks import accuracy
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import frame_of
from Testing.Library.benchmarks.conftest import TOY


def test_structures_count_alike_however_many_cases_show_them() -> None:
    def row(case: str, structure: str, dsc: float) -> dict[str, object]:
        return {"case": case, "structure": structure, "scope": "all_slices", "dsc": dsc}

    cell = {"scores": [row("1", "a", 1.0), row("2", "a", 1.0), row("3", "a", 1.0), row("1", "b", 0.0)]}
    assert accuracy._mean(cell, scope="all_slices") == 0.5
    assert accuracy._mean(cell, ["a"], scope="all_slices") == 1.0


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data folder"):
        accuracy.main(["--data", str(tmp_path / "nowhere")])


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown data set x; allowed are btcv"):
        accuracy.main(["--data", str(tmp_path), "--datasets", "x"])


def test_each_body_of_a_scattered_structure_gets_a_prompt_of_its_own() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:6, 2:6] = mask[10:15, 12:18] = mask[18, 1] = True  # the last is too small to be clicked on
    assert len(accuracy._bodies(mask, TOY)) == 1
    bodies = accuracy._bodies(mask, replace(TOY, scattered=True))
    assert sorted(int(body.sum()) for body in bodies) == [16, 30]


def test_corrective_clicks_follow_the_largest_error_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended model that fills one half of the body per positive click."""
    body = np.zeros((16, 16), bool)
    body[4:12, 2:14] = True
    asked = []

    class HalfByHalf:
        def answer(self, embedding, prompt, frame, structures):  # type: ignore[no-untyped-def]
            asked.append([(int(x), int(y)) for x, y, _ in prompt.points_ijk])
            mask = body.copy()
            if len(prompt.points_ijk) == 1:
                mask[:, 8:] = False
            return mask

        def on_voxels(self, mask, frame):  # type: ignore[no-untyped-def]
            return np.where(mask, 1.0, -1.0)[None]

    volume = Volume(np.zeros((3, 16, 16), np.float32), np.eye(4))
    masks = list(accuracy._clicked(HalfByHalf(), None, frame_of(volume, 0, 1, 64), body, []))  # type: ignore[arg-type]
    assert [int(mask.sum()) for mask in masks] == [48, 96, 96, 96, 96]
    assert [len(points) for points in asked] == [1, 2, 2, 2, 2]
    assert asked[1][1][0] >= 8


def test_base_model_boxes_and_clicks_are_scored_once_for_all_numbers_of_exemplars(
    a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(accuracy.DATASETS, "toy", TOY)
    given = [
        "--data",
        str(a_data_folder),
        "--datasets",
        "toy",
        "--shots",
        "1",
        "2",
        "--models",
        "base",
        "adapted",
        "--seconds",
        "1",
        "--cases",
        "1",
        "--slices",
        "3",
        "--out",
        str(tmp_path / "result"),
        "--recipe",
        "steps=1",
        "validate_every=0",
    ]
    assert accuracy.main(given) == 0
    cells = accuracy._done(tmp_path / "result.jsonl")
    assert [(shots, prompt) for _, shots, model, prompt in cells if model == "base"] == [
        (0, accuracy.CLICK),
        (0, accuracy.RANDOM),
        (0, accuracy.BOX),
        (0, accuracy.CORRECTED),
    ]
    table = (tmp_path / "result.md").read_text()
    assert capsys.readouterr().out == table
    assert table.count("\n| toy | ") == 1 + 2 + 3  # of the three slices none shows b
    assert table.count("\n| 0 | base, one ") == 4  # DSC beside the paper's, and HD95
    before = (tmp_path / "result.jsonl").read_bytes()
    assert accuracy.main(given) == 0
    assert (tmp_path / "result.jsonl").read_bytes() == before


def test_a_box_around_a_line_has_an_area() -> None:
    mask = np.zeros((10, 12), bool)
    mask[0, 3:9] = True
    assert accuracy._box(mask, 7)["box_ijk"].tolist() == [[3, 0, 7], [8, 0.5, 7]]
    mask[1] = mask[0]
    assert accuracy._box(mask, 7)["box_ijk"].tolist() == [[3, 0, 7], [8, 1, 7]]


def test_ways_to_ask_that_are_not_wanted_are_left_out(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(accuracy.DATASETS, "toy", TOY)
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--shots", "1", "--seconds", "1", "--cases", "1"]
    words += ["--slices", "3", "--out", str(tmp_path / "result"), "--base", a_tiny_base, "--image-size", "64"]
    words += ["--prompts", "one click", "prompt-free", "--recipe", "steps=1", "validate_every=0"]
    assert accuracy.main([*words, "--models", "base", "adapted", "SAMed-like", "adapted as the paper"]) == 0
    assert [key[1:] for key in accuracy._done(tmp_path / "result.jsonl")] == [
        (0, "base", "one click"),
        (1, "adapted", "one click"),
        (1, "adapted", "prompt-free"),
        (1, "adapted as the paper", "one click"),
        (1, "SAMed-like", "prompt-free"),
    ]
    assert "| 1 | SAMed-like | - / " in (tmp_path / "result.md").read_text()


def test_exemplars_by_lot_are_results_of_their_own(
    a_tiny_base: str, a_data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(accuracy.DATASETS, "toy", TOY)
    shown = []
    made = accuracy.lora.adapt
    monkeypatch.setattr(
        accuracy.lora,
        "adapt",
        lambda inputs, *rest: (shown.append(inputs.exemplars[0].annotated_slices), made(inputs, *rest))[1],
    )
    words = ["--data", str(a_data_folder), "--datasets", "toy", "--shots", "2", "--seconds", "1", "--cases", "1"]
    words += ["--slices", "3", "--out", str(tmp_path / "result"), "--base", a_tiny_base, "--image-size", "64"]
    words += ["--prompts", "one click", "--models", "base", "adapted", "--recipe", "steps=1", "validate_every=0"]
    for _ in range(2):
        assert accuracy.main([*words, "--seed", "3"]) == 0
        assert accuracy.main([*words, "--random", "--seed", "3"]) == 0
    rule, lot = shown
    assert rule != lot
    assert set(lot) <= set(range(3, 14))  # those that show something
    kinds = [(c["shots"], c["drawn"]) for c in accuracy.results_in(tmp_path / "result.jsonl")]
    assert kinds == [(0, False), (2, False), (2, True)]


@pytest.mark.parametrize(
    ("model", "synthesis", "preset"),
    [
        (accuracy.ADAPTED, True, "auto"),
        (accuracy.PLAIN, False, "auto"),
        (accuracy.PAPER, True, "paper"),
        (accuracy.PAPER_PLAIN, False, "paper"),
    ],
)
def test_each_row_is_trained_by_the_recipe_it_is_named_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, synthesis: bool, preset: str
) -> None:
    class Base:
        scale = "unit"

    class Made:
        metrics = {"steps": 3}  # noqa: RUF012

    asked, seen = [], []
    monkeypatch.setattr(
        accuracy.lora, "adapt", lambda inputs, recipe, run: (asked.append(recipe), seen.append(inputs), Made())[2]
    )
    setting = accuracy.Setting(tmp_path, "tiny", 1.0, 0, 1, 1, recipe=("steps=7",))
    for dataset, name in ((TOY, preset), (replace(TOY, merged=True), preset.replace("paper", "paper tumour"))):
        accuracy._adapted(Base(), [], dataset, setting, model)  # type: ignore[arg-type]
        assert (asked[-1].synthesis, asked[-1].preset, asked[-1].steps) == (synthesis, name, 7)
        own_extremes = dataset.merged and preset == "paper"
        assert seen[-1].intensity == replace(accuracy.MINMAX if own_extremes else TOY.intensity, scale="unit")


def test_a_random_click_lies_in_the_mask_and_is_the_same_each_time() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 8:20] = True
    clicks = [accuracy._random(mask, index)["points_ijk"][0].astype(int) for index in range(30)]
    assert all(mask[y, x] for x, y, _ in clicks)
    assert len({(int(x), int(y)) for x, y, _ in clicks}) > 20
    assert accuracy._random(mask, 3)["points_ijk"].tolist() == accuracy._random(mask, 3)["points_ijk"].tolist()
