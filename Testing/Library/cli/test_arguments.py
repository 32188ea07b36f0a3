"""Words become jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from FewShotSegLib.cli.main import main
from FewShotSegLib.io.adapters import load_adapter
from Testing.conftest import QUICK
from Testing.Library.cli.conftest import OPTIONS, adapt_words

# ------------------------------------------------------------------------------------------------------ commands


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


# ---------------------------------------------------------------------------------------------------- exit codes


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
