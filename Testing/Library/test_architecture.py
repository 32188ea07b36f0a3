"""What may import what, read from the source, so that a wrong arrow fails here and not in a Slicer without torch."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from FewShotSegLib.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "FewShotSegLib"
TESTS = ROOT / "Testing" / "Library"

# The rooms of the library, lowest first. A room imports from its own level and from those above it in this list, never
# from those below; rooms of one level may use each other as long as no circle arises.
LEVELS = (
    ("errors", "progress", "version"),
    ("data",),
    ("imaging", "synthesis"),
    ("io",),
    ("evaluation", "visualization"),
    ("devices", "networks", "sam", "lora"),
    ("inference",),
    ("training",),
    ("methods",),
    ("jobs",),
    ("worker", "api", "cli", "demo", "benchmarks", "pretraining", "__main__"),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
DATA = "data"

SLICER_SIDE = {"slicer", "qt", "vtk", "ctk", "PythonQt", "SlicerFewShotSeg", "FewShotSeg", "FewShotSegSlicer"}
# Below this room no torch and no MONAI at any depth of the code: it must work while torch is not installed yet.
FIRST_WITH_TORCH = "devices"
TORCH_INSIDE = {"FewShotSegLib.imaging.anatomy_space"}  # when it is called; nothing that runs before needs it
# These alone import MONAI when they are imported, which takes seconds; everything else that a worker, a command or a
# form of options imports does so when it is called.
WITH_MONAI = {
    f"FewShotSegLib.{name}" for name in ("networks.unet", "networks.swin", "networks.small", "benchmarks.unet")
}
WITHOUT_TORCH = {
    "FewShotSegLib.worker.client",
    "FewShotSegLib.worker.scratch",
    "FewShotSegLib.demo.run.phantom",
}

# Modules without a test file of their name, and test files about the library as a whole.
WITHOUT_TESTS = {
    "FewShotSegLib": "test_package.py has the public names",
    "FewShotSegLib.__main__": "cli/test_main.py starts it",
    "FewShotSegLib.version": "a number",
}
WHOLE_LIBRARY = {
    "test_architecture.py",
    "test_campaign.py",
    "test_contributing.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_golden.py",
    "test_gpu.py",
    "test_package.py",
    "test_stopping.py",
}


@dataclass(frozen=True)
class Import:
    """`module` as written out in full, and whether it is imported when the file is."""

    module: str
    at_import: bool
    line: int

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module written out in full; the package itself is "__init__"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def key_of(path: Path) -> str:
    return room_of(name_of(path))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path, *, types: bool = False) -> list[Import]:
    """What a file imports; with `types`, for type checking only too."""
    return list(_imports(tree_of(path), path, at_import=True, types=types))


def _imports(node: ast.AST, path: Path, *, at_import: bool, types: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if not types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_import, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from_imports(child, path, at_import=at_import)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, path, at_import=at_import and not inside, types=types)


def _from_imports(node: ast.ImportFrom, path: Path, *, at_import: bool) -> Iterator[Import]:
    module = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parent.parts  # of `from . import x`, in a package's __init__ as in its modules
        module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [module])])
    for alias in node.names:
        # `from . import losses` imports a module, `from .losses import dice` a name of one.
        place = ROOT / Path(*module.split("."), alias.name)
        is_module = place.with_suffix(".py").exists() or place.is_dir()
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


def own_imports(path: Path) -> list[tuple[str, int]]:
    """Modules of this library that a file imports, those for type checking only among them, with the line."""
    found = imports_of(path, types=True)
    return [
        (item.module, item.line) for item in found if item.top == "FewShotSegLib" and item.module != "FewShotSegLib"
    ]


def test_every_room_has_its_place() -> None:
    assert [name_of(path) for path in FILES if key_of(path) not in {*LEVEL_OF, "__init__"}] == []


@EVERY_FILE
def test_imports_point_only_downward(path: Path) -> None:
    room = key_of(path)
    if room == "__init__":
        return  # the public names, imported on first use
    for module, line in own_imports(path):
        assert LEVEL_OF[room_of(module)] <= LEVEL_OF[room], (
            f"{where(path, line)} imports {module}, which lies above; see LEVELS, where every room has its place"
        )


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes that reach themselves."""
    found = []
    for start in arrows:
        reached, waiting = set[str](), list(arrows[start])
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting += arrows.get(node, set())
        if start in reached:
            found.append(start)
    return found


