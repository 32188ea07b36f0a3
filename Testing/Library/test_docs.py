"""Generated pages say what the code says; the site itself is built, and its notebooks run, by `make docs`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import FewShotSegLib
from FewShotSegLib.cli.arguments import parser
from FewShotSegLib.data.job import Part
from FewShotSegLib.methods import METHODS, method

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site_pages() -> ModuleType:
    return loaded(DOCS / "site_pages.py")


def test_every_option_of_every_recipe_is_in_the_reference(site_pages: ModuleType) -> None:
    page = site_pages.recipe_reference()
    for name in METHODS:
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for field in fields(method(name).Recipe):
            assert re.search(rf"\| `{field.name}[`.]", section), f"{name} {field.name}"
    assert "| `rank` | `4` | int from 1 to 256 | LoRA rank" in page
    assert "\n| `pictures` | `12` |" in page
    assert "| `subsets`" in page.partition("## Support sets\n")[2]
    assert "<!--" not in page
    assert "../../FewShotSegLib" not in page  # what the tables stand for in the repository


def test_every_command_and_option_is_in_the_reference(site_pages: ModuleType) -> None:
    page = site_pages.command_line_reference()
    for words in ("adapt", "segment", "table", "evaluate", "models remove", "export-nnunet", "info", "demo"):
        assert f"## fewshotseg {words}\n" in page
    assert "--part i/n" in page


def test_the_pictures_of_the_benchmarks_are_drawn_from_the_tables_and_shown() -> None:
    text = (ROOT / "Testing" / "BENCHMARKS.md").read_text(encoding="utf-8")
    for name, draw in loaded(ROOT / "Testing" / "benchmarks" / "draw.py").PICTURES.items():
        assert draw().startswith(b"\x89PNG")
        assert (ROOT / "Testing" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text


def test_links_of_the_benchmarks_lead_to_files_that_exist(site_pages: ModuleType) -> None:
    text = (ROOT / "Testing" / "BENCHMARKS.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((benchmarks/[^)]*)\)", text))
    tables = {path.name for path in (ROOT / "Testing" / "benchmarks").glob("*.csv")}
    assert linked == {f"benchmarks/{name}" for name in tables | {"README.md"}}
    on_site = site_pages.links_on_site(text, "benchmarks.md")
    assert "/blob/main/Testing/benchmarks/base_models.csv)" in on_site
    assert "](images/support.png)" in on_site
    assert "](benchmarks/" not in on_site


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """Of headings, as they are made where the repository is browsed and on the site."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve_in_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_links_to_files_that_the_site_has_elsewhere_or_not_at_all_are_rewritten(site_pages: ModuleType) -> None:
    expected = {
        "../Resources/Screenshots/demo.png": "images/demo.png",
        "../Testing/BENCHMARKS.md#support-sets": "benchmarks.md#support-sets",
        "../CHANGELOG.md": "changes.md",
        "tutorials/slicer.md": "tutorials/slicer.md",
        "../LICENSE": f"{site_pages.REPOSITORY}/LICENSE",
        "https://example.org/a.md": "https://example.org/a.md",
        "nothing": "nothing",
    }
    for link, on_site in expected.items():
        assert site_pages.links_on_site(f"![a](b) [c]({link})", "index.md") == f"![a](b) [c]({on_site})"
    deeper = site_pages.links_on_site("[a](../../Testing/BENCHMARKS.md) [b](../faq.md)", "tutorials/batch.md")
    assert deeper == "[a](../benchmarks.md) [b](../faq.md)"


def test_every_page_is_in_the_navigation_and_every_entry_has_a_page(site_pages: ModuleType) -> None:
    listed = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    there = {path.relative_to(DOCS).as_posix() for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)}
    assert listed - there == {"benchmarks.md", "changes.md", "reference/command-line.md"}
    assert there - listed == set()


def test_the_api_reference_has_every_public_function_and_class() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: [\w.]*?\.?(\w+)$", page, re.M))
    missing = set(FewShotSegLib.__all__) - named
    left_out = {"__version__", "Job", "ExemplarFiles", "load_adapter", "save_adapter", "load_prompts"}
    assert missing == left_out | {"Cancelled", "InputError", "StopAndKeepBest"}  # those are on the page of `errors`
    assert "errors" in named


