"""What a user gets: built and installed by CMake, in a checkout, and as a wheel. A stand-in plays Slicer's package."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = shutil.which("PythonSlicer") or sys.executable
MODULES = "lib/Slicer-5.12/qt-scripted-modules"  # in the build tree and in the installed extension
REPOSITORY = "https://github.com/FewShotSeg/SlicerFewShotSeg"
RAW = "https://raw.githubusercontent.com/FewShotSeg/SlicerFewShotSeg/main/"

# What extensions need of Slicer's package, by the behaviour of SlicerMacroBuildScriptedModule and
# ctkMacroCompilePythonScript: files are copied to the build tree, and the folder there is installed.
SLICER_CONFIG = f"""
set(Slicer_USE_FILE "${{CMAKE_CURRENT_LIST_DIR}}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${{CMAKE_CURRENT_LIST_DIR}}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${{CMAKE_CURRENT_LIST_DIR}}/CPack.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "{MODULES}")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "{MODULES}")
"""
USE_SLICER = r"""
include(CTest)
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_NAME)
    message(FATAL_ERROR "Unknown or missing keywords: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  set(_destination "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  set(_copies "")
  foreach(_file IN LISTS MY_SCRIPTS MY_RESOURCES)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_file}")
      message(FATAL_ERROR "Inexistent file: ${_file}")
    endif()
    add_custom_command(OUTPUT "${_destination}/${_file}" DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${_file}"
      COMMAND ${CMAKE_COMMAND} -E copy "${CMAKE_CURRENT_SOURCE_DIR}/${_file}" "${_destination}/${_file}")
    list(APPEND _copies "${_destination}/${_file}")
  endforeach()
  add_custom_target(${MY_NAME} ALL DEPENDS ${_copies})
  install(DIRECTORY "${_destination}/" DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}"
    COMPONENT RuntimeLibraries USE_SOURCE_PERMISSIONS)
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  add_test(NAME "py_${MY_TESTNAME_PREFIX}${MY_SCRIPT}" COMMAND Slicer)
endmacro()
"""
CPACK = r"""
file(WRITE "${CMAKE_BINARY_DIR}/extension.txt" "PROJECT_NAME=${PROJECT_NAME}\n")
foreach(_name HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  file(APPEND "${CMAKE_BINARY_DIR}/extension.txt" "${_name}=${EXTENSION_${_name}}\n")
endforeach()
"""


def run(*command: object, cwd: Path | None = None) -> str:
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def runPython(code: str, folder: Path, cwd: Path) -> Any:
    """The JSON that `code` prints in a Python which sees `folder` and installed packages, but no editable install."""
    start = f"import json, sys; sys.path[:0] = [{str(folder)!r}]; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    return json.loads(run(PYTHON, "-S", "-B", "-c", start + code, cwd=cwd))


@pytest.fixture(scope="module")
def buildFolder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension built by CMake, and installed beneath `installed`."""
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs cmake and a C++ compiler, which CMake looks for by default")
    slicer, build = tmp_path_factory.mktemp("Slicer"), tmp_path_factory.mktemp("build with a space")
    (slicer / "SlicerConfig.cmake").write_text(SLICER_CONFIG, encoding="utf-8")
    (slicer / "UseSlicer.cmake").write_text(USE_SLICER, encoding="utf-8")
    (slicer / "GenerateConfig.cmake").write_text("", encoding="utf-8")
    (slicer / "CPack.cmake").write_text(CPACK, encoding="utf-8")
    run("cmake", "-S", ROOT, "-B", build, f"-DSlicer_DIR={slicer}", "-DCMAKE_BUILD_TYPE=Release")
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", build / "installed")
    return build


@pytest.fixture(scope="module")
def extension(buildFolder: Path) -> dict[str, str]:
    """What CMake was told of the extension."""
    lines = (buildFolder / "extension.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def filesOf(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def packagedFiles() -> set[str]:
    """What of the tree belongs into the folder of scripted modules."""
    library = {f"FewShotSegLib/{name}" for name in filesOf(ROOT / "FewShotSegLib") if name.endswith(".py")}
    models = {f"FewShotSegLib/Models/{name}" for name in filesOf(ROOT / "Resources" / "Models")}
    return library | models | (filesOf(ROOT / "FewShotSeg") - {"CMakeLists.txt"})


@pytest.mark.parametrize("place", ["", "installed"], ids=["built", "installed"])
def test_every_file_is_packaged_and_nothing_else(buildFolder: Path, place: str) -> None:
    assert filesOf(buildFolder / place / MODULES) == packagedFiles()


FIND_MODEL = """
from safetensors import safe_open
import FewShotSegLib
from FewShotSegLib.sam import registry
model, path = registry.find("bundled-small")
registry.verify("bundled-small")
with safe_open(path, "numpy") as file:
    card = json.loads(file.metadata()["fewshotseg"])
print(json.dumps([FewShotSegLib.__file__, str(path), card, "torch" in sys.modules]))
"""


@pytest.mark.parametrize("place", ["", "installed"], ids=["built", "installed"])
def test_the_library_and_its_model_are_found_where_cmake_puts_them(
    buildFolder: Path, place: str, a_home: Path, tmp_path: Path
) -> None:
    modules = buildFolder / place / MODULES
    library, model, card, torchIsLoaded = runPython(FIND_MODEL, modules, tmp_path)
    assert Path(library) == modules / "FewShotSegLib" / "__init__.py"
    assert Path(model) == modules / "FewShotSegLib" / "Models" / "bundled-small.safetensors"
    assert card["image_size"] > 0
    assert not torchIsLoaded


def test_the_library_is_found_from_a_checkout_that_only_slicer_knows(a_home: Path, tmp_path: Path) -> None:
    library, model, *_ = runPython("import FewShotSegSlicer" + FIND_MODEL, ROOT / "FewShotSeg", tmp_path)
    assert Path(library) == ROOT / "FewShotSegLib" / "__init__.py"
    assert Path(model) == ROOT / "Resources" / "Models" / "bundled-small.safetensors"


def test_a_library_that_can_be_imported_already_is_taken(tmp_path: Path) -> None:
    (tmp_path / "FewShotSegLib").mkdir()
    (tmp_path / "FewShotSegLib" / "__init__.py").touch()
    code = f"sys.path.insert(0, {str(tmp_path)!r})\nimport FewShotSegSlicer, FewShotSegLib\n"
    library = runPython(code + "print(json.dumps(FewShotSegLib.__file__))", ROOT / "FewShotSeg", tmp_path)
    assert Path(library).parent == tmp_path / "FewShotSegLib"


def test_the_module_loads_from_the_installed_folder(buildFolder: Path, tmp_path: Path) -> None:
    modules = buildFolder / "installed" / MODULES
    code = f"""
sys.path.append({str(ROOT)!r})
from pathlib import Path
from Testing.SlicerHost import start
app = start()
app.moduleManager().loadModule(Path({str(modules / "FewShotSeg.py")!r}))
import slicer, FewShotSegLib, FewShotSegSlicer.Logic
print(json.dumps([slicer.util.getModule("FewShotSeg").title, FewShotSegLib.__file__, FewShotSegSlicer.Logic.__file__]))
"""
    title, *files = runPython(code, modules, tmp_path)
    assert title == "FewShotSeg"
    assert all(Path(file).is_relative_to(modules) for file in files)


def test_the_module_test_is_registered(buildFolder: Path) -> None:
    (test,) = json.loads(run("ctest", "--show-only=json-v1", "--test-dir", buildFolder))["tests"]
    assert test["name"] == "py_FewShotSeg.py"
    (environment,) = (one["value"] for one in test["properties"] if one["name"] == "ENVIRONMENT")
    assert f"FEWSHOTSEG_TESTS={ROOT / 'Testing' / 'Extension'}" in environment


# ------------------------------------------------------------------------------------------------------- metadata


def test_the_metadata_of_the_extension_points_to_files_that_are_there(extension: dict[str, str]) -> None:
    assert extension["PROJECT_NAME"] == "FewShotSeg"
    assert extension["HOMEPAGE"] == REPOSITORY
    assert extension["DEPENDS"] == "PyTorch"
    assert extension["CONTRIBUTORS"]
    assert extension["DESCRIPTION"].endswith(".")
    for url in [extension["ICONURL"], *extension["SCREENSHOTURLS"].split()]:
        assert url.startswith(RAW)
        assert (ROOT / url.removeprefix(RAW)).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["Resources/FewShotSeg.png", "FewShotSeg/Resources/Icons/FewShotSeg.png"])
def test_icons_are_128_pixels_wide_and_high(path: str) -> None:
    header = (ROOT / path).read_bytes()[:26]
    assert struct.unpack(">II", header[16:24]) == (128, 128)
    assert header[25] == 6  # colour with transparency


def test_the_index_entry_is_what_the_extensions_index_checks() -> None:
    raw = (ROOT / "FewShotSeg.json").read_bytes()
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")
    entry = json.loads(raw)
    assert re.fullmatch(r"https://\S+/slicer-extension-catalog-entry-schema-v1\.0\.\d\.json#", entry.pop("$schema"))
    assert entry == {
        "build_dependencies": ["PyTorch"],
        "build_subdirectory": ".",
        "category": "Segmentation",
        "scm_revision": "main",
        "scm_url": REPOSITORY,
        "tier": 3,
    }


def test_requirements_in_slicer_are_those_of_the_library() -> None:
    lines = (ROOT / "FewShotSeg/Resources/requirements.txt").read_text(encoding="utf-8").splitlines()
    inSlicer = {line for line in lines if not line.startswith("#")}
    toml = pytest.importorskip("tomllib")
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    comesAlong = {"numpy", "scipy", "SimpleITK>=2.3", "pillow", "contourpy"}  # with Slicer and matplotlib
    assert inSlicer == set(project["dependencies"]) - comesAlong - {"tqdm"}  # tqdm: the command line's


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_installs_nothing_of_slicer_and_the_tests_do() -> None:
    toInstall = {goal: run("make", "--dry-run", "--always-make", goal, cwd=ROOT) for goal in ("demo", "test")}
    assert ".[dev]" in toInstall["demo"]
    assert {goal: "slicer" in lines for goal, lines in toInstall.items()} == {"demo": False, "test": True}
    assert {goal: "apt-get" in lines for goal, lines in toInstall.items()} == {"demo": False, "test": True}


# ---------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the library, built away from the tree, which building would leave files in."""
    try:
        enough = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        enough = False
    if not enough:
        pytest.skip("needs setuptools 77")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("FewShotSegLib", "Resources/Models"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    run(PYTHON, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", source / "dist", source)
    [path] = (source / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_the_library_and_its_model_which_is_found(wheel: Path, a_home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    packaged = {name for name in packagedFiles() if name.startswith("FewShotSegLib/")}
    assert names == {*packaged, "FewShotSegLib/py.typed"}  # for type checkers, which Slicer has none of
    library, model, *_ = runPython(FIND_MODEL, tmp_path / "site", tmp_path)
    assert Path(library).is_relative_to(tmp_path / "site")
    assert Path(model) == tmp_path / "site" / "FewShotSegLib" / "Models" / "bundled-small.safetensors"
