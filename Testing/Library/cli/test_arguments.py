"""Words become jobs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from FewShotSegLib.cli.arguments import (
    adapt_job_from,
    evaluate_job_from,
    parser,
    recipe_from,
    segment_job_from,
    structures_from,
)
from FewShotSegLib.cli.main import main
from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.training.prompted_recipe import PromptedRecipe
from Testing.conftest import QUICK, write_discs
from Testing.Library.cli.conftest import OPTIONS, adapt_words


def test_structures_are_chosen_and_renamed(a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    assert main(adapt_words(a_case, out, "--structures", "2=square", "--recipe", *OPTIONS)) == 0
    assert load_adapter(out).structures == {2: "square"}


def test_a_recipe_file_and_single_options_are_combined(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text(
        json.dumps({**QUICK, "rank": 2, "synthesizer": {"rotation_deg": 5}}), encoding="utf-8"
    )
    out = tmp_path / "a.safetensors"
    words = [str(tmp_path / "recipe.json"), "steps=3", "synthesizer.elastic=0"]
    assert main(adapt_words(a_case, out, "--recipe", *words)) == 0
    recipe = load_adapter(out).recipe
    assert (recipe["rank"], recipe["steps"]) == (2, 3)
    assert (recipe["synthesizer"]["rotation_deg"], recipe["synthesizer"]["elastic"]) == (5.0, 0.0)
    job = json.loads((tmp_path / "a.result.json").read_text(encoding="utf-8"))["job"]
    assert job["recipe"]["synthesizer"] == {"rotation_deg": 5.0, "elastic": 0.0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice"),
        (["adapt", "--out", "a.safetensors"], "At least one exemplar"),
        (["segment", "x.nrrd", "--out", "o", "--axis", "z"], "invalid choice"),
        (["segment", "x.nrrd", "--out", "o", "--processes", "0"], "from 1 is needed"),
        (["adapt", "--exemplar", "a=b", "--out", "a.safetensors", "--seed", "-1"], "argument --seed"),
        (["evaluate", "--pred", "a", "--ref", "b", "--out", "c.csv", "--structures", "liver"], "6=liver,1=spleen"),
        (["evaluate", "--pred", "a", "--ref", "b", "--out", "c.csv", "--structures", "1=a,1=b"], "occurs twice"),
    ],
)
def test_wrong_words_are_answered_with_2(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_every_word_of_adapt_has_its_place_in_the_job() -> None:
    words = ["adapt", "--exemplar", "a.nrrd=b.nrrd@j:3,5", "--exemplar", "c.nrrd=d.nrrd", "--out", "o.safetensors"]
    words += ["--method", "asap", "--auxiliary", "north", "--source", "ct", "--target", "mr", "--base", "vit_b"]
    words += ["--structures", "6=liver", "--resample", "--warm-start", "old.safetensors", "--max-seconds", "90"]
    words += ["--seed", "7", "--device", "cpu"]
    assert adapt_job_from(parser().parse_args(words), {"steps": 3}) == AdaptJob(
        out="o.safetensors",
        method="asap",
        exemplars=(
            ExemplarFiles("a.nrrd", "b.nrrd", "j", (3, 5), {6: "liver"}, resample=True),
            ExemplarFiles("c.nrrd", "d.nrrd", None, None, {6: "liver"}, resample=True),
        ),
        auxiliary_folder="north",
        source_folder="ct",
        target_folder="mr",
        base="vit_b",
        recipe={"steps": 3},
        warm_start="old.safetensors",
        max_seconds=90.0,
        seed=7,
        device="cpu",
    )


def test_every_word_of_segment_has_its_place_in_the_job() -> None:
    words = ["segment", "p.nrrd", "--out", "o", "--adapter", "a.safetensors", "--support", "c.nrrd=d.nrrd@k:all"]
    words += ["--structures", "6=liver", "--base", "vit_b", "--prompts", "clicks.json", "--axis", "i"]
    words += ["--probabilities", "--largest-component", "--min-island-ml", "0.5", "--seed", "7", "--device", "cpu"]
    assert segment_job_from(parser().parse_args(words), {"pictures": 4}) == SegmentJob(
        images=("p.nrrd",),
        out="o",
        adapter="a.safetensors",
        support=(ExemplarFiles("c.nrrd", "d.nrrd", "k", "all", {6: "liver"}),),
        support_recipe={"pictures": 4},
        prompts="clicks.json",
        base="vit_b",
        axis="i",
        probabilities=True,
        largest_component=True,
        min_island_ml=0.5,
        seed=7,
        device="cpu",
    )


def test_every_word_of_evaluate_has_its_place_in_the_job() -> None:
    words = ["evaluate", "--pred", "p", "--ref", "r", "--out", "m.csv", "--structures", "1=a", "--tolerance-mm", "1"]
    assert evaluate_job_from(parser().parse_args(words)) == EvaluateJob("p", "r", "m.csv", {1: "a"}, 1.0)


def test_words_that_are_left_out_mean_what_a_job_means_without_them() -> None:
    adapt = parser().parse_args(["adapt", "--exemplar", "a=b", "--out", "o.safetensors"])
    assert adapt_job_from(adapt, {}) == AdaptJob("o.safetensors", exemplars=(ExemplarFiles("a", "b"),))
    segment = parser().parse_args(["segment", "p.nrrd", "--adapter", "a", "--out", "o"])
    assert segment_job_from(segment, {}) == SegmentJob(("p.nrrd",), "o", "a")
    evaluate = parser().parse_args(["evaluate", "--pred", "p", "--ref", "r", "--out", "m.csv"])
    assert evaluate_job_from(evaluate) == EvaluateJob("p", "r", "m.csv")


def test_only_gmiseg_takes_a_folder_of_data_sets_for_an_exemplar(tmp_path: Path) -> None:
    write_discs(tmp_path / "sets" / "north", "a", 0)
    words = ["adapt", "--exemplar", str(tmp_path / "sets"), "--out", "o.safetensors"]
    (files,) = adapt_job_from(parser().parse_args([*words, "--method", "gmiseg"]), {}).auxiliary
    assert (files.name, [Path(case.image).name for case in files.cases]) == ("north", ["a.nrrd"])
    with pytest.raises(InputError, match="IMAGE=LABELMAP"):
        adapt_job_from(parser().parse_args(words), {})


@pytest.mark.parametrize(
    ("text", "found"), [("6=liver", {6: "liver"}), (" 6 = left kidney , 1=a=b", {6: "left kidney", 1: "a=b"})]
)
def test_structures_are_pairs_of_label_and_name(text: str, found: dict[int, str]) -> None:
    assert structures_from(text) == found


@pytest.mark.parametrize("text", ["", "6", "6=", "=liver", "liver=6", "-1=liver", "6=liver,", "6.0=liver"])
def test_what_is_no_pair_of_label_and_name_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write structures as"):
        structures_from(text)


def test_of_a_recipe_only_what_differs_is_kept_and_later_words_win(tmp_path: Path) -> None:
    path = tmp_path / "of=mine.json"  # an equals sign is no hindrance where there is such a file
    path.write_text(
        json.dumps({"rank": 2, "tokens": 4, "steps": 9, "synthesizer": {"rotation_deg": 5, "elastic": 0.0}}), "utf-8"
    )
    words = ["rank=16", str(path), "steps=7", "synthesizer.elastic=0.01"]
    defaults = to_dict(PromptedRecipe())
    assert (defaults["tokens"], defaults["synthesizer"]["elastic"]) == (4, 0.01)
    assert recipe_from(PromptedRecipe, words) == {"rank": 2, "steps": 7, "synthesizer": {"rotation_deg": 5.0}}
    assert recipe_from(PromptedRecipe, [*words, "rank=4", "synthesizer.rotation_deg=15", "tokens=4"]) == {"steps": 7}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "is not JSON"), ("[1]", "must hold a table"), ('{"rnak": 1}', 'did you mean "rank"')],
)
def test_a_recipe_file_that_is_none_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        recipe_from(PromptedRecipe, [str(tmp_path / "recipe.json")])


@pytest.mark.parametrize("word", ["3", "0", "12"])
def test_a_seed_is_a_whole_number_from_0(word: str) -> None:
    assert parser().parse_args(["demo", "--seed", word]).seed == int(word)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from FewShotSegLib.version import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fewshotseg {__version__}\n"
