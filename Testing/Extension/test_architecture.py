"""What may import what among the files of FewShotSegSlicer, and which test goes with which; read from the source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "FewShotSeg" / "FewShotSegSlicer"
TESTS = Path(__file__).resolve().parent

# Folders and files on top of FewShotSegSlicer, lowest first. Each imports from those of the levels above it in this
# list; two of one level do not know each other.
LEVELS = (
    ("Signal", "Dependencies"),
    ("Scene", "Workers"),
    ("Prompting", "Exemplars", "Installation"),
    ("Jobs",),
    ("Logic",),
    ("Panel", "SelfTest"),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

# Modules without a test file of their name, and where they are tested instead.
TESTED_ELSEWHERE: dict[str, str] = {}
# Tests of the extension as a whole.
WHOLE = {"FewShotSeg", "architecture", "golden", "host", "imports", "packaging", "privacy", "story", "tutorial"}


@dataclass(frozen=True)
class Import:
    """`name` of `module`, both written out in full; the whole module where `name` is empty."""

    module: str
    name: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.module} {self.name}".rstrip()


def moduleOf(path: Path) -> str:
    """FewShotSegSlicer.Panel.Chooser"""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


FILES = {moduleOf(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"}
EVERY_MODULE = pytest.mark.parametrize("module", FILES)


def treeOf(module: str) -> ast.Module:
    return _tree(FILES[module])


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def importsOf(module: str) -> Iterator[Import]:
    """Everything that a file imports from FewShotSegSlicer, wherever in the file and for whatever reason."""
    for node in ast.walk(treeOf(module)):
        if isinstance(node, ast.Import):
            found = [Import(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = list(_fromImports(module, node))
        else:
            continue
        yield from (one for one in found if one.module.split(".")[0] == PACKAGE.name)


def _fromImports(module: str, node: ast.ImportFrom) -> Iterator[Import]:
    above = module.split(".")[: -node.level] if node.level else []
    source = ".".join([*above, *filter(None, [node.module])])
    for alias in node.names:
        whole = f"{source}.{alias.name}"
        yield Import(whole, "", node.lineno) if whole in FILES else Import(source, alias.name, node.lineno)


def partOf(module: str) -> str:
    """The folder of a module, or the module itself where it lies on top."""
    return module.split(".")[1]


def namesDefinedIn(module: str) -> set[str]:
    """What a file makes at its top; not what it imports."""
    names: set[str] = set()
    for node in treeOf(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(
                target.id for whole in node.targets for target in ast.walk(whole) if isinstance(target, ast.Name)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_imports_are_seen_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import numpy, FewShotSegSlicer.Signal
from FewShotSegSlicer.Scene import Layers
from . import Chooser
from .Chooser import Chooser
from .. import Logic
if TYPE_CHECKING:
    from .Panel import Panel
def later():
    from ..Scene.Layers import gridMap
"""
    (tmp_path / "made.py").write_text(source, encoding="utf-8")
    monkeypatch.setitem(FILES, "FewShotSegSlicer.Panel.made", tmp_path / "made.py")
    assert [
        (one.module.removeprefix("FewShotSegSlicer."), one.name) for one in importsOf("FewShotSegSlicer.Panel.made")
    ] == [
        ("Signal", ""),
        ("Scene.Layers", ""),
        ("Panel.Chooser", ""),
        ("Panel.Chooser", "Chooser"),
        ("Logic", ""),
        ("Panel.Panel", "Panel"),
        ("Scene.Layers", "gridMap"),
    ]


def test_every_folder_has_its_level() -> None:
    assert {partOf(module) for module in FILES} == set(LEVEL_OF)


@EVERY_MODULE
def test_imports_lead_down(module: str) -> None:
    own = partOf(module)
    wrong = [
        one for one in importsOf(module) if partOf(one.module) != own and LEVEL_OF[partOf(one.module)] >= LEVEL_OF[own]
    ]
    assert not wrong, f"{own} imports " + ", ".join(map(str, wrong))


def test_no_files_import_each_other_in_a_circle() -> None:
    waiting = {module: {one.module for one in importsOf(module)} & set(FILES) for module in FILES}
    while free := {module for module, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert not waiting, "in a circle, or above one: " + ", ".join(waiting)


@EVERY_MODULE
def test_every_import_names_a_thing_where_it_is_made(module: str) -> None:
    wrong = [one for one in importsOf(module) if one.module not in FILES]
    wrong += [one for one in importsOf(module) if one.name and one.name not in namesDefinedIn(one.module)]
    assert not wrong, ", ".join(map(str, wrong))


@EVERY_MODULE
def test_what_begins_with_an_underscore_stays_in_its_file(module: str) -> None:
    tree, modules = treeOf(module), {one.module.split(".")[-1] for one in importsOf(module) if not one.name}
    taken = [one.name for one in importsOf(module) if one.name.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken += [node.attr] if node.attr.startswith("_") else []
    assert not taken


# --------------------------------------------------------------------------------------------------------------- tests


def expectedTests() -> set[str]:
    """Panel/test_Chooser.py for Panel/Chooser.py"""
    return {path.relative_to(PACKAGE).with_name(f"test_{path.name}").as_posix() for path in FILES.values()}


def foundTests() -> set[str]:
    return {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}


def test_every_module_has_a_test_file() -> None:
    missing = {Path(name).stem.removeprefix("test_") for name in expectedTests() - foundTests()}
    assert missing == set(TESTED_ELSEWHERE)


def test_every_test_file_is_of_a_module_or_of_the_whole() -> None:
    assert foundTests() - expectedTests() == {f"test_{name}.py" for name in WHOLE}


def test_the_table_of_exceptions_is_short_and_says_why() -> None:
    assert set(TESTED_ELSEWHERE) <= {path.stem for path in FILES.values()}
    assert all(TESTED_ELSEWHERE.values())
    assert len(TESTED_ELSEWHERE) <= 3
