"""The package as a whole: an import that costs nothing, and public names that are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import FewShotSegLib
from FewShotSegLib.data.volume import Labelmap
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.sam import registry
from Testing.conftest import DISC, SQUARE, discs

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


def test_only_public_names_are_listed():
    assert set(dir(FewShotSegLib)) == set(FewShotSegLib.__all__)


def test_type_checkers_may_read_the_package():
    assert (ROOT / "FewShotSegLib" / "py.typed").is_file()


def public_objects():
    return [getattr(FewShotSegLib, name) for name in FewShotSegLib.__all__ if name not in ("__version__", "Job")]


@pytest.mark.parametrize("thing", public_objects(), ids=lambda thing: thing.__name__)
def test_every_public_name_is_documented(thing):
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{thing.__name__}(")  # what dataclasses write where nobody wrote anything


def test_the_functions_of_the_api_have_an_example_each():
    api = [thing for thing in public_objects() if thing.__module__.startswith("FewShotSegLib.api")]
    assert [thing.__name__ for thing in api if ">>> " not in thing.__doc__] == ["Evaluation", "load_adapter"]


def python_block(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


def test_the_readme_and_the_home_page_show_the_same_python():
    assert python_block("README.md") == python_block("docs/index.md")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, a_tiny_base):
    """As it is written, with smaller patients and base model than the demo's, and a second of training."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "DEFAULT", a_tiny_base)
    plt.switch_backend("Agg")
    demo = tmp_path / "demo-output"
    folders = {"patient-1": "exemplars", "patient-2": "exemplars", "patient-3": "unseen"}
    for name, folder in folders.items():
        volume, labels = discs(np.random.default_rng(int(name[-1])), (4, 64, 64))
        save_volume(volume, demo / folder / f"{name}.nrrd")
        labelmap = Labelmap(volume.like(labels), {DISC: "disc", SQUARE: "square"})
        save_labelmap(labelmap, demo / folder.replace("unseen", "reference") / f"{name}.seg.nrrd")
    code = python_block("README.md")
    smaller = {
        "[first, second]": "[first, second], max_seconds=1",
        "43, 68, 21": "20, 22, 1",
        "13, 29": "0, 3",
        "(21,)": "(1,)",
        "slice=21": "slice=1",
    }
    for written, tried in smaller.items():
        assert written in code
        code = code.replace(written, tried)
    names: dict = {}
    exec(code, names)
    assert names["mask"].array.shape == (4, 64, 64)
    assert names["labelmap"].structures == {DISC: "disc", SQUARE: "square"}
    assert {row.case for row in names["scores"].rows} == {"patient-3"}
    assert plt.gca().get_title() == "k = 1"
    plt.close("all")


def test_the_list_of_public_names_is_the_table_of_their_homes():
    assert set(FewShotSegLib.__all__) == {"__version__", *FewShotSegLib._HOME}
    assert FewShotSegLib.__version__.count(".") >= 1


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        FewShotSegLib.nonsense  # noqa: B018