def test_notebooks_are_kept_without_their_outputs_and_use_public_names() -> None:
    notebooks = sorted((DOCS / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 3
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), path.name
        used = set(re.findall(r"\bfs\.(\w+)", "".join("".join(cell["source"]) for cell in code)))
        assert used <= set(FewShotSegLib.__all__)


def test_python_in_the_pages_uses_public_names() -> None:
    for path in DOCS.rglob("*.md"):
        used = set(re.findall(r"\bfs\.(\w+)", path.read_text(encoding="utf-8")))
        assert used <= set(FewShotSegLib.__all__), path.name


@pytest.mark.skipif(os.name == "nt", reason="SLURM runs on Linux")
def test_the_slurm_script_does_the_part_of_its_task(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "fewshotseg"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    (tmp_path / "patients").mkdir()
    for name in ("p 1.nrrd", "p2.nrrd"):
        (tmp_path / "patients" / name).touch()
    environment = {"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    command = ["bash", str(ROOT / "examples" / "segment.slurm"), "patients", "a.safetensors", "out"]
    alone = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert alone.returncode != 0
    assert "start with sbatch" in alone.stderr
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    words = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    threads, *given = words.splitlines()
    assert threads == "4"
    chosen = parser().parse_args(given)
    assert chosen.images == ["patients/p 1.nrrd", "patients/p2.nrrd"]
    assert (chosen.part, chosen.adapter, chosen.out) == (Part(3, 8), "a.safetensors", "out")


@pytest.mark.skipif(os.name == "nt", reason="SLURM runs on Linux")
def test_the_slurm_script_for_several_gpus_starts_torchrun_on_every_computer(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, lines in (("scontrol", "echo node7; echo node8"), ("srun", 'printf "%s\\n" "$@"')):
        stub = tmp_path / "bin" / name
        stub.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    given = ["--exemplar", "p 1.nrrd=p1.seg.nrrd@k:3", "--base", "vit_b", "--out", "organs.safetensors"]
    command = ["bash", str(ROOT / "examples" / "adapt.slurm"), *given]
    alone = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert alone.returncode != 0
    assert "start with sbatch" in alone.stderr
    environment |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "11"}
    words = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    launched, _, adapted = words.partition("\n-m\nFewShotSegLib\n")
    assert launched.splitlines() == [
        *("torchrun", "--nnodes", "2", "--nproc-per-node", "gpu"),
        *("--rdzv-id", "11", "--rdzv-backend", "c10d", "--rdzv-endpoint", "node7:29500"),
    ]
    from torch.distributed.run import get_args_parser

    understood = get_args_parser().parse_args([*launched.splitlines()[1:], "-m", "FewShotSegLib"])
    assert (understood.nnodes, understood.nproc_per_node) == ("2", "gpu")
    chosen = parser().parse_args(adapted.splitlines())
    assert (chosen.command, chosen.base, chosen.out) == ("adapt", "vit_b", "organs.safetensors")


def test_files_that_pages_take_in_are_named_as_the_site_reads_it() -> None:
    taken = {path: re.findall(r"^ *(.*--8.*)$", path.read_text(encoding="utf-8"), re.M) for path in DOCS.rglob("*.md")}
    lines = [line for found in taken.values() for line in found]
    assert lines
    for line in lines:  # a formatter of code in pages has once put spaces into it
        named = re.fullmatch(r'--8<-- "([^"]+)"', line)
        assert named, line
        assert (ROOT / named[1]).is_file()


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_script_for_slurm_gives_each_task_its_part_also_in_folders_with_spaces(tmp_path: Path) -> None:
    images, tool = tmp_path / "all patients", tmp_path / "bin" / "fewshotseg"
    images.mkdir()
    for name in ("a b.nrrd", "c.nrrd"):
        (images / name).touch()
    tool.parent.mkdir()
    tool.write_text('#!/bin/bash\nprintf "%s\\n" "threads $OMP_NUM_THREADS" "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    words = ["bash", str(ROOT / "examples" / "segment.slurm"), str(images), "my organs.safetensors", "to here"]
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_CPUS_PER_TASK": "4"}
    environment = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment | task, capture_output=True, text=True, check=True)
    files = [str(images / name) for name in ("a b.nrrd", "c.nrrd")]
    options = ["--adapter", "my organs.safetensors", "--out", "to here", "--part", "3/8"]
    assert done.stdout.splitlines() == ["threads 4", "segment", *files, *options]
    alone = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert alone.returncode
    assert "start with sbatch" in alone.stderr
