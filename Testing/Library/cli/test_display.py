"""Progress and results for people and for programs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.cli.display import Bar, Display, JsonLines, display_for, readable_card, summary
from FewShotSegLib.cli.main import main
from FewShotSegLib.data.adapter import card
from FewShotSegLib.progress import Progress, note, stage_picture, warning
from Testing.conftest import write_discs
from Testing.Library.examples import an_adapter


def test_json_lines_can_be_read_by_a_program(
    an_adapter_file: Path, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(a_case[0]), "--adapter", str(an_adapter_file), "--out", str(tmp_path / "o"), "--json"]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [line["step"] for line in lines if line["type"] == "progress" and line["total"]]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["type"] == "result"
    assert lines[-1]["result"]["outputs"].keys() == {"ct.seg.nrrd"}


def test_without_a_terminal_progress_is_a_line_a_minute(
    an_adapter_file: Path, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(write_discs(tmp_path / "more", f"p{number}", number)[0]) for number in range(4)]
    assert main(["segment", *images, "--adapter", str(an_adapter_file), "--out", str(tmp_path / "o")]) == 0
    output = capsys.readouterr()
    assert len([line for line in output.err.splitlines() if " %  " in line]) == 1
    assert output.out.count("mL") == 8


def test_a_terminal_gets_a_bar(
    an_adapter_file: Path,
    a_case: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["segment", str(a_case[0]), "--adapter", str(an_adapter_file), "--out", str(tmp_path / "o")]) == 0
    assert "100%" in capsys.readouterr().err


def test_show_prints_a_card_for_people_and_for_programs(
    an_adapter_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(an_adapter_file)]) == 0
    text = capsys.readouterr().out
    for expected in ("1 = disc, 2 = square", "tiny (sha256", "k=1,3", "rank=4"):
        assert expected in text
    assert main(["show", str(an_adapter_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["structures"] == {"1": "disc", "2": "square"}


def streams() -> tuple[io.StringIO, io.StringIO]:
    return io.StringIO(), io.StringIO()


@pytest.mark.parametrize("as_json", [True, False])
def test_of_several_processes_only_the_first_shows_anything(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with display_for(as_json, shown=False) as display:
        display.progress(Progress(1, 2, "adapting"))
        display.progress(note("a sentence"))
        display.line("a line")
        display.result({"job": {"out": "a.safetensors"}, "device": "cpu"})
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_log_has_a_line_a_minute_whatever_the_stage() -> None:
    out, err = streams()
    now = [0.0]
    display = Display(out, err, clock=lambda: now[0])
    for step in range(1, 41):
        display.progress(Progress(step, 40, "adapting" if step < 20 else "guarding", {"loss": 0.123456, "score": 0.5}))
        now[0] += 10.0
    assert err.getvalue().splitlines() == [
        f"{100 * step / 40:3.0f} %  {'adapting' if step < 20 else 'guarding'}  loss 0.123, score 0.5"
        for step in (1, 7, 13, 19, 25, 31, 37)
    ]
    assert out.getvalue() == ""


def test_what_is_reported_again_and_again_before_the_first_step_is_one_line() -> None:
    out, err = streams()
    display = Display(out, err)
    for _ in range(100):
        display.progress(Progress(0, 3000, "0 of 3 jobs done"))
        display.progress(note("Waiting."))
    assert err.getvalue().splitlines() == ["  0 %  0 of 3 jobs done", "Waiting."]


def test_sentences_are_said_as_what_they_are() -> None:
    out, err = streams()
    display = Display(out, err)
    for progress in (note("Going on."), warning("Odd."), stage_picture("translated", None), Progress(3, 0, "reading")):
        display.progress(progress)
    assert err.getvalue().splitlines() == ["Going on.", "Warning: Odd.", "Finished: translated", "reading"]


def test_a_bar_ends_before_a_sentence_and_goes_on_behind_it() -> None:
    out, err = streams()
    bar = Bar(out, err)
    bar.progress(Progress(1, 4, "slice 1"))
    bar.progress(Progress(2, 4, "slice 2", {"loss": 0.5}))
    bar.progress(warning("Odd."))
    bar.progress(Progress(4, 4, "slice 4"))
    bar.close()
    bar.close()  # twice is harmless
    first, second = err.getvalue().split("Warning: Odd.\n")
    assert " 50% " in first
    assert "loss 0.5" in first
    assert first.endswith("\n")
    assert "100% " in second
    assert out.getvalue() == ""


def test_json_has_one_object_per_line_whatever_is_said() -> None:
    out, err = streams()
    display = JsonLines(out, err)
    display.progress(Progress(1, 4, "Läsion\n1", {"loss": 0.5}))
    display.line("done")
    display.lines(iter(["a", "b"]))
    display.result({"outputs": {"p.seg.nrrd": "abc"}})
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [one["type"] for one in said] == ["progress", "message", "result", "result"]
    assert (said[0]["message"], said[0]["metrics"]) == ("Läsion\n1", {"loss": 0.5})
    assert (said[2]["lines"], said[3]["result"]) == (["a", "b"], {"outputs": {"p.seg.nrrd": "abc"}})
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("as_json", "terminal", "kind"), [(True, True, JsonLines), (False, True, Bar), (False, False, Display)]
)
def test_the_display_fits_the_streams(
    as_json: bool, terminal: bool, kind: type[Display], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with display_for(as_json) as display:
        assert type(display) is kind


def a_record(**more: Any) -> dict[str, Any]:
    return {
        "job": {"out": "out"},
        "device": "cpu",
        "timings_s": {"load": 1.25, "adapt": 2.5},
        "warnings": ["Odd."],
        **more,
    }


def test_the_summary_of_an_adaptation_has_its_steps_and_its_estimate() -> None:
    metrics = {
        "steps": 40,
        "stopped_by": "time",
        "estimated_dice": {"liver": 0.912, "spleen": 0.8},
        "estimate": "of 2 cases",
    }
    assert summary(a_record(adapter={}, metrics=metrics)) == [
        "Trained 40 steps, until the time limit",
        "Estimated Dice: liver 0.91, spleen 0.80; of 2 cases",
        "Warning: Odd.",
        "out  (4 s on cpu)",
    ]
    metrics |= {"estimated_dice": None, "estimate": "not asked for"}
    assert summary(a_record(adapter={}, metrics=metrics))[1] == "Estimated Dice: not asked for"


def test_the_summary_of_scores_says_that_an_empty_mask_counts_the_diagonal() -> None:
    def group(structure: str, empty: int) -> dict[str, Any]:
        scores = {"dsc": {"mean": 0.5}, "hd95_mm": {"mean": 494.8}}
        return {"structure": structure, "scope": "all_slices", "n": 3, "n_one_empty": empty, **scores}

    groups = [group("liver", 0), group("spleen", 1), group("aorta", 2)]
    whole, one, two = summary(a_record(metrics={"summary": groups}, warnings=[]))[:3]
    assert whole.endswith("HD95 494.8 mm")
    assert one.endswith("mm  empty in 1 case, in result or reference: HD95 counts the image's diagonal")
    assert "empty in 2 cases," in two


def test_the_summary_of_images_has_volumes_and_what_failed() -> None:
    found = {"volume_ml": 1500.26, "flags": ["is empty", "touches the border of the image"]}
    images = [
        {"image": "p1.nrrd", "metrics": {"structures": {"liver": found, "spleen": {"volume_ml": 7.0, "flags": []}}}},
        {"image": "p2.nrrd", "error": {"message": "p2.nrrd is damaged."}},
    ]
    lines = summary(a_record(images=images, warnings=[]))
    assert [line.split(maxsplit=2) for line in lines[:2]] == [
        ["p1.nrrd", "liver", "1500.3 mL  is empty, touches the border of the image"],
        ["p1.nrrd", "spleen", "7.0 mL"],
    ]
    assert lines[2].split() == ["p2.nrrd", "failed", "p2.nrrd", "is", "damaged."]


def test_a_card_says_what_an_adapter_is_and_where_it_comes_from() -> None:
    exemplars = [{"name": "Fall é 1.nrrd", "axis": 1, "annotated_slices": [3, 12]}]
    tasks = [{"name": "north", "structures": ["liver", "spleen"], "slices": [1, 2, 3]}]
    adapter = an_adapter(provenance={"exemplars": exemplars, "tasks": tasks})
    text = readable_card(card(adapter), 1234567, 2_500_000)
    rows = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines()}
    assert rows["structures"] == "1 = spleen, 6 = Leber"
    assert rows["base model"] == f"vit_b (sha256 {'ab' * 6})"
    assert (rows["slices"], rows["weights"]) == ("along k, 256 px", "1,234,567 numbers, 2.5 MB")
    assert rows["intensity"] == "window -125 to 275, scale sam"
    assert (rows["exemplar"], rows["task"]) == ("Fall é 1.nrrd: slices j=3,12", "north: liver, spleen; 3 slices")
    assert rows["dice"] == "Leber 0.9"
    assert rows["recipe"] == "alpha=None, blocks=1 2, rank=4"
    assert rows["digest"] == adapter.digest


def test_an_adapter_without_structures_says_what_to_give_instead() -> None:
    assert "give clicks, boxes or a support set" in readable_card(card(an_adapter(structures={}, provenance={})), 1, 1)


def test_a_card_says_nothing_of_what_was_not_measured() -> None:
    metrics = {"best_step": None, "estimated_dice": None, "estimate": "not asked for", "steps": 4}
    text = readable_card(card(an_adapter(metrics=metrics, provenance={})), 1, 1)
    assert "best step" not in text
    assert "None" not in text.split("recipe")[0]
    assert "not asked for" in text
    assert "best step" in readable_card(card(an_adapter(metrics={**metrics, "best_step": 40}, provenance={})), 1, 1)


def test_what_every_job_of_a_run_says_is_shown_once() -> None:
    for kind in (Display, Bar):
        out, err = io.StringIO(), io.StringIO()
        display = kind(out, err)
        for sentence in ("on the CPU", "patient 1", "on the CPU", "patient 2", "on the CPU"):
            display.progress(note(sentence))
        assert err.getvalue().split("\n") == ["on the CPU", "patient 1", "patient 2", ""]
