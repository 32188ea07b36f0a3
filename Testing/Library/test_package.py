"""The package as a whole: an import that costs nothing, and public names that are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import FewShotSegLib

ROOT = Path(__file__).parents[2]


def test_importing_the_package_loads_neither_torch_nor_simpleitk_nor_numpy():
    code = (
        "import sys, time; start = time.perf_counter(); import FewShotSegLib; took = time.perf_counter() - start\n"
        "loaded = {'torch', 'SimpleITK', 'numpy', 'scipy', 'monai'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert took < 0.2, took"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_data_modules_load_without_torch_and_simpleitk():
    modules = [f"data.{path.stem}" for path in (ROOT / "FewShotSegLib" / "data").glob("*.py")]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module('FewShotSegLib.' + name)\n"
        "loaded = {'torch', 'SimpleITK', 'scipy', 'safetensors'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", sorted(set(FewShotSegLib.__all__) - {"__version__"}))
def test_every_public_name_is_there(name):
    assert getattr(FewShotSegLib, name) is not None
    assert name in dir(FewShotSegLib)


def test_the_list_of_public_names_is_the_table_of_their_homes():
    assert set(FewShotSegLib.__all__) == {"__version__", *FewShotSegLib._HOME}
    assert FewShotSegLib.__version__.count(".") >= 1


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        FewShotSegLib.nonsense  # noqa: B018
