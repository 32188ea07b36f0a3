"""Progress and results for people and for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from FewShotSegLib.cli.main import main
from Testing.conftest import write_discs


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


def test_without_a_terminal_progress_is_a_line_every_tenth(
    an_adapter_file: Path, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(write_discs(tmp_path / "more", f"p{number}", number)[0]) for number in range(10)]
    assert main(["segment", *images, "--adapter", str(an_adapter_file), "--out", str(tmp_path / "o")]) == 0
    output = capsys.readouterr()
    shares = [line for line in output.err.splitlines() if " %  " in line]
    assert 10 <= len(shares) <= 21  # 60 slices
    assert output.out.count("mL") == 20


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