def test_no_file_and_no_room_reaches_itself() -> None:
    files: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    for path in FILES:
        if key_of(path) != "__init__":
            targets = {m for m, _ in own_imports(path) if m != name_of(path)}
            files[name_of(path)] = targets
            rooms.setdefault(key_of(path), set()).update({room_of(m) for m in targets} - {key_of(path)})
    assert circles(files) == []
    assert circles(rooms) == []


@pytest.mark.parametrize("path", [path for path in FILES if key_of(path) == DATA], ids=name_of)
def test_data_modules_import_numpy_and_the_standard_library_only(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"numpy", "FewShotSegLib"}
    wrong = [f"{where(path, item.line)} {item.module}" for item in imports_of(path) if item.at_import]
    assert [text for text in wrong if text.split()[-1].split(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_slicer_needs_before_torch_is_installed_does_without_it(path: Path) -> None:
    if LEVEL_OF.get(key_of(path), 0) >= LEVEL_OF[FIRST_WITH_TORCH] and name_of(path) not in WITHOUT_TORCH:
        return
    heavy = [item for item in imports_of(path) if item.top in {"torch", "monai"}]
    if name_of(path) in TORCH_INSIDE:
        heavy = [item for item in heavy if item.at_import]
    assert [f"{where(path, item.line)} {item.module}" for item in heavy] == []


@EVERY_FILE
def test_what_does_not_need_monai_does_not_wait_for_it(path: Path) -> None:
    at_import = [item for item in imports_of(path) if item.at_import and key_of(path) != "benchmarks"]
    monai = [item for item in at_import if item.top == "monai" and name_of(path) not in WITH_MONAI]
    through = [item for item in at_import if item.module in WITH_MONAI]
    assert [f"{where(path, item.line)} {item.module}" for item in monai + through] == []


def method_of(module: str) -> str:
    """The method that a module below `methods` belongs to; "" for what they share."""
    parts = module.removeprefix("FewShotSegLib.methods").lstrip(".").split(".")
    return parts[0] if parts[0] in METHODS else ""


@pytest.mark.parametrize("path", [path for path in FILES if key_of(path) == "methods"], ids=name_of)
def test_methods_never_import_each_other(path: Path) -> None:
    own = method_of(name_of(path))
    for module, line in own_imports(path):
        if own and module.startswith("FewShotSegLib.methods."):
            assert method_of(module) in ("", own), (
                f"{where(path, line)} imports {module}; put what they share elsewhere"
            )


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


@functools.cache
def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


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


def place_of_tests(path: Path) -> str | None:
    """The test file of a module, below `TESTS`: its folder, its name; that of a package's own code lies inside it."""
    module, folder = name_of(path), path.parent.relative_to(LIBRARY)
    is_package = path.stem == "__init__"
    if module in WITHOUT_TESTS or (is_package and not has_code(path)):
        return None
    return (folder / f"test_{folder.name if is_package else path.stem.strip('_')}.py").as_posix()


def has_code(path: Path) -> bool:
    body = tree_of(path).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def test_the_place_of_tests_is_that_of_their_module() -> None:
    places = {path: place_of_tests(LIBRARY / path) for path in ("devices.py", "io/volumes.py", "methods/asap/pool.py")}
    assert places == {path: f"{path.rpartition('/')[0]}/test_{Path(path).name}".lstrip("/") for path in places}
    assert place_of_tests(LIBRARY / "worker" / "__main__.py") == "worker/test_main.py"
    assert place_of_tests(LIBRARY / "networks" / "__init__.py") == "networks/test_networks.py"
    assert place_of_tests(LIBRARY / "io" / "__init__.py") is None


def test_every_module_has_a_test_file_of_its_name_in_the_same_folder() -> None:
    wanted = [place for path in FILES if (place := place_of_tests(path)) is not None]
    assert [place for place in wanted if not (TESTS / place).is_file()] == []
    assert set(WITHOUT_TESTS) <= {name_of(path) for path in FILES}


def test_every_test_file_has_a_module_and_works_with_its_room() -> None:
    modules = {place: name_of(path) for path in FILES if (place := place_of_tests(path)) is not None}
    found = {path.relative_to(TESTS).as_posix(): path for path in TESTS.rglob("test_*.py")}
    assert sorted(set(found) - set(modules)) == sorted(WHOLE_LIBRARY)
    for place, module in modules.items():
        rooms = {room_of(item.module) for item in imports_of(found[place]) if item.top == "FewShotSegLib"}
        assert room_of(module) in rooms, f"{place} imports nothing of {room_of(module)}"
