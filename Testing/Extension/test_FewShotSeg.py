"""The module as Slicer sees it: what it is called, its console, reloading, closing the scene."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slicer

MODULE = Path(__file__).resolve().parents[2] / "FewShotSeg" / "FewShotSeg.py"


@pytest.fixture
def module(panel: Any) -> Any:
    return slicer.util.getModule("FewShotSeg")


def test_the_module_presents_itself(module: Any) -> None:
    assert module.title == "FewShotSeg"
    assert list(module.categories) == ["Segmentation"]
    assert list(module.contributors)
    assert "Not for clinical use" in module.helpText
    assert module.acknowledgementText
    assert len(MODULE.read_text(encoding="utf-8").splitlines()) < 150


def test_the_console_gets_the_logic_of_the_panel(panel: Any) -> None:
    logic = slicer.util.getModuleLogic("FewShotSeg")
    assert logic is panel.logic
    assert [kind.__name__ for kind in type(logic).__mro__[:3]] == [
        "FewShotSegLogic",
        "Logic",
        "ScriptedLoadableModuleLogic",
    ]
    assert logic.moduleName == "FewShotSeg"


@pytest.fixture
def sameModulesAfterwards() -> Iterator[None]:
    """Later tests hold classes of the modules of before; to them the same class of a reloaded module is another one."""

    def ours() -> set[str]:
        return {
            name for name in sys.modules if name.split(".")[0] in ("FewShotSeg", "FewShotSegSlicer", "FewShotSegLib")
        }

    before = {name: sys.modules[name] for name in ours()}
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


def test_reloading_takes_every_file_anew_and_ends_the_workers_of_before(
    sameModulesAfterwards: None, panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, closed = panel.logic, []
    close = before.close

    def noticedClose() -> None:
        closed.append(True)
        close()

    monkeypatch.setattr(before, "close", noticedClose)
    names = ("FewShotSeg", "FewShotSegSlicer.Logic", "FewShotSegSlicer.Panel.Panel", "FewShotSegLib.worker.client")
    old = {name: sys.modules[name] for name in names}
    panel.onReload()
    after = slicer.util.getModuleWidget("FewShotSeg")
    assert closed == [True]
    assert after is not panel
    assert [name for name in names if sys.modules[name] is old[name]] == []
    assert type(after.logic).__mro__[1] is sys.modules["FewShotSegSlicer.Logic"].Logic


def test_a_reloaded_panel_takes_clicks_and_keys_at_once(sameModulesAfterwards: None, panel: Any, pressKey: Any) -> None:
    """Slicer's own reload sets the module up and does not enter it."""
    panel.onReload()
    after = slicer.util.getModuleWidget("FewShotSeg").panel
    assert after.segment.tool._isInstalled
    pressKey("N")
    assert after.segment.tool.mode == "negative"


def test_the_panel_hears_of_a_scene_that_closes(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(panel.panel, "onSceneStartClose", lambda: heard.append("start"))
    monkeypatch.setattr(panel.panel, "onSceneEndClose", lambda: heard.append("end"))
    slicer.mrmlScene.Clear(0)
    assert heard == ["start", "end"]
    panel.cleanup()
    slicer.mrmlScene.Clear(0)
    assert heard == ["start", "end"]
