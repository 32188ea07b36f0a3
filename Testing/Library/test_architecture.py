"""What may import what, read from the source, so that a wrong arrow fails here and not in a Slicer without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "FewShotSegLib"

# Lowest first; a module imports from its own layer and from those above it in this list, never from those below.
# Folders stand for all their modules. What is not listed belongs to "steps".
LAYERS = {
    "data": "errors version progress files scratch image_files segments volume intensity prompt exemplar recipe "
    "adapter job",
    "arrays": "folders data_sets outlines slices pasting inpainting contact_sheet synthesis bandit schedulers metrics "
    "phantom base_models grid",
    "networks": "losses sam networks",
    "steps": "training gradients segmentation evaluation report auxiliary registration translation anatomy_space",
    "methods": "methods pretraining",
    "runs": "pipeline demo measuring",
    "callers": "worker client batch benchmarks",
    "command line": "cli __main__",
}
LAYER_OF = {name: level for level, names in enumerate(LAYERS.values()) for name in names.split()}
STEPS = list(LAYERS).index("steps")
DATA = LAYERS["data"].split()

SLICER_SIDE = {"slicer", "qt", "vtk", "ctk", "PythonQt", "SlicerFewShotSeg", "FewShotSeg", "FewShotSegSlicer"}
# Numpy and scipy only, at any depth of the code: they must work while torch is not installed yet.
WITHOUT_TORCH = {*DATA, "slices", "synthesis", "metrics", "phantom", "client"}
WITHOUT_TORCH |= {"bandit", "schedulers", "data_sets", "auxiliary", "grid"}


@dataclass(frozen=True)
class Import:
    """`module` as written out in full, and whether it is imported when the file is."""

    module: str
    at_import: bool
    line: int

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def own(self) -> str | None:
        """The module or folder right inside FewShotSegLib that this comes from."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "FewShotSegLib" and len(parts) > 1 else None


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def key_of(path: Path) -> str:
    """The module or folder right inside FewShotSegLib that a file belongs to; the package itself is "__init__"."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[Import]:
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), path, at_import=True))


def _imports(node: ast.AST, path: Path, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_import, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from_imports(child, path, at_import=at_import)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, path, at_import=at_import and not inside)


def _from_imports(node: ast.ImportFrom, path: Path, *, at_import: bool) -> Iterator[Import]:
    module = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parent.parts  # of `from . import x`, in a package's __init__ as in its modules
        module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [module])])
    for alias in node.names:
        # `from . import losses` imports a module, `from .losses import dice` a name of one.
        is_module = (ROOT / Path(*module.split("."), f"{alias.name}.py")).exists()
        yield Import(f"{module}.{alias.name}" if is_module else module, at_import, node.lineno)


FILES = sorted(LIBRARY.rglob("*.py"))
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=name_of)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


def test_the_reading_of_imports_sees_what_python_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    package = tmp_path / "FewShotSegLib" / "sam"
    package.mkdir(parents=True)
    (package.parent / "losses.py").touch()
    source = "import numpy as np, torch.nn\nfrom ..losses import dice\nfrom .. import losses\nfrom . import x\n"
    source += "if TYPE_CHECKING:\n    import vtk\ndef f():\n    import SimpleITK\nclass C:\n    from os import path\n"
    (package / "a.py").write_text(source, encoding="utf-8")
    found = [(item.module, item.at_import) for item in imports_of(package / "a.py")]
    losses = ("FewShotSegLib.losses", True)
    assert found == [
        ("numpy", True),
        ("torch.nn", True),
        losses,
        losses,
        ("FewShotSegLib.sam", True),
        ("SimpleITK", False),
        ("os", True),
    ]


@EVERY_FILE
def test_the_library_knows_nothing_of_slicer(path: Path) -> None:
    wrong = [f"{where(path, item.line)} {item.module}" for item in imports_of(path) if item.top in SLICER_SIDE]
    assert not wrong


@EVERY_FILE
def test_imports_point_only_downward(path: Path) -> None:
    key = key_of(path)
    if key == "__init__":
        return  # the public names, imported on first use
    level = LAYER_OF.get(key, STEPS)
    for item in imports_of(path):
        if item.own is not None:
            assert LAYER_OF.get(item.own, STEPS) <= level, (
                f"{where(path, item.line)} imports {item.module}, which is a layer above; "
                "see LAYERS, where every module has its place"
            )


@pytest.mark.parametrize("path", [path for path in FILES if key_of(path) in DATA], ids=name_of)
def test_data_modules_import_numpy_and_the_standard_library_only(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"numpy", "FewShotSegLib"}
    wrong = [f"{where(path, item.line)} {item.module}" for item in imports_of(path) if item.at_import]
    assert [text for text in wrong if text.split()[-1].split(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", [path for path in FILES if key_of(path) in WITHOUT_TORCH], ids=name_of)
def test_modules_that_slicer_needs_before_torch_is_installed_do_without_it(path: Path) -> None:
    wrong = [f"{where(path, item.line)} {item.module}" for item in imports_of(path) if item.top in {"torch", "monai"}]
    assert not wrong


@pytest.mark.parametrize("path", [path for path in FILES if key_of(path) == "methods"], ids=name_of)
def test_methods_never_import_each_other(path: Path) -> None:
    if path.stem == "__init__":
        return
    for item in imports_of(path):
        other = item.module.removeprefix("FewShotSegLib.methods").lstrip(".")
        same_folder = item.module.startswith("FewShotSegLib.methods") and other not in ("", path.stem)
        assert not same_folder, f"{where(path, item.line)} imports {item.module}; put the shared step one layer down"


@EVERY_FILE
def test_only_the_command_line_prints(path: Path) -> None:
    if key_of(path) in ("cli", "__main__"):
        return
    assert [where(path, call.lineno) for call in calls(path) if ast.unparse(call.func) == "print"] == []


@EVERY_FILE
def test_files_are_never_unpickled(path: Path) -> None:
    pickles = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    assert [where(path, item.line) for item in imports_of(path) if item.top in pickles] == []
    for call in calls(path):
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if ast.unparse(call.func) == "torch.load":
            assert arguments.get("weights_only") == "True", f"{where(path, call.lineno)} needs weights_only=True"
        if ast.unparse(call.func) in ("np.load", "numpy.load"):
            assert arguments.get("allow_pickle", "False") == "False", where(path, call.lineno)


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_module_is_called_utils() -> None:
    assert [name_of(path) for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_importing_the_library_loads_neither_torch_nor_simpleitk() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import FewShotSegLib;"
        "seconds = time.perf_counter() - start; print(json.dumps([seconds, sorted(sys.modules)]))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, modules = json.loads(output)
    sys.stdout.write(f"import FewShotSegLib took {seconds:.3f} s\n")  # shown with pytest -s; the clock is no judge
    heavy = {"torch", "monai", "SimpleITK", "segment_anything", "scipy", "matplotlib", "safetensors"}
    assert heavy & set(modules) == set()


def test_every_package_is_installed() -> None:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = toml.load(stream)["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in FILES}
    assert sorted(listed) == sorted({*found, "FewShotSegLib.Models"})
