"""The command line: every command, every exit code, and what is said on which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.cli import main as command_line
from FewShotSegLib.cli.main import main
from FewShotSegLib.data.job import SegmentJob
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.jobs import save_job
from FewShotSegLib.io.volumes import load_labelmap
from Testing.conftest import write_discs
from Testing.Library.cli.conftest import OPTIONS, adapt_words

ROOT = Path(__file__).resolve().parents[3]


# ------------------------------------------------------------------------------------------------------ commands


def test_adapt_segment_and_evaluate_from_the_command_line(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "a.safetensors", tmp_path / "segmented"
    assert main(adapt_words(a_case, adapter, "--seed", "4", "--recipe", *OPTIONS)) == 0
    assert "Trained 4 steps, all of them" in capsys.readouterr().out
    assert main(["segment", str(a_case[0]), "--adapter", str(adapter), "--out", str(out), "--device", "cpu"]) == 0
    assert "disc" in capsys.readouterr().out
    assert load_labelmap(out / "ct.seg.nrrd").structures == {1: "disc", 2: "square"}
    scores = tmp_path / "metrics.csv"
    words = ["evaluate", "--pred", str(out / "ct.seg.nrrd"), "--ref", str(a_case[1]), "--out", str(scores)]
    assert main(words) == 0
    assert "all slices" in capsys.readouterr().out
    assert scores.read_text(encoding="utf-8").startswith("case,structure,scope,dsc")


def test_a_support_set_segments_from_the_command_line(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, support = tmp_path / "segmented", f"{a_case[0]}={a_case[1]}@k:1,3"
    words = ["segment", str(a_case[0]), "--base", "tiny", "--out", str(out), "--support", support, "--device", "cpu"]
    assert main([*words, "--support-recipe", "pictures=4", "pixels=2000"]) == 0
    assert "disc" in capsys.readouterr().out
    assert load_labelmap(out / "ct.seg.nrrd").structures == {1: "disc", 2: "square"}
    assert main([*words, "--support-recipe", "pictrues=4"]) == 2
    assert 'did you mean "pictures"' in capsys.readouterr().err
    assert main([*words[:-3], "nothing"]) == 2
    assert "IMAGE=LABELMAP" in capsys.readouterr().err


def test_gmiseg_learns_from_folders_of_data_sets(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("liver ct", "heart mr")):
        write_discs(tmp_path / "sets" / name, "case", number)
    out = tmp_path / "eyes.safetensors"
    options = [option for option in OPTIONS if not option.startswith(("token_prompts", "estimate", "guard"))]
    words = ["--method", "gmiseg", "--exemplar", str(tmp_path / "sets"), "--recipe", *options]
    assert main(adapt_words(a_case, out, *words)) == 0
    tasks = [task["name"] for task in load_adapter(out).provenance["tasks"]]
    assert tasks == ["image 1", "heart mr", "liver ct"]
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "task" in shown
    assert "heart mr" in shown
    assert main(adapt_words(a_case, out, "--exemplar", str(tmp_path / "sets"))) == 2
    assert "IMAGE=LABELMAP" in capsys.readouterr().err


def test_a_preview_draws_the_samples_and_trains_nothing(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path
) -> None:
    sheet, out = tmp_path / "sheet.png", tmp_path / "a.safetensors"
    assert main(adapt_words(a_case, out, "--preview", str(sheet), "--recipe", *OPTIONS)) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert not out.exists()


def test_a_job_file_gives_the_same_adapter_as_the_words(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    main(adapt_words(a_case, out, "--recipe", *OPTIONS))
    content = out.read_bytes()
    record = json.loads((tmp_path / "a.result.json").read_text(encoding="utf-8"))
    (tmp_path / "job.json").write_text(json.dumps(record["job"]), encoding="utf-8")
    out.unlink()
    assert main(["job", str(tmp_path / "job.json")]) == 0
    assert out.read_bytes() == content


def test_models_are_listed_added_and_verified(
    a_tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["models", "verify", "tiny"]) == 0
    (tmp_path / "models" / "tiny.safetensors").write_bytes(b"something else")
    assert main(["models", "verify", "tiny"]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert main(["models", "list", "--json"]) == 0
    assert "vit_b" in {model["name"] for model in json.loads(capsys.readouterr().out)}


def test_models_are_removed(a_tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models" / "tiny.safetensors"
    assert main(["models", "remove", "tiny"]) == 0
    assert "stays where it is" in capsys.readouterr().out
    assert file.is_file()
    assert main(["models", "remove", "tiny"]) == 2
    assert "No base model is called tiny" in capsys.readouterr().err


def test_corrected_cases_are_exported_for_nnunet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, labelmap = write_discs(tmp_path / "cases", "p1", 1)
    (tmp_path / "labels").mkdir()
    labelmap.rename(tmp_path / "labels" / labelmap.name)
    words = ["--images", str(image.parent), "--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "raw")]
    assert main(["export-nnunet", *words, "--id", "501", "--name", "Discs", "--channel", "CT"]) == 0
    assert capsys.readouterr().out.startswith("1 case: 1 = disc, 2 = square\n")
    assert (tmp_path / "raw" / "Dataset501_Discs" / "labelsTr" / "p1.nii.gz").is_file()


def test_a_benchmark_gets_the_words_behind_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    got: list[Any] = []

    def benchmark(words: list[str]) -> int:
        got.append(words)
        return 3

    module = types.ModuleType("FewShotSegLib.benchmarks.speed")
    module.main = benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "FewShotSegLib.benchmarks", types.ModuleType("FewShotSegLib.benchmarks"))
    monkeypatch.setitem(sys.modules, "FewShotSegLib.benchmarks.speed", module)
    assert main(["benchmark", "speed", "--quick", "--data", "x"]) == 3
    assert got == [["--quick", "--data", "x"]]
    assert main(["benchmark", "beauty"]) == 2


# ---------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["segment", "x.nrrd", "--out", "o"], "needs an adapter, a support set or prompts"),
        (["segment", "no.nrrd", "--out", "o", "--adapter", "no.safetensors"], "does not exist"),
        (["adapt", "--exemplar", "nothing", "--out", "a.safetensors"], "IMAGE=LABELMAP"),
        (["adapt", "--exemplar", "a=b@k:x", "--out", "a.safetensors"], '"@k:12,14"'),
        (["adapt", "--exemplar", "a=b", "--out", "a.pth"], "ends in .safetensors"),
        (["adapt", "--exemplar", "a=b", "--out", "a.safetensors", "--recipe", "rnak=3"], 'did you mean "rank"'),
        (["adapt", "--exemplar", "a=b", "--out", "a.safetensors", "--recipe", "no.json"], "Cannot read the recipe"),
        (["evaluate", "--pred", "no", "--ref", "nothing", "--out", "m.csv"], "no"),
        (["job", "no.json"], "Cannot read the job"),
        (["show", "no.safetensors"], "does not exist"),
        (["models", "download", "nothing"], "No base model is called 'nothing'"),
    ],
)
def test_bad_input_is_answered_with_2_and_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    a_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if "Working on the CPU" not in line]) == 1


def test_a_defect_is_answered_with_1_and_a_traceback(
    an_adapter_file: Path,
    a_case: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ValueError("a defect")

    monkeypatch.setattr("FewShotSegLib.jobs.segment.segment", broken)
    assert main(["segment", str(a_case[0]), "--adapter", str(an_adapter_file), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "please report it" in error


def test_an_error_is_a_json_line_when_json_was_asked_for(a_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "no.safetensors", "--json"]) == 2
    line = json.loads(capsys.readouterr().out)
    assert (line["type"], line["kind"]) == ("error", "input")
    assert "does not exist" in line["message"]


def test_a_missing_package_is_named_with_what_to_do(
    a_case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch(chosen: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(command_line._COMMANDS, "adapt", without_torch)
    assert main(adapt_words(a_case, tmp_path / "a.safetensors")) == 2
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("more", "code", "left"), [([], 130, set()), (["--keep-best"], 0, {"a.safetensors"})])
def test_ctrl_c_cancels_or_keeps_the_best(
    more: list[str],
    code: int,
    left: set[str],
    a_tiny_base: str,
    a_case: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from FewShotSegLib.progress import Control

    real = Control.__call__

    def pressed_at_step_2(self: Control, progress: Any) -> None:
        if progress.message == "adapting" and progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, progress)

    monkeypatch.setattr(Control, "__call__", pressed_at_step_2)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out" / "a.safetensors"
    assert main(adapt_words(a_case, out, "--recipe", *OPTIONS, "steps=50", *more)) == code
    assert {path.name for path in out.parent.iterdir() if path.suffix == ".safetensors"} == left
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_at_once(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def never_listens(job: Any, report: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    monkeypatch.setattr("FewShotSegLib.jobs.run.run", never_listens)
    assert main(adapt_words(a_case, tmp_path / "a.safetensors")) == 130


# ------------------------------------------------------------------------------------------------------- process


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys; from FewShotSegLib.cli.main import main;"
        "codes = [main(['--help']), main(['adapt', '--help']), main(['adapt']), main(['dance'])];"
        "sys.stderr.write(repr((codes, [m for m in ('torch', 'SimpleITK', 'scipy', 'monai') if m in sys.modules])))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("([0, 0, 2, 2], [])")
    assert "fewshotseg" in done.stdout
    assert time.monotonic() - started < 20  # seconds; far from what importing torch in vain would make of it


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "FewShotSegLib", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fewshotseg ")


def test_relative_paths_in_a_job_file_start_at_the_file(
    an_adapter_file: Path, a_case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SegmentJob((str(a_case[0]),), str(tmp_path / "o"), str(an_adapter_file), device="cpu")
    save_job(job, tmp_path / "job.json")
    values = json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    values |= {"images": ["ct.nrrd"], "out": "elsewhere", "adapter": an_adapter_file.name}
    (tmp_path / "job.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert main(["job", "../job.json"]) == 0
    assert (tmp_path / "elsewhere" / "ct.seg.nrrd").exists()
