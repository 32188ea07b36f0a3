"""What Slicer loads at start, and what the extension may import at all; read from the source, and tried."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "FewShotSeg" / "FewShotSeg.py"
FOLDERS = (MODULE.parent, ROOT)  # where FewShotSegSlicer and FewShotSegLib are imported from
EXTENSION = sorted(MODULE.parent.rglob("*.py"))
LIBRARY = sorted((ROOT / "FewShotSegLib").rglob("*.py"))

OWN = {"FewShotSegSlicer", "FewShotSegLib"}
AT_FILE_SCOPE = {"slicer", "vtk", "qt", "ctk", "numpy", *sys.stdlib_module_names, *OWN}
NOT_AT_START = {"torch", "monai", "SimpleITK", "scipy", "matplotlib", "segment_anything", "safetensors"}
NETWORK = {
    "socket",
    "ssl",
    "urllib",
    "http",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "requests",
    "httpx",
    "aiohttp",
    "websockets",
}

EVERY_FILE = pytest.mark.parametrize("path", EXTENSION, ids=lambda path: path.stem)


def importsOf(path: Path, *, atFileScope: bool) -> Iterator[str]:
    """Full names of what a file imports; of `from a import b` both a and a.b, for b may be a module."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), atFileScope):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, [_package(path, node.level), node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _nodes(node: ast.AST, atFileScope: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if atFileScope and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _nodes(child, atFileScope)


def _package(path: Path, level: int) -> str:
    """The package that `level` dots mean in a file."""
    folder = next(folder for folder in FOLDERS if path.is_relative_to(folder))
    parts = path.relative_to(folder).parts[:-level] if level else ()
    return ".".join(parts)


def _files(name: str) -> list[Path]:
    """The files that importing `name` executes, those of the packages above it among them; none if it is not ours."""
    parts, found = name.split("."), []
    for count in range(1, len(parts) + 1):
        places = [folder.joinpath(*parts[:count]) for folder in FOLDERS]
        candidates = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        found += [file for file in candidates if parts[0] in OWN and file.is_file()]
    return found


def reachableAtStart(path: Path) -> dict[str, Path]:
    """What is imported when `path` is, directly or not: the full name, and a file that imports it."""
    found: dict[str, Path] = {}
    waiting, seen = [path], {path}
    while waiting:
        file = waiting.pop()
        for name in importsOf(file, atFileScope=True):
            found.setdefault(name, file)
            new = [other for other in _files(name) if other not in seen]
            seen.update(new)
            waiting += new
    return found


def wrong(names: dict[str, Path] | list[str], forbidden: set[str]) -> list[str]:
    return sorted(name for name in names if name.split(".")[0] in forbidden)


def test_the_reading_follows_imports_of_modules_packages_and_relative_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FOLDERS", (tmp_path,))
    package = tmp_path / "FewShotSegSlicer"
    package.mkdir()
    (package / "__init__.py").write_text("import inPackage\n", encoding="utf-8")
    (package / "A.py").write_text("from . import B\ndef f():\n    import later\n", encoding="utf-8")
    (package / "B.py").write_text("class C:\n    from torch import nn\ntry:\n    import maybe\nfinally: pass\n")
    (tmp_path / "start.py").write_text("from FewShotSegSlicer import A\nif TYPE_CHECKING:\n    import only\n")
    tops = {name.split(".")[0] for name in reachableAtStart(tmp_path / "start.py")}
    assert tops == {"FewShotSegSlicer", "inPackage", "torch", "maybe"}


def test_nothing_heavy_can_be_reached_when_slicer_starts() -> None:
    reached = reachableAtStart(MODULE)
    assert "FewShotSegSlicer.Logic" in reached, "the module no longer imports its logic: mend this test"
    assert {name: str(reached[name]) for name in wrong(reached, NOT_AT_START)} == {}


def test_nothing_heavy_is_loaded_by_the_panel_either() -> None:
    reached = reachableAtStart(MODULE.parent / "FewShotSegSlicer" / "Panel" / "Panel.py")
    assert {name: str(reached[name]) for name in wrong(reached, NOT_AT_START)} == {}


def test_loading_the_module_and_its_panel_leaves_torch_monai_and_simpleitk_alone() -> None:
    code = f"""
import json, sys
sys.path[:0] = {[str(ROOT), str(MODULE.parent)]!r}
from pathlib import Path
from Testing.SlicerHost import start
app = start()
app.moduleManager().loadModule(Path({str(MODULE)!r}))
import FewShotSegSlicer.Panel.Panel
print(json.dumps(sorted(sys.modules)))
"""
    python = shutil.which("PythonSlicer") or sys.executable
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    result = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert {"FewShotSeg", "FewShotSegSlicer.Panel.Panel"} <= set(loaded)
    assert wrong(loaded, {"torch", "monai", "SimpleITK"}) == []


@EVERY_FILE
def test_at_file_scope_there_is_only_what_slicer_brings(path: Path) -> None:
    assert [name for name in importsOf(path, atFileScope=True) if name.split(".")[0] not in AT_FILE_SCOPE] == []


@EVERY_FILE
def test_qt_comes_from_slicer_only(path: Path) -> None:
    bindings = {"PySide6", "PySide2", "PyQt6", "PyQt5", "PythonQt", "shiboken6", "qtpy"}
    assert wrong(list(importsOf(path, atFileScope=False)), bindings) == []


@EVERY_FILE
def test_the_extension_opens_no_connection(path: Path) -> None:
    assert wrong(list(importsOf(path, atFileScope=False)), NETWORK) == []
    assert "QNetwork" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix())
def test_in_the_library_only_downloading_base_models_opens_a_connection(path: Path) -> None:
    if path.stem != "download":
        assert wrong(list(importsOf(path, atFileScope=False)), NETWORK) == []


def test_what_the_workers_import_is_required_or_comes_with_slicer() -> None:
    lines = (MODULE.parent / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.split(">")[0].replace("-", "_") for line in lines if not line.startswith("#")}
    optional = {
        "contourpy",  # comes with matplotlib
        "dask",
        "distributed",
        "highdicom",
        "tqdm",
        "triton",  # comes with PyTorch on Linux, or is done without
    }  # of the command line, or named by the user, who then has it
    allowed = {*sys.stdlib_module_names, "numpy", "scipy", "SimpleITK", "PIL", "FewShotSegLib", *required, *optional}
    elsewhere = {"benchmarks", "pretraining", "cli", "display", "demo", "__main__"}  # the command line's
    for path in LIBRARY:
        if not elsewhere & {path.stem, *path.parent.parts}:
            names = importsOf(path, atFileScope=False)
            assert [name for name in names if name.split(".")[0] not in allowed] == [], path
